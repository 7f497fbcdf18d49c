"""Samples and views from real files, and what happens to bad ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data import dataset as dataset_module
from gcvideo.data.bad_videos import Quarantine
from gcvideo.data.crops import crop_and_resize, crop_boxes, random_short_side_box, resize_short_side
from gcvideo.data.dataset import ClipDataset, ViewDataset, make_views
from gcvideo.data.records import Failure, RecordTable
from gcvideo.data.sampling import random_clip, sample_rng, uniform_clips
from gcvideo.errors import ConfigError, DamagedVideoError, DataError, VideoError
from gcvideo.video import open_video
from tests.videos import moving_frames, write_video

DATA = DataConfig(frames=4, stride=2, crop=32, short_side=(32, 40))
TEST = TestConfig(clips=3, crops=3, short_side=32, crop=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos 0 to 5: landscape, portrait, one frame, three frames, 0 bytes, not a video."""
    folder = tmp_path_factory.mktemp("videos")
    sizes = [(20, 48, 64), (20, 64, 48), (1, 48, 64), (3, 48, 64)]
    for number, size in enumerate(sizes):
        write_video(folder / f"{number}.mp4", moving_frames(*size, seed=number))
    (folder / "4.mp4").write_bytes(b"")
    (folder / "5.mp4").write_bytes(b"this is no video" * 100)
    return folder


def table(folder: Path, *numbers: int) -> RecordTable:
    names = [f"{number}.mp4" for number in numbers]
    return RecordTable(ids=names, paths=names, labels=[10 + n for n in numbers], root=folder, source="made.txt")


def test_sample_is_the_documented_function_of_seed_epoch_and_index(folder):
    records = table(folder, 0, 1)
    sample = ClipDataset(records, data=DATA, seed=5)[3, 1]
    rng = sample_rng(5, 3, 1)
    with open_video(records[1].path) as video:
        frames = video.frames(random_clip(len(video), 4, 2, rng))
    box = random_short_side_box(*frames.shape[1:3], short_side=(32, 40), crop=32, rng=rng)
    want = crop_and_resize(frames, box, (32, 32), flip=rng.random() < 0.5)
    assert torch.equal(sample.clips[0], want)
    assert sample.clips[0].shape == (3, 4, 32, 32)
    assert (sample.labels.tolist(), sample.indices.tolist(), sample.failures) == ([11], [1], [])
    assert torch.equal(ClipDataset(records, data=DATA, seed=5)[3, 1].clips[0], sample.clips[0])
    assert not torch.equal(ClipDataset(records, data=DATA, seed=5)[4, 1].clips[0], sample.clips[0])
    assert not torch.equal(ClipDataset(records, data=DATA, seed=6)[3, 1].clips[0], sample.clips[0])


@pytest.mark.parametrize(
    ("switches", "options"),
    [
        ({"convention": "mmaction2"}, {"convention": "mmaction2"}),
        ({"target_fps": 12.5}, {"speed": 2.0}),  # of videos with 25 frames a second
    ],
    ids=["convention", "target_fps"],
)
def test_training_clips_are_spaced_as_the_config_says(folder, switches, options):
    data = dataclasses.replace(DATA, crop=48, short_side=(48, 48), flip=0.0, **switches)
    dataset = ClipDataset(table(folder, 0), data=data, seed=0)
    for epoch in range(3):
        with open_video(folder / "0.mp4") as video:
            frames = video.frames(random_clip(20, 4, 2, sample_rng(0, epoch, 0), **options))
        shown = dataset[epoch, 0].clips[0]  # (3, 4, 48, 48), the whole height at some place
        places = [torch.from_numpy(frames[:, :, left : left + 48]).permute(3, 0, 1, 2) for left in range(17)]
        assert any(torch.equal(shown, place) for place in places)


def test_flip_happens_as_often_as_asked(folder):
    records = table(folder, 0)
    still = {"frames": 1, "crop": 48, "short_side": (48, 48)}
    never = ClipDataset(records, data=DataConfig(**still, flip=0.0), seed=0)
    always = ClipDataset(records, data=DataConfig(**still, flip=1.0), seed=0)
    for index in range(3):
        assert torch.equal(never[index, 0].clips[0].flip(-1), always[index, 0].clips[0])


@pytest.mark.parametrize("number", [2, 3])
def test_short_videos_give_full_clips(folder, number):
    assert ClipDataset(table(folder, number), data=DATA, seed=0)[0, 0].clips[0].shape == (3, 4, 32, 32)
    views = ViewDataset(table(folder, number), data=DATA, test=TEST)[0]
    assert views.failure is None
    assert make_views(views).shape == (9, 3, 4, 32, 32)
    assert views.frames.shape[1] <= 3


