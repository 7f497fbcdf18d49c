"""The loader benchmark: all ways of reading give the same pictures, and the figures are complete."""

import json

import numpy as np
import pytest
import torch

from gcvideo.benchmark import loader as loader_benchmark
from gcvideo.benchmark.loader import make_clips, our_clip, our_views
from gcvideo.benchmark.peers import loaders as loader_peers
from gcvideo.benchmark.peers.loaders import Clip
from gcvideo.cli import main
from gcvideo.video.reader import open_video
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
    return Clip(str(folder / "old" / "a.mp4"), 3 + 8 * np.arange(8), 30.0, 96, (4, 20, 80, 80), 56)


def test_all_ways_read_the_same_training_clip(clip, monkeypatch):
    ours = our_clip(clip)
    assert ours.shape == (3, 8, 56, 56)
    for backend in ("decord", "pyav"):
        assert torch.equal(our_clip(clip, backend=backend), ours)
    assert torch.equal(loader_peers.libav_clip(clip), ours)
    assert torch.equal(loader_peers.decord_clip(clip), ours)
    mmaction2 = torch.from_numpy(loader_peers.mmaction2_clip(clip))[0]
    assert mmaction2.shape == ours.shape
    assert (mmaction2.float() - ours.float()).abs().mean() < 25  # it scales twice, without antialiasing
    pytorchvideo = loader_peers.pytorchvideo_clip(clip) * loader_peers.STD + loader_peers.MEAN
    collections = []
    monkeypatch.setattr(loader_peers.gc, "collect", lambda: collections.append(1))
    main_branch = loader_peers.pytorchvideo_main_clip(clip) * loader_peers.STD + loader_peers.MEAN
    assert torch.equal(main_branch, pytorchvideo)
    assert collections
    assert pytorchvideo.shape == ours.shape
    first = pytorchvideo[:, 0] * 255 - ours[:, 0].float()  # later frames lie 9 apart there, 8 here
    assert first.abs().mean() < 15


def test_all_ways_read_the_same_views(folder, monkeypatch):
    monkeypatch.setattr(loader_benchmark.TEST, "short_side", 96)
    monkeypatch.setattr(loader_benchmark.TEST, "crop", 96)
    path = str(folder / "old" / "a.mp4")
    ours = our_views(path)
    assert ours.shape == (30, 3, 8, 96, 96)
    with open_video(path) as video:
        count, fps = len(video), video.fps
    views = torch.stack(loader_peers.per_view_video(path, count, fps, clips=10, crops=3, size=96))
    pixels = (views * loader_peers.STD + loader_peers.MEAN) * 255
    assert (pixels - ours).abs().max() < 0.01
    assert loader_peers.mmaction2_views(path, count, clips=10, crops=3, size=96).shape == ours.shape


def test_figures(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loader_benchmark.TEST, "clips", 2)
    out = tmp_path / "figures.json"
    command = ["benchmark", "loader", str(folder / "old"), "--prepared", str(folder / "new"), "--clips", "1"]
    assert main([*command, "--repeats", "1", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    names = ["train_clip.mmaction2", "train_clip.pytorchvideo", "train_clip.pytorchvideo_main", "train_clip.libav"]
    names += ["test_video.mmaction2", "test_video.per_view"]
    expected = {*names, *(f"prepared.{name}" for name in names), "prepared.bytes"}
    assert expected <= set(written["figures"])
    assert all(value > 0 for value in written["figures"].values())
    sizes = [sum(f.stat().st_size for f in (folder / kind).rglob("*.mp4")) for kind in ("new", "old")]
    assert written["figures"]["prepared.bytes"] == pytest.approx(sizes[0] / sizes[1])
    clip_times = written["milliseconds"]["train_clip"]
    for name, ours in [
        ("train_clip.libav", "ours"),
        ("train_clip.libav.with_pyav", "ours, pyav"),
        ("prepared.train_clip.libav", "ours, prepared"),
        ("prepared.train_clip.libav.with_pyav", "ours, prepared, pyav"),
    ]:
        assert written["figures"][name] == pytest.approx(clip_times["libav"] / clip_times[ours])
    assert len(written["measured"]) == 2
    assert "train_clip.mmaction2" in capsys.readouterr().out


def test_mistakes_are_named(folder, tmp_path, capsys):
    for arguments, text in [
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path)], "holds no videos"),
        ([str(folder / "old"), "--prepared", str(tmp_path)], "no copy of a.mp4"),
    ]:
        assert main(["benchmark", "loader", *arguments]) == 2
        assert text in capsys.readouterr().err
    write_video(tmp_path / "short.mp4", moving_frames(20, 96, 128))
    assert main(["benchmark", "loader", str(tmp_path)]) == 2
    assert "short.mp4: is shorter than 64 frames" in capsys.readouterr().err


def test_clips_are_made_from_a_folder(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loader_benchmark, "MADE_SECONDS", 3)
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "good.mp4").write_bytes((folder / "old" / "a.mp4").read_bytes())
    (tmp_path / "sources" / "bad.mp4").write_bytes(b"no video")
    make_clips(str(tmp_path / "sources"), str(tmp_path / "made"))
    (made,) = (tmp_path / "made").iterdir()
    with open_video(made) as video:
        assert (video.height, video.width, len(video)) == (256, 340, 90)
        frames = video.frames([5, 75]).astype(int)
    assert np.abs(frames[0] - frames[1]).mean() < 10  # the 70 frames are looped
    assert "bad.mp4" in capsys.readouterr().err
