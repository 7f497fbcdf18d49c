"""The loader benchmark: all ways of reading give the same pictures, and the ratios are complete."""

import json
import os

import numpy as np
import pytest
import torch

from gcvideo.benchmark import loader as loader_benchmark
from gcvideo.benchmark import peers
from gcvideo.benchmark.loader import our_clip, our_views, ratios_of
from gcvideo.benchmark.peers import Clip, Views
from gcvideo.cli import main
from tests.videos import moving_frames, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos of 70 frames, and copies with short groups of pictures."""
    folder = tmp_path_factory.mktemp("benchmark")
    for kind, gop in (("old", 250), ("new", 10)):
        (folder / kind / "deep").mkdir(parents=True)
        write_video(folder / kind / "a.mp4", moving_frames(70, 96, 128), fps=30, gop=gop)
        write_video(folder / kind / "deep" / "b.mp4", moving_frames(70, 96, 128, seed=1), fps=30, gop=gop)
    return folder


@pytest.fixture
def clip(folder):
    return Clip(str(folder / "old" / "a.mp4"), 3 + 8 * np.arange(8), 30.0, 96, (4, 20, 80, 80), 56, True)


@pytest.fixture
def all_cores():
    """The benchmark keeps its process on one core; the tests after it may use all."""
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


def test_all_ways_read_the_same_training_clip(clip):
    ours = our_clip(clip)
    assert ours.shape == (3, 8, 56, 56)
    for backend in ("decord", "pyav"):
        assert torch.equal(our_clip(clip, backend=backend), ours)
    assert torch.equal(peers.libav_clip(clip), ours)
    assert torch.equal(peers.decord_clip(clip), ours)
    mmaction2 = torch.from_numpy(peers.mmaction2_clip(clip))[0]
    assert mmaction2.shape == ours.shape
    assert (mmaction2.float() - ours.float()).abs().mean() < 25  # it scales twice, without antialiasing
    pytorchvideo = peers.pytorchvideo_clip(clip) * peers.STD + peers.MEAN
    assert pytorchvideo.shape == ours.shape
    first = pytorchvideo[:, 0] * 255 - ours[:, 0].float()  # later frames lie 9 apart there, 8 here
    assert first.abs().mean() < 15


def test_all_ways_read_the_same_views(folder, monkeypatch):
    monkeypatch.setattr(loader_benchmark.TEST, "clips", 3)
    monkeypatch.setattr(loader_benchmark.TEST, "short_side", 96)
    monkeypatch.setattr(loader_benchmark.TEST, "crop", 96)
    video = peers.all_views(str(folder / "old" / "a.mp4"), loader_benchmark.TEST)
    assert video == Views(str(folder / "old" / "a.mp4"), 70, 30.0, loader_benchmark.TEST)
    ours = our_views(video)
    assert ours.shape == (9, 3, 8, 96, 96)
    pixels = (torch.stack(peers.per_view_video(video)) * peers.STD + peers.MEAN) * 255
    assert (pixels - ours).abs().max() < 0.01
    assert peers.mmaction2_views(video).shape == ours.shape


def test_a_copy_gives_the_same_clip(folder):
    one, other = (loader_benchmark.draw_clip(folder / kind / "a.mp4", 5) for kind in ("old", "new"))
    assert one.indices.tolist() == other.indices.tolist()
    assert one.box == other.box
    assert one.indices.tolist() != loader_benchmark.draw_clip(folder / "old" / "a.mp4", 6).indices.tolist()


def test_names_of_ratios():
    costs = {"ours": 2.0, "ours, pyav": 4.0, "ours, prepared": 0.5, "libav": 8.0, "bound": 1.0, "prepared, bound": 0.25}
    assert ratios_of("test_video", costs) == {
        "test_video.bound": 2.0,
        "prepared.test_video.bound": 2.0,
        "test_video.libav": 4.0,
        "test_video.libav.with_pyav": 2.0,
        "prepared.test_video.libav": 16.0,
    }


@pytest.mark.slow
def test_command(folder, tmp_path, monkeypatch, capsys, all_cores):
    monkeypatch.setattr(loader_benchmark.TEST, "clips", 2)
    out = tmp_path / "out.json"
    command = ["benchmark", "loader", str(folder / "old"), "--prepared", str(folder / "new"), "--clips", "1"]
    assert main([*command, "--repeats", "1", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    names = ["train_clip.mmaction2", "train_clip.pytorchvideo", "train_clip.libav", "train_clip.bound"]
    names += ["test_video.mmaction2", "test_video.per_view"]
    expected = {*names, *(f"prepared.{name}" for name in names), "prepared.bytes"}
    assert expected <= set(written["figures"])
    assert all(value > 0 for value in written["figures"].values())
    sizes = [sum(f.stat().st_size for f in (folder / kind).rglob("*.mp4")) for kind in ("new", "old")]
    assert written["figures"]["prepared.bytes"] == pytest.approx(sizes[0] / sizes[1])
    clip_times = written["milliseconds"]["train_clip"]
    assert written["figures"]["train_clip.libav"] == pytest.approx(clip_times["libav"] / clip_times["ours"])
    assert len(written["measured"]) == 2
    assert "train_clip.mmaction2" in capsys.readouterr().out


def test_mistakes_are_named(folder, tmp_path, capsys):
    for arguments, text in [
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path)], "no videos in it"),
        ([str(folder / "old"), "--prepared", str(tmp_path)], "a.mp4: "),
        ([str(folder / "old"), "--videos", "0"], "--videos: must be at least 1"),
    ]:
        assert main(["benchmark", "loader", *arguments]) == 2
        assert text in capsys.readouterr().err
    write_video(tmp_path / "short.mp4", moving_frames(20, 96, 128))
    assert main(["benchmark", "loader", str(tmp_path)]) == 2
    assert "short.mp4: is shorter than 64 frames" in capsys.readouterr().err