def test_bad_video_is_replaced_by_the_next_good_record_and_named(folder):
    records = table(folder, 0, 4, 5, 1)
    dataset = ClipDataset(records, data=DATA, seed=0)
    sample = dataset[0, 1]
    assert (sample.indices.item(), sample.labels.item()) == (3, 11)
    assert [failure.id for failure in sample.failures] == ["4.mp4", "5.mp4"]
    assert sample.failures[0].path == str(folder / "4.mp4")
    assert "is empty" in sample.failures[0].reason
    # Cut with the randomness of the slot, not with that of the record that fills it.
    rng = sample_rng(0, 0, 1)
    with open_video(records[3].path) as video:
        frames = video.frames(random_clip(len(video), 4, 2, rng))
    box = random_short_side_box(*frames.shape[1:3], short_side=(32, 40), crop=32, rng=rng)
    assert torch.equal(sample.clips[0], crop_and_resize(frames, box, (32, 32), flip=rng.random() < 0.5))
    assert sample.clips.is_contiguous(memory_format=torch.channels_last_3d)  # no network has to rearrange it


def test_the_last_record_is_followed_by_the_first(folder):
    sample = ClipDataset(table(folder, 0, 1, 4), data=DATA, seed=0)[0, 2]
    assert (sample.indices.item(), len(sample.failures)) == (0, 1)


def test_quarantine_file_grows_and_is_honoured_with_the_same_samples(folder, tmp_path):
    records = table(folder, 0, 4, 1)
    path = tmp_path / "run" / "quarantine.jsonl"
    dataset = ClipDataset(records, data=DATA, seed=0, quarantine=path)
    sample = dataset[1, 1]
    assert not path.exists()  # the loader writes it, in the main process
    for _ in range(2):
        dataset.quarantine.add(sample.failures[0], from_epoch=1)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert entries == [{**sample.failures[0]._asdict(), "from_epoch": 1}]
    again = ClipDataset(records, data=DATA, seed=0, quarantine=path)
    again.quarantine.share()
    (folder / "4.mp4").rename(folder / "gone.mp4")  # quarantined videos are not even looked at
    try:
        resumed, earlier = again[1, 1], again[0, 1]
    finally:
        (folder / "gone.mp4").rename(folder / "4.mp4")
    assert torch.equal(resumed.clips, sample.clips)
    assert resumed.failures == sample.failures
    assert "not exist" in earlier.failures[0].reason  # the epoch before it was found is not changed afterwards


