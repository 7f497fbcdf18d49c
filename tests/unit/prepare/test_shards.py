"""Tar shards."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from gcvideo.data.annotations import load_records
from gcvideo.errors import ConfigError, DataError
from gcvideo.prepare.index import write_shards
from gcvideo.video import open_video
from gcvideo.video.tar_members import JOURNAL
from tests.videos import moving_frames, write_video

COUNT = 11


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    clip = write_video(folder / "clip.mp4", moving_frames(5)).read_bytes()
    names = [f"a.b {number}.mp4" for number in range(COUNT)]  # a dot within the name must not confuse anyone
    for number, name in enumerate(names):
        (folder / name).write_bytes(clip + bytes(number))  # all different, all readable
    (folder / "list.txt").write_text("".join(f"{name} {number % 4}\n" for number, name in enumerate(names)))
    return folder


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory) -> Path:
    size = (videos / "clip.mp4").stat().st_size
    folder = tmp_path_factory.mktemp("shards")
    made = write_shards(videos / "list.txt", folder, shard_bytes=3 * size + 200, workers=1)
    assert json.loads((folder / "shards.json").read_text()) == made
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int, str]]:
    """Video, label and suffix of every sample by its id, read with tarfile alone."""
    samples = {}
    for shard in json.loads((folder / "shards.json").read_text())["shards"]:
        with tarfile.open(folder / shard["name"]) as tar:
            parts = [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]
            names = tar.getnames()
        assert len(parts) == 3 * shard["samples"]
        for place in range(0, len(parts), 3):
            note = json.loads(parts[place + 2])
            assert note["label"] == int(parts[place + 1])
            stems, suffixes = zip(*(name.split(".", 1) for name in names[place : place + 3]), strict=True)
            assert len(set(stems)) == 1
            assert suffixes[1:] == ("cls", "json")
            samples[note["id"]] = (parts[place], note["label"], suffixes[0])
    return samples


def test_every_video_is_in_exactly_one_shard_untouched(videos, folder):
    manifest = json.loads((folder / "shards.json").read_text())
    assert [shard["samples"] for shard in manifest["shards"]] == [3, 3, 3, 2]
    assert manifest["fingerprint"] == load_records(videos / "list.txt").fingerprint
    samples = contents(folder)
    for record in load_records(videos / "list.txt"):
        assert samples.pop(record.id) == (Path(record.path).read_bytes(), record.label, "mp4")
    assert not samples


def test_records_of_the_shards_are_those_of_the_annotation(videos, folder):
    packed, listed = load_records(folder), load_records(videos / "list.txt")
    assert [(record.id, record.label) for record in packed] == [(record.id, record.label) for record in listed]
    with open_video(packed[0].path) as video:
        assert video.frames(range(5)).shape == (5, 48, 64, 3)


def test_webdataset_reads_the_shards(folder):
    wds = pytest.importorskip("webdataset")
    dataset = wds.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False).decode()
    theirs = {sample["json"]["id"]: (sample["mp4"], sample["cls"], "mp4") for sample in dataset}
    assert theirs == contents(folder)


def test_the_same_videos_give_the_same_bytes_and_finished_shards_are_kept(videos, folder, tmp_path):
    size = (videos / "clip.mp4").stat().st_size
    write_shards(videos / "list.txt", tmp_path / "again", shard_bytes=3 * size + 200, workers=2)
    for path in folder.iterdir():
        if path.name != JOURNAL:
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    lost, *kept = sorted((tmp_path / "again").glob("*.tar"))
    before = lost.read_bytes(), [path.stat().st_mtime_ns for path in kept]
    lost.unlink()
    write_shards(videos / "list.txt", tmp_path / "again", shard_bytes=3 * size + 200, workers=1)
    assert (lost.read_bytes(), [path.stat().st_mtime_ns for path in kept]) == before


def test_a_set_is_not_mixed_with_another(videos, folder):
    with pytest.raises(ConfigError, match="another set of videos, seed or size"):
        write_shards(videos / "list.txt", folder, seed=1)


def test_nor_with_one_of_a_version_that_kept_no_journal(videos, folder, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for path in folder.iterdir():
        if path.name != JOURNAL:
            (old / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="old: holds shards of other videos or settings"):
        write_shards(videos / "list.txt", old, seed=1)


def test_a_damaged_shard_is_written_again(videos, folder, tmp_path):
    size = (videos / "clip.mp4").stat().st_size
    for path in folder.iterdir():
        shutil.copy2(path, tmp_path / path.name)
    damaged = tmp_path / "shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    write_shards(videos / "list.txt", tmp_path, shard_bytes=3 * size + 200, workers=1)
    assert damaged.read_bytes() == (folder / damaged.name).read_bytes()
    assert [path for path, time in times.items() if path.stat().st_mtime_ns != time] == [damaged]


def test_a_folder_of_frames_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16)).save(tmp_path / f"a/{number}.jpg")
    (tmp_path / "list.txt").write_text("a 0\n")
    with pytest.raises(DataError, match="is a folder of frames; shards hold video files"):
        write_shards(tmp_path / "list.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
