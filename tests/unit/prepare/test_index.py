"""The index of a data set."""

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from gcvideo.data.annotations import load_records
from gcvideo.errors import DataError
from gcvideo.files import Journal
from gcvideo.prepare.index import make_index
from gcvideo.prepare.jobs import Part, PartDone, scan
from tests.processes import killed_after_rows
from tests.videos import moving_frames, write_video

IDS = ["-abcdefghij", "_bcdefghijk", "cdefghijklm", "defghijklmn"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving_frames(20), fps=10, gop=8)


@pytest.fixture
def kinetics(tmp_path, clip) -> Path:
    """A copy of Kinetics with every fault at once: one video missing, one damaged, one replaced, one too many."""
    rows = [f'"some class {i % 2}",{name},3,13,train' for i, name in enumerate(IDS)]
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "\n".join(rows) + "\n")
    (tmp_path / "train").mkdir()
    (tmp_path / "replacement").mkdir()
    shutil.copy(clip, tmp_path / "train" / f"{IDS[0]}_000003_000013.mp4")
    (tmp_path / "train" / f"{IDS[1]}_000003_000013.mp4").write_bytes(clip.read_bytes()[:100])
    shutil.copy(clip, tmp_path / "train" / f"{IDS[2]}_000003_000013.mp4")
    shutil.copy(clip, tmp_path / "replacement" / f"{IDS[2]}.mp4")
    shutil.copy(clip, tmp_path / "train" / "zzzzzzzzzzz_000000_000010.mp4")
    return tmp_path


def test_index_says_what_each_video_is(kinetics, clip):
    index = make_index(kinetics / "train.csv", kinetics / "train.parquet", workers=1)
    rows = {row["id"]: row for row in index.to_pylist()}
    assert rows[f"{IDS[0]}_000003_000013"] == {
        "id": f"{IDS[0]}_000003_000013",
        "path": f"train/{IDS[0]}_000003_000013.mp4",
        "label": 0,
        "start": None,
        "end": None,
        "frames": 20,
        "fps": 10.0,
        "duration": 2.0,
        "width": 64,
        "height": 48,
        "codec": "h264",
        "gop": 8,
        "backend": "decord",
        "bytes": clip.stat().st_size,
        "hash": hashlib.sha256(clip.read_bytes()).hexdigest(),
        "error": None,
    }
    damaged = rows[f"{IDS[1]}_000003_000013"]
    assert damaged["error"]
    assert damaged["frames"] is None
    assert damaged["bytes"] == 100


def test_index_lists_missing_and_unreadable(kinetics):
    index = make_index(kinetics / "train.csv", kinetics / "train.parquet", workers=1)
    assert json.loads(index.schema.metadata[b"missing"]) == [f"{IDS[3]}_000003_000013"]
    assert [row["path"] for row in index.to_pylist() if row["error"]] == [f"train/{IDS[1]}_000003_000013.mp4"]


def test_records_of_the_index_equal_those_of_the_annotation(kinetics):
    path = kinetics / "elsewhere" / "train.parquet"
    index = make_index(kinetics / "train.csv", path, workers=1)
    direct, indexed = load_records(kinetics / "train.csv"), load_records(path)
    assert [(r.id, r.label, os.path.realpath(r.path)) for r in indexed] == [
        (r.id, r.label, os.path.realpath(r.path)) for r in direct
    ]
    assert (indexed.classes, indexed.missing) == (direct.classes, direct.missing)
    assert indexed.fingerprint == direct.fingerprint == json.loads(index.schema.metadata[b"fingerprint"])


def test_index_can_be_read_with_another_root(kinetics):
    make_index(kinetics / "train.csv", kinetics / "train.parquet", workers=1)
    moved = kinetics / "moved"
    shutil.copytree(kinetics / "train", moved / "train")
    assert load_records(kinetics / "train.parquet", root=moved)[0].path.startswith(str(moved))


def test_path_lists_and_class_folders_are_indexed_too(tmp_path, clip):
    for name in ('say "hi"', "-büße"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        shutil.copy(clip, tmp_path / "videos" / name / "a b.mp4")
    make_index(tmp_path / "videos", tmp_path / "folders.parquet", workers=1)
    assert load_records(tmp_path / "folders.parquet").classes == ("-büße", 'say "hi"')
    (tmp_path / "list.txt").write_text("videos/-büße/a b.mp4 7\n")
    make_index(tmp_path / "list.txt", tmp_path / "list.parquet", workers=1)
    assert [record.label for record in load_records(tmp_path / "list.parquet")] == [7]


def test_an_index_must_be_called_parquet(kinetics):
    with pytest.raises(DataError, match=r"ends in \.parquet"):
        make_index(kinetics / "train.csv", kinetics / "train.idx")


def count_and_name(path: str) -> dict:
    with open(f"{path}.seen", "a") as file:
        file.write("x")
    return {"name": os.path.basename(path)}


def test_scan_goes_on_from_its_journal_and_repeats_only_what_changed(tmp_path):
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_text("old")
    journal = tmp_path / "journal"
    scan(count_and_name, paths[:2], journal=Journal(journal, {"format": 1}), title="first", workers=1)
    with journal.open("a") as file:
        file.write('\n{"path": "torn')  # as a kill in the middle of a write leaves it
    Path(paths[1]).write_text("newer")
    for again in range(2):
        rows = scan(count_and_name, paths, journal=Journal(journal, {"format": 1}), title="second", workers=1)
        assert list(rows) == paths, again
        assert rows[paths[0]] == {"name": "a"}
    assert [Path(f"{path}.seen").read_text() for path in paths] == ["x", "xx", "x"]


@pytest.mark.slow
def test_index_survives_a_kill(kinetics):
    """A run killed with SIGKILL in its middle leaves a journal, no index; the next one ends with the right index."""
    out = kinetics / "train.parquet"
    killed_after_rows(1, partial(make_index, kinetics / "train.csv", out, workers=1), kinetics / "said.txt")
    assert not out.exists()
    journal = Path(f"{out}.partial")
    assert len([line for line in journal.read_text().splitlines() if '"row"' in line]) == 1
    assert make_index(kinetics / "train.csv", out, workers=1).num_rows == 3
    assert not journal.exists()


def test_parts_of_an_index_put_together_are_one_run(kinetics):
    whole = make_index(kinetics / "train.csv", kinetics / "whole.parquet", workers=1)
    for number in (1, 2):
        with pytest.raises(PartDone):
            make_index(kinetics / "train.csv", kinetics / "parts.parquet", workers=1, part=Part(number, 2))
    parts = make_index(kinetics / "train.csv", kinetics / "parts.parquet", workers=1)
    assert parts.equals(whole, check_metadata=True)
    assert (kinetics / "parts.parquet").read_bytes() == (kinetics / "whole.parquet").read_bytes()
