"""Records that are a part of a video: which frames they are, and that clips come from them only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.annotations import load_records
from gcvideo.data.dataset import ClipDataset, ViewDataset, make_views
from gcvideo.data.records import RecordTable, VideoRecord
from gcvideo.data.sampling import Windows, random_clip, sample_rng, uniform_clips
from gcvideo.errors import VideoError
from gcvideo.prepare.index import make_index, write_shards
from gcvideo.prepare.transcode import copy_annotation
from gcvideo.video import open_video
from tests.videos import moving_frames, write_video

RATE = 25.0
TIMES = np.arange(250) / RATE  # 10 s


def frame_range(start: float, end: float, *, times: np.ndarray = TIMES, may_be_cut: bool = False) -> tuple[int, int]:
    return VideoRecord("a.mp4", 0, "a.mp4", start, end, may_be_cut).frame_range(times)


def test_the_frames_of_a_segment_are_those_whose_times_lie_in_it():
    assert VideoRecord("a.mp4", 0, "a").frame_range(TIMES) == (0, 250)
    assert frame_range(2, 4) == (50, 100)
    assert frame_range(2, 4, times=TIMES + 7.3) == (50, 100)  # times count from the first frame
    assert frame_range(0, 10) == (0, 250)
    assert frame_range(9.5, 10.9) == (237 + 1, 250)  # rounded times: up to a second behind the end
    assert frame_range(2.01, 2.02) == (50, 51)  # between two frames: the one that is shown
    assert frame_range(0, 0.5, times=TIMES[:1]) == (0, 1)


@pytest.mark.parametrize(("start", "end"), [(10, 10.5), (9, 11.5), (50, 60)])
def test_a_segment_beyond_the_end_is_named(start, end):
    with pytest.raises(VideoError, match=rf"a.mp4: its segment from {start:g} to {end:g} s lies beyond .*10.00 s"):
        frame_range(start, end)


def test_a_file_named_by_its_youtube_id_is_a_whole_video_or_the_clip_itself():
    whole = np.arange(5000) / RATE
    assert frame_range(40, 50, times=whole, may_be_cut=True) == (1000, 1250)
    assert frame_range(40, 50, may_be_cut=True) == (0, 250)
    with pytest.raises(VideoError, match="beyond"):
        frame_range(190, 200, times=whole[:3000], may_be_cut=True)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> RecordTable:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", moving_frames(50, 48, 64, seed=0))
    segments = np.array([[0.4, 1.2], [np.nan, np.nan], [1.6, 2.0], [90, 99]])
    ids = ["a#1", "a", "a#2", "a#3"]
    return RecordTable(ids=ids, paths=["a.mp4"] * 4, labels=range(4), root=folder, source="made", segments=segments)


FRAMES = {0: (10, 30), 1: (0, 50), 2: (40, 50)}


def test_segments_follow_their_records(records):
    assert [(r.start, r.end) for r in records][:2] == [(0.4, 1.2), (None, None)]
    assert [r.start for r in records.select([2, 0])] == [1.6, 0.4]
    assert records.select([1])[0].start is None


def frames_of(records: RecordTable, indices: np.ndarray) -> torch.Tensor:
    with open_video(Path(records[0].path)) as video:
        return torch.from_numpy(video.frames(indices)).permute(3, 0, 1, 2)


@pytest.mark.parametrize("index", FRAMES)
def test_training_clips_come_from_the_segment(records, index):
    data = DataConfig(frames=4, stride=2, crop=48, short_side=(48, 48), flip=0.0)
    first, end = FRAMES[index]
    for epoch in range(3):
        shown = ClipDataset(records, data=data, seed=0)[epoch, index].clips[0]
        want = frames_of(records, first + random_clip(end - first, 4, 2, sample_rng(0, epoch, index)))
        assert any(torch.equal(shown, want[..., left : left + 48]) for left in range(17))


def test_test_clips_come_from_the_segment_and_one_beyond_the_end_fails(records):
    test = TestConfig(clips=3, crops=1, short_side=48, crop=48)
    dataset = ViewDataset(records, data=DataConfig(frames=4, stride=2), test=test)
    for index, (first, end) in FRAMES.items():
        views = dataset[index]
        want = frames_of(records, first + uniform_clips(end - first, 4, 2, 3).ravel())
        assert torch.equal(views.frames[:, views.clips.ravel()], want)
    failure = dataset[3].failure
    assert failure is not None
    assert "segment from 90 to 99 s lies beyond its end (2.00 s)" in failure.reason


def test_an_index_shards_and_a_list_of_copies_keep_the_segments(records, tmp_path):
    folder = Path(records.root)
    annotation = folder / "list.csv"
    annotation.write_text("path,start,end,label\na.mp4,0.4,1.2,0\na.mp4,,,0\na.mp4,1.6,2,1\n")
    want = load_records(annotation)
    make_index(annotation, tmp_path / "index.parquet", workers=1)
    write_shards(annotation, tmp_path / "shards", workers=1)
    for table in (load_records(tmp_path / "index.parquet"), load_records(tmp_path / "shards")):
        assert table.fingerprint == want.fingerprint
        assert [(r.id, r.start, r.end, r.label) for r in table] == [(r.id, r.start, r.end, r.label) for r in want]
    copy = copy_annotation(annotation, folder, folder)
    assert [(r.id, r.start, r.label) for r in load_records(copy)] == [(r.id, r.start, r.label) for r in want]


@pytest.mark.parametrize("index", FRAMES)
def test_windows_are_views_of_segments(records, index):
    """A window shows the frames that a segment of the same times shows; its span is its own, whatever was sampled."""
    data, test = DataConfig(frames=4, stride=2), TestConfig(clips=2, crops=1, short_side=48, crop=48)
    windows = Windows(0.4, 0.2)
    views = ViewDataset(records, data=data, test=test, windows=windows)[index]
    start, end = (frame / RATE for frame in FRAMES[index])
    spans = windows.cut(start, end, clip=9)
    np.testing.assert_allclose(views.spans, spans.repeat(2, axis=0))
    np.testing.assert_allclose(ViewDataset(records, data=data, test=test, windows=windows).spans(index), spans)
    count = len(spans)
    segments = RecordTable(
        ids=map(str, range(count)), paths=["a.mp4"] * count, labels=[0] * count, root=records.root, segments=spans
    )
    alone = [ViewDataset(segments, data=data, test=test)[i] for i in range(count)]
    assert torch.equal(make_views(views), torch.cat([make_views(one) for one in alone]))


def test_a_clip_knows_its_time(records):
    data, test = DataConfig(frames=4, stride=2), TestConfig(clips=2, crops=1, short_side=48, crop=48)
    views = ViewDataset(records, data=data, test=test)[0]  # frames 10 to 29
    first = uniform_clips(20, 4, 2, 2) + 10
    np.testing.assert_allclose(views.spans, np.stack([first.min(1), first.max(1) + 1], 1) / RATE)
    assert ViewDataset(records, data=data, test=test).spans(3) is None
