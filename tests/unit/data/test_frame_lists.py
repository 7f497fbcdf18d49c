"""Annotations whose videos are folders of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.annotations import load_records, videos_under
from gcvideo.data.dataset import ClipDataset, ViewDataset
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from tests.videos import moving_frames, write_frames, write_video

DATA = DataConfig(frames=4, stride=1, crop=32, short_side=(32, 32), workers=0, flip=0.0)
TEST = TestConfig(clips=1, crops=1, short_side=32, crop=32)
COUNTS = {"jump/a": 12, "jump/b": 9, "run/c": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for seed, (name, count) in enumerate(COUNTS.items()):
        write_frames(folder / name, moving_frames(count, 32, 64, seed=seed), name="img_{:05d}.png")
        write_frames(folder / name / "flow_x", moving_frames(2, 32, 64), name="{}.png")
    return folder


def read(root: Path, *lines: str, **options: object) -> RecordTable:
    (root / "list.txt").write_text("\n".join(lines) + "\n")
    return load_records(root / "list.txt", **options)  # type: ignore[arg-type]


def rows(table: RecordTable) -> list[tuple[str, int]]:
    return [(record.id, record.label) for record in table]


def test_rawframes_lists(root):
    expected = [("jump/a", 0), ("jump/b", 0), ("run/c", 1)]
    assert rows(read(root, "jump/a 12 0", "jump/b 9 0", "run/c 10 1")) == expected
    assert rows(read(root, "jump/a,12,0", "jump/b/,9,0", "run/c,10,1")) == expected
    assert rows(read(root, "frame_dir,total_frames,label", "jump/a,12,0", "jump/b,9,0", "run/c,10,1")) == expected
    assert rows(read(root, "jump/a 0", "jump/b 0", "run/c 1")) == expected
    # every number could be a label, but each is the number of the pictures
    assert rows(read(root, "path,frames", "jump/a,12", "jump/b,9")) == [("jump/a", -1), ("jump/b", -1)]
    assert rows(read(root, "jump/a 12 19", "jump/b 9 3")) == [("jump/a", 19), ("jump/b", 3)]
    with pytest.raises(DataError, match=r"list.txt:2: jump/b: has 9 pictures, but the row says 8"):
        read(root, "jump/a 12 0", "jump/b 8 0")


def test_lists_with_offsets_give_the_exact_frames(root):
    table = read(root, "jump/a 0 4 0", "jump/a 7 5 1", "run/c 9 1 2")
    assert rows(table) == [("jump/a#frames=0,4", 0), ("jump/a#frames=7,12", 1), ("run/c#frames=9,10", 2)]
    views = ViewDataset(table, data=DATA, test=TEST)[1]
    np.testing.assert_array_equal(
        views.frames.permute(1, 2, 3, 0).numpy(), moving_frames(12, 32, 64, seed=0)[[7, 8, 9, 10]]
    )
    with pytest.raises(DataError, match=r"list.txt:2: jump/b: has 9 pictures, but the row says 5 and 5"):
        read(root, "jump/a 8 4 0", "jump/b 5 5 0")
    header = "path,offset,frames,label"
    assert rows(read(root, header, "jump/a,2,4,0")) == [("jump/a#frames=2,6", 0)]
    with pytest.raises(DataError, match=rf"list.txt:1: the rows may be .* or `path,start,end,label`; .* {header} or"):
        read(root, "jump/a 2 4 0", "jump/b 3 5 1")


def test_folders_of_classes_and_official_lists(root, tmp_path):
    assert rows(load_records(root)) == [("jump/a", 0), ("jump/b", 0), ("run/c", 1)]
    assert rows(load_records(root / "jump")) == [("a", -1), ("b", -1)]  # no folders of classes
    with pytest.raises(
        DataError, match=r"a has no label, which training needs \(2 of 2 have none\): list path,label or"
    ):
        ClipDataset(load_records(root / "jump"), data=DATA, seed=0)
    write_video(tmp_path / "d.mp4", moving_frames(3))
    write_frames(tmp_path / "d", moving_frames(2))
    assert videos_under(tmp_path) == ["d", "d.mp4"]
    assert videos_under(tmp_path, files_only=True) == ["d.mp4"]
    (tmp_path / "classInd.txt").write_text("1 jump\n2 run\n")
    (tmp_path / "trainlist01.txt").write_text("jump/a.avi 1\nrun/c.avi 2\n")
    assert rows(load_records(tmp_path / "trainlist01.txt", root=root)) == [("jump/a", 0), ("run/c", 1)]
    (tmp_path / "train.json").write_text('[{"id": "a", "template": "Pushing [it]"}, {"id": "b", "template": "x"}]')
    assert [r.path for r in load_records(tmp_path / "train.json", root=root / "jump")] == [
        f"{root}/jump/a",
        f"{root}/jump/b",
    ]


def test_clips_and_views_are_those_of_the_pictures(root):
    table = load_records(root)
    clips = ClipDataset(table, data=DATA, seed=0)
    frames = moving_frames(9, 32, 64, seed=1)
    batch = clips[0, 1]
    assert not batch.failures
    clip = batch.clips[0].permute(1, 2, 3, 0).numpy()  # (T, H, W, C), a crop of 4 frames that follow each other
    places = [(t, x) for t in range(6) for x in range(33) if np.array_equal(frames[t : t + 4, :, x : x + 32], clip)]
    assert len(places) == 1
    timed = ViewDataset(table, data=DataConfig(frames=4, target_fps=30.0), test=TEST)[0]
    assert timed.failure is not None
    assert "data.target_fps needs their rate: set data.frame_rate" in timed.failure.reason
    rated = ViewDataset(table, data=DataConfig(frames=4, stride=1, target_fps=5.0, frame_rate=10.0), test=TEST)[0]
    assert rated.clips.tolist() == [[0, 1, 2, 3]]
    np.testing.assert_allclose(rated.spans.numpy(), [[0.0, 0.8]])  # frames 0, 2, 4 and 7 or so of 10 a second


def test_segments_in_seconds_need_the_rate(root):
    table = read(root, "path,start,end,label", "jump/a,0.5,0.9,0")
    failed = ViewDataset(table, data=DATA, test=TEST)[0].failure
    assert failed is not None
    assert "a segment needs their rate" in failed.reason
    data = DataConfig(frames=4, stride=1, frame_rate=10.0)
    views = ViewDataset(table, data=data, test=TEST)[0]
    np.testing.assert_array_equal(views.frames.permute(1, 2, 3, 0).numpy(), moving_frames(12, 32, 64)[[5, 6, 7, 8]])
