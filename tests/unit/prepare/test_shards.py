"""Tar shards: written once, read as streams."""

import io
import tarfile
from pathlib import Path

import pytest

from gcvideo.data.annotations import load_records
from gcvideo.errors import DataError
from gcvideo.prepare.shards import as_path, open_shards, read_shards, write_shards
from gcvideo.video import open_video
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
    folder = tmp_path_factory.mktemp("shards")
    size = (videos / "clip.mp4").stat().st_size
    write_shards(videos / "list.txt", folder, shard_bytes=3 * size + 200, workers=1)
    return folder


class Pipe(io.RawIOBase):
    """A file that can only be read forwards, as a download is."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "rb")  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def close(self) -> None:
        self.file.close()
        super().close()


def ids(samples) -> list[str]:
    return [sample.id for sample in samples]


def test_every_video_is_in_exactly_one_shard_untouched(videos, folder):
    shards = open_shards(folder)
    assert shards.counts == (3, 3, 3, 2)
    assert shards.fingerprint == load_records(videos / "list.txt").fingerprint
    samples = {sample.id: sample for sample in read_shards(shards)}
    for record in load_records(videos / "list.txt"):
        sample = samples.pop(record.id)
        assert (sample.video, sample.label, sample.suffix) == (Path(record.path).read_bytes(), record.label, ".mp4")
    assert not samples


def test_videos_are_decoded_from_memory(folder):
    sample = next(read_shards(open_shards(folder)))
    with as_path(sample.video) as path, open_video(path) as video:
        assert video.frames(range(5)).shape == (5, 48, 64, 3)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_get_equal_shares_without_overlap(folder, world_size):
    shards = open_shards(folder)
    shares = [ids(read_shards(shards, epoch=1, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {COUNT // world_size}
    together = [id_ for share in shares for id_ in share]
    assert len(set(together)) == len(together)
    assert together == ids(read_shards(shards, epoch=1))[: len(together)]


def test_epochs_differ_and_repeat(folder):
    shards = open_shards(folder)
    orders = [tuple(ids(read_shards(shards, seed=1, epoch=epoch))) for epoch in range(4)]
    assert len(set(orders)) > 1
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert tuple(ids(read_shards(shards, seed=1, epoch=2))) == orders[2]


@pytest.mark.parametrize("opener", [None, Pipe], ids=["local", "stream"])
def test_reading_resumes_at_any_sample(folder, opener):
    shards = open_shards(folder)
    whole = ids(read_shards(shards, epoch=3, rank=1, world_size=2, open_file=opener))
    for start in range(len(whole) + 1):
        rest = ids(read_shards(shards, epoch=3, rank=1, world_size=2, start=start, open_file=opener))
        assert rest == whole[start:]


def test_only_the_shards_of_the_share_are_opened(folder):
    opened = []

    def open_file(path):
        opened.append(path)
        return open(path, "rb")

    shards = open_shards(folder)
    list(read_shards(shards, rank=3, world_size=4, open_file=open_file))
    assert len(opened) <= 2


def test_webdataset_reads_the_shards(videos, folder):
    wds = pytest.importorskip("webdataset")
    shards = open_shards(folder)
    dataset = wds.WebDataset([str(folder / name) for name in shards.names], shardshuffle=False).decode()
    theirs = {sample["json"]["id"]: (sample["cls"], sample["mp4"]) for sample in dataset}
    assert theirs == {sample.id: (sample.label, sample.video) for sample in read_shards(shards)}


def test_the_same_videos_give_the_same_bytes_and_finished_shards_are_kept(videos, folder, tmp_path):
    size = (videos / "clip.mp4").stat().st_size
    write_shards(videos / "list.txt", tmp_path / "again", shard_bytes=3 * size + 200, workers=2)
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    lost, *kept = sorted((tmp_path / "again").glob("*.tar"))
    before = lost.read_bytes(), [path.stat().st_mtime_ns for path in kept]
    lost.unlink()
    write_shards(videos / "list.txt", tmp_path / "again", shard_bytes=3 * size + 200, workers=1)
    assert (lost.read_bytes(), [path.stat().st_mtime_ns for path in kept]) == before


def test_a_set_is_not_mixed_with_another(videos, folder):
    with pytest.raises(DataError, match="other videos or settings"):
        write_shards(videos / "list.txt", folder, seed=1)


def test_an_unfinished_set_is_not_read(folder, tmp_path):
    with pytest.raises(DataError, match="no complete set of shards"):
        open_shards(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "short", "garbage"])
def test_damaged_shards_are_reported(folder, tmp_path, damage):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-000001.tar"
    content = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(content[: len(content) // 2 + 1000])
    elif damage == "garbage":
        shard.write_bytes(b"x" * len(content))
    else:
        with tarfile.open(shard, "w"):
            pass
    with pytest.raises(DataError, match=r"shard-000001\.tar"):
        list(read_shards(open_shards(tmp_path)))