def test_quarantine_files_of_other_processes_and_tools(folder, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(table(folder, 0, 4, 1), path)
    path.write_text('{"id": "4.mp4", "path": "x", "reason": "y", "from_epoch": 3}\n{"id": "1.mp')
    quarantine.share()  # a last line that is cut short is left out
    assert [quarantine.is_bad(1, epoch) for epoch in (2, 3, 4)] == [False, True, True]
    assert not quarantine.is_bad(2, 9)
    quarantine.add(Failure("0.mp4", "x", "w"), from_epoch=2)  # takes the place of that line
    quarantine.share()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["4.mp4", "0.mp4"]
    path.write_text(
        '{"id": "1.mp4", "path": "x", "reason": "z"}\n{"id": "elsewhere.mp4", "path": "x", "reason": "z"}\n'
    )
    quarantine.share()
    assert quarantine.is_bad(2, 0)  # lists of `prepare verify` name no epoch
    path.write_text('nonsense\n{"id": "4.mp4", "path": "x", "reason": "y"}\n')
    with pytest.raises(DataError, match=r"quarantine.jsonl:1: expected a JSON object with id"):
        quarantine.share()


def test_each_video_gets_a_second_chance_on_the_other_backend(folder, monkeypatch):
    asked = []

    def only_pyav(path, *, backend, **_):
        asked.append(backend)
        if backend != "pyav":
            raise VideoError(path, "decord is out")
        return open_video(path, backend="pyav")

    monkeypatch.setattr(dataset_module, "open_video", only_pyav)
    sample = ClipDataset(table(folder, 0), data=DATA, seed=0)[0, 0]
    assert (asked, sample.failures) == (["auto", "pyav"], [])
    asked.clear()
    dataset = ClipDataset(table(folder, 4, 0), data=DataConfig(backend="pyav", crop=32, short_side=(32, 32)), seed=0)
    assert dataset[0, 0].indices.item() == 1
    assert asked == ["pyav", "decord", "pyav"]


def test_a_decoder_that_hides_damage_is_not_asked_after_one_that_tells(folder, monkeypatch):
    asked = []

    def damaged(path, *, backend, **_):
        asked.append(backend)
        raise DamagedVideoError(path, "a picture is damaged")

    monkeypatch.setattr(dataset_module, "open_video", damaged)
    data = DataConfig(backend="pyav", crop=32, short_side=(32, 32))
    views = ViewDataset(table(folder, 0), data=data, test=TestConfig(clips=1, crops=1, short_side=32, crop=32))[0]
    assert views.failure.reason == "a picture is damaged"
    assert asked == ["pyav"]


def test_a_decoder_that_is_not_installed_is_said_at_once(folder, monkeypatch):
    monkeypatch.setattr(dataset_module, "why_missing", lambda name: f"{name} is not installed")
    with pytest.raises(ConfigError, match=r"data\.backend: decord is not installed"):
        ClipDataset(table(folder, 4, 0), data=DataConfig(backend="decord"), seed=0)


def test_a_record_that_killed_a_process_is_read_by_the_other_backend_only(folder, monkeypatch):
    asked = []

    def watched(path, *, backend, **_):
        asked.append(backend)
        return open_video(path, backend="pyav")

    monkeypatch.setattr(dataset_module, "open_video", watched)
    dataset = ClipDataset(table(folder, 0, 1), data=DATA, seed=0)
    dataset.quarantine.strike(0, "the decoder died")
    assert [dataset.quarantine.is_suspect(index, 0) for index in (0, 1)] == [True, False]
    assert dataset[0, 0].indices.item() == 0
    assert asked == ["pyav"]
    dataset.quarantine.strike(0, "the decoder died again")
    sample = dataset[0, 0]
    assert (sample.indices.item(), sample.failures[0].reason) == (1, "the decoder died again")


def test_nothing_readable_is_an_error_and_not_an_endless_search(folder):
    with pytest.raises(DataError, match=r"made.txt: no video can be read, .*4.mp4: .*is empty"):
        ClipDataset(table(folder, 4, 5), data=DATA, seed=0)[0, 0]


def test_training_needs_labels(folder):
    records = RecordTable(ids=["0.mp4"], paths=["0.mp4"], labels=[-1], root=folder, source="test.csv")
    with pytest.raises(DataError, match=r"test.csv: 0.mp4 has no label, which training needs \(1 of 1 have none\)"):
        ClipDataset(records, data=DATA, seed=0)


@pytest.mark.parametrize("convention", ["pyslowfast", "mmaction2"])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_views_are_slices_of_frames_decoded_once(folder, number, convention):
    records = table(folder, number)
    test = TestConfig(clips=3, crops=3, short_side=38, crop=32, convention=convention)  # 38 x 50 or 51
    views = ViewDataset(records, data=DATA, test=test)[0]
    with open_video(records[0].path) as video:
        clips = uniform_clips(len(video), 4, 2, 3, convention)
        assert views.frames.shape[1] == len(np.unique(clips))
        whole = resize_short_side(video.frames(clips.ravel()), 38, convention)  # (C, clips * T, H, W)
    want = []
    for clip in range(3):
        frames = whole[:, clip * 4 : clip * 4 + 4]
        for top, left, height, width in crop_boxes(*whole.shape[2:], 32, 3, convention).tolist():
            want.append(frames[:, :, top : top + height, left : left + width])
    assert torch.equal(make_views(views), torch.stack(want))
    assert (views.label, views.index, views.id, views.failure) == (10 + number, 0, f"{number}.mp4", None)


def test_frames_too_large_for_memory_are_shrunk_in_portions(folder, monkeypatch):
    whole = ViewDataset(table(folder, 0), data=DATA, test=TEST)[0]
    monkeypatch.setattr(dataset_module, "MAX_DECODED_BYTES", 3 * 48 * 64 * 3)
    assert torch.equal(ViewDataset(table(folder, 0), data=DATA, test=TEST)[0].frames, whole.frames)


def test_whole_frame_views(folder):
    test = TestConfig(clips=2, crops=3, short_side=32, crop=32, whole_frame=True)
    views = ViewDataset(table(folder, 0), data=DATA, test=test)[0]
    assert make_views(views).shape == (2, 3, 4, 32, 42)


def test_testing_reports_and_never_replaces(folder):
    views = ViewDataset(table(folder, 0, 5), data=DATA, test=TEST)[1]
    assert views.failure is not None
    assert (views.failure.id, views.id, views.index, views.label) == ("5.mp4", "5.mp4", 1, 15)
    assert views.frames.numel() == 0
    assert len(views.clips) == 0


def test_strides_stretch_with_the_frame_rate(folder, tmp_path):
    write_video(tmp_path / "0.mp4", moving_frames(40), fps=50)
    data = DataConfig(frames=4, stride=2, crop=32, short_side=(32, 32), target_fps=25)
    with open_video(tmp_path / "0.mp4") as video:
        clips = uniform_clips(len(video), 4, 2, 3, speed=2.0)
        want = video.frames(np.unique(clips))
    views = ViewDataset(table(tmp_path, 0), data=data, test=TestConfig(clips=3, crops=1, short_side=48, crop=32))[0]
    assert np.array_equal(views.frames.permute(1, 2, 3, 0).numpy(), want)
