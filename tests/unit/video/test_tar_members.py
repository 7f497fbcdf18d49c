"""Videos inside tar shards, read as files are."""

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.annotations import load_records
from gcvideo.data.dataset import ClipDataset, ViewDataset
from gcvideo.data.loader import eval_loader, train_loader
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError, VideoError
from gcvideo.prepare.index import make_index, write_shards
from gcvideo.prepare.verify import verify
from gcvideo.video import open_video
from gcvideo.video.tar_members import INDEX, MANIFEST, Member, parse_member
from tests.videos import moving_frames, write_video

DATA = DataConfig(frames=4, stride=2, crop=32, short_side=(32, 40), workers=0)
TEST = TestConfig(clips=2, crops=3, short_side=36, crop=32)
COUNT = 9


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Of all kinds: for decord, for PyAV through a demuxer, counted by decoding, and no video at all."""
    folder = tmp_path_factory.mktemp("videos")
    kinds = [("libx264", ".mp4"), ("libvpx-vp9", ".webm"), ("mpeg4", ".avi"), ("libx264", ".MP4")]
    names = []
    for number in range(COUNT - 1):
        codec, suffix = kinds[number % len(kinds)]
        names.append(f"a b#{number}{suffix}")
        write_video(folder / names[-1], moving_frames(12, seed=number), codec=codec)
    names.insert(4, "broken.mp4")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "list.txt").write_text("".join(f"{name}\t{'jump' if i % 3 else 'run'}\n" for i, name in enumerate(names)))
    return folder


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    shards = write_shards(videos / "list.txt", folder, shard_bytes=30_000, workers=1)
    assert 2 < len(shards["shards"]) < COUNT
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "moved shards"))


def batches(records: RecordTable, quarantine: Path | None = None, **options) -> list:
    found = []
    for epoch in range(2):
        dataset = ClipDataset(records, data=DATA, seed=3, quarantine=quarantine)
        found += list(train_loader(dataset, batch_size=2, seed=3, epoch=epoch, **options))
    return found


@pytest.mark.parametrize("name", [".", MANIFEST, INDEX])
def test_a_folder_of_shards_has_the_records_of_its_annotation(videos, folder, name):
    files, members = load_records(videos / "list.txt"), load_records(folder / name)
    assert [(record.id, record.label) for record in members] == [(record.id, record.label) for record in files]
    assert (members.classes, members.fingerprint) == (("jump", "run"), files.fingerprint)
    for record, original in zip(members, files, strict=True):
        member = parse_member(record.path)
        content = Path(member.shard).read_bytes()[member.offset : member.offset + member.size]
        assert content == Path(original.path).read_bytes()


def test_ids_that_are_missing_stay_missing(videos, tmp_path):
    (tmp_path / "videos").mkdir()
    shutil.copy(videos / "a b#0.mp4", tmp_path / "videos" / "abcdefghijk_000001_000011.mp4")
    rows = ["label,youtube_id,time_start,time_end,split", "run,abcdefghijk,1,11,train", "jump,bcdefghijkl,1,11,train"]
    (tmp_path / "k.csv").write_text("\n".join(rows))
    write_shards(tmp_path / "k.csv", tmp_path / "shards", root=tmp_path / "videos", workers=1)
    records = load_records(tmp_path / "shards")
    assert (records.missing, records.classes) == (("bcdefghijkl_000001_000011",), ("jump", "run"))


def test_frames_and_errors_are_those_of_the_files(videos, folder):
    for member, file in zip(load_records(folder), load_records(videos / "list.txt"), strict=True):
        if file.id == "broken.mp4":
            errors = []
            for path in (member.path, file.path):
                with pytest.raises(VideoError) as caught:
                    open_video(path)
                errors.append((caught.value.path == path, caught.value.reason))
            assert errors[0] == errors[1] == (True, errors[1][1])
            continue
        with open_video(member.path) as one, open_video(file.path) as other:
            assert one.path == member.path
            assert (one.backend, one.codec, one.fps) == (other.backend, other.codec, other.fps)
            assert np.array_equal(one.times, other.times)
            assert np.array_equal(one.frames([11, 0, 5]), other.frames([11, 0, 5]))


@pytest.mark.parametrize(
    "options",
    [{}, {"workers": 2}, {"start_step": 2}, {"rank": 1, "world_size": 2}],
    ids=["in this process", "by workers", "resumed", "second of two processes"],
)
def test_training_batches_are_bit_identical_to_those_of_the_files(videos, folder, tmp_path, options):
    files = batches(load_records(videos / "list.txt"), tmp_path / "files.jsonl", **options)
    members = batches(load_records(folder), tmp_path / "members.jsonl", **options)
    assert len(files) == len(members) > 2
    for one, other in zip(files, members, strict=True):
        assert torch.equal(one.clips, other.clips)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
        assert [(f.id, f.reason) for f in one.failures] == [(f.id, f.reason) for f in other.failures]
    if not options:
        assert any(batch.failures for batch in members)
        assert '"id": "broken.mp4"' in (tmp_path / "members.jsonl").read_text()


def test_test_views_are_bit_identical_to_those_of_the_files(videos, folder):
    tables = load_records(videos / "list.txt"), load_records(folder)
    files, members = (list(eval_loader(ViewDataset(table, data=DATA, test=TEST))) for table in tables)
    assert [views.id for views in files] == [views.id for views in members]
    assert all(torch.equal(one.frames, other.frames) for one, other in zip(files, members, strict=True))
    assert [views.id for views in members if views.failure] == ["broken.mp4"]


def test_shards_may_be_moved_and_the_index_kept_elsewhere(folder, copy, tmp_path):
    expected = [os.path.relpath(record.path, folder) for record in load_records(folder)]
    assert [os.path.relpath(record.path, copy) for record in load_records(copy)] == expected
    shutil.move(copy / INDEX, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"shard-000000\.tar: expected a file of .* or give their folder as root"):
        load_records(tmp_path / "train.parquet")
    elsewhere = load_records(tmp_path / "train.parquet", root=copy)
    assert [os.path.relpath(record.path, copy) for record in elsewhere] == expected


def test_a_shard_that_is_cut_short_or_missing_is_one_error_at_once(copy):
    shard = copy / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"shard-000001\.tar: expected a file of [\d,]+ bytes; copy the shards"):
        load_records(copy)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: expected a file"):
        load_records(copy)


def test_sets_that_are_not_whole_say_what_to_do(videos, copy):
    index = (copy / INDEX).read_bytes()
    (copy / INDEX).unlink()
    with pytest.raises(DataError, match="not all shards are there yet; run the same"):
        load_records(copy)
    write_shards(videos / "list.txt", copy, shard_bytes=30_000, workers=1)
    assert (copy / INDEX).read_bytes() == index
    (copy / INDEX).unlink()
    (copy / MANIFEST).unlink()
    with pytest.raises(DataError, match="not all shards are there yet; run the same"):
        load_records(copy)


def test_a_video_that_is_not_where_the_index_says_is_never_taken_for_another(folder, copy):
    records = load_records(copy)
    member = parse_member(records[0].path)
    for wrong in (
        member._replace(offset=member.offset + 512),
        member._replace(offset=100),
        member._replace(size=member.size - 1),
        member._replace(name="00000099.mp4"),
        member._replace(offset=1 << 50),
        member._replace(shard=str(copy / "none.tar")),
        member._replace(shard=str(copy)),
    ):
        with pytest.raises(
            VideoError, match=r"not at this place|beyond the end|cannot be opened|cannot be read"
        ) as caught:
            open_video(wrong.path)
        assert caught.value.path == wrong.path


def test_a_damaged_shard_costs_its_videos_and_not_the_run(copy):
    shard = copy / "shard-000001.tar"
    shard.write_bytes(b"x" * shard.stat().st_size)
    records = load_records(copy)
    lost = {record.id for record in records if parse_member(record.path).shard == str(shard)}
    failures = {failure.id: failure for batch in batches(records) for failure in batch.failures}
    assert lost
    assert failures.keys() == lost | {"broken.mp4"}
    assert all("not at this place" in failures[id_].reason for id_ in lost - {"broken.mp4"})


def test_a_file_of_such_a_name_is_a_file(videos, tmp_path):
    path = tmp_path / "shard.tar#512+15" / "video.mp4"
    path.parent.mkdir()
    shutil.copy(videos / "a b#0.mp4", path)
    assert parse_member(str(path)) is None
    with open_video(path) as video:
        assert len(video) == 12
    with pytest.raises(VideoError, match="its shard cannot be read"):
        open_video(Member(str(tmp_path / "none.tar"), 512, 15, "video.mp4").path)


def test_shards_are_verified_and_indexed_as_files_are(videos, folder, tmp_path):
    result = verify([folder], tmp_path / "bad.jsonl", workers=1)
    assert (result.videos, result.frames) == (COUNT, 12 * (COUNT - 1))
    assert [finding.id for finding in result.problems] == ["broken.mp4"]
    tables = [
        make_index(annotation, tmp_path / f"{name}.parquet", workers=1).drop_columns("path")
        for name, annotation in (("files", videos / "list.txt"), ("members", folder))
    ]
    assert tables[0].to_pylist() == tables[1].to_pylist()
    records = load_records(tmp_path / "members.parquet")
    assert [os.path.realpath(record.path) for record in records] == [record.path for record in load_records(folder)]
    assert pq.read_schema(tmp_path / "members.parquet").metadata[b"missing"] == b"[]"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("let_go", ["closed", "dropped"])
def test_nothing_stays_open(videos, folder, let_go):
    tables = load_records(videos / "list.txt"), load_records(folder)
    names = [record.path for table in tables for record in table]

    def open_all(times: int) -> None:
        for name in names * times:
            try:
                video = open_video(name)
                video.frames([0])
                if let_go == "closed":
                    video.close()
                del video
            except VideoError:
                pass

    open_all(1)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    open_all(2)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
