"""torchcodec: the same frames where it is asked for, a refusal where it cannot be trusted or is not there."""

import sys
from types import SimpleNamespace

import pytest
import torch

from gcvideo.errors import VideoError
from gcvideo.video import open_video, reader, torchcodec_decoder
from gcvideo.video.mp4_slice import RATE
from tests.reading import COUNT, VIDEOS, assert_right, needs_torchcodec
from tests.videos import moving_frames, write_video


@needs_torchcodec
@pytest.mark.parametrize("name", VIDEOS)
def test_every_frame_by_torchcodec(name, folder):
    settings, for_decord = VIDEOS[name]
    path = write_video(folder / name, moving_frames(COUNT, 64, 128), **settings)
    if for_decord:
        assert assert_right(path, "torchcodec").backend == "torchcodec"
    else:
        with pytest.raises(VideoError, match=r"torchcodec cannot be trusted with it \(.*\); use backend pyav or auto"):
            open_video(path, backend="torchcodec")


class NextPicture:
    """torchcodec's decoder as it is after a seek that leaves pictures out: it gives the next one in their place."""

    metadata = SimpleNamespace(begin_stream_seconds=0.0)

    def __init__(self, *_: object, **__: object) -> None:
        self.frames = torch.zeros(COUNT, 64, 128, 3, dtype=torch.uint8)

    def __len__(self) -> int:
        return COUNT

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        return SimpleNamespace(data=self.frames[indices], pts_seconds=(torch.tensor(indices) + 1) / RATE)


def test_torchcodec_gives_no_picture_in_place_of_another(closed, monkeypatch):
    monkeypatch.setattr(reader, "why_no_torchcodec", lambda: None)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=NextPicture))
    with open_video(closed, backend="torchcodec") as video:
        with pytest.raises(VideoError, match="torchcodec gives other pictures than those asked for"):
            video.frames(range(COUNT))
        monkeypatch.setattr(NextPicture, "__len__", lambda self: COUNT - 1)
        with pytest.raises(VideoError, match=f"torchcodec counts {COUNT - 1} pictures of {COUNT}"):
            video.frames(range(COUNT))


def test_other_containers_are_refused_by_torchcodec(folder, monkeypatch):
    monkeypatch.setattr(reader, "why_no_torchcodec", lambda: None)
    path = write_video(folder / "plain.mkv", moving_frames(3, 64, 128))
    with pytest.raises(VideoError, match=r"torchcodec cannot be trusted with it \(not an MP4 file\)"):
        open_video(path, backend="torchcodec")


def test_without_torchcodec(closed, monkeypatch):
    torchcodec_decoder.why_no_torchcodec.cache_clear()
    monkeypatch.setattr(torchcodec_decoder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        VideoError, match=r"plain\.mp4: torchcodec is not installed: pip install 'gcvideo\[torchcodec\]'$"
    ):
        open_video(closed, backend="torchcodec")
    torchcodec_decoder.why_no_torchcodec.cache_clear()


def test_torchcodec_without_ffmpeg(closed, monkeypatch):
    class NoLibraries:
        def __init__(self, _: bytes) -> None:
            raise RuntimeError("Could not load libtorchcodec. Likely causes:\n FFmpeg is not properly installed")

    torchcodec_decoder.why_no_torchcodec.cache_clear()
    monkeypatch.setattr(torchcodec_decoder.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=NoLibraries))
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=sys.modules["torchcodec.decoders"]))
    with pytest.raises(VideoError, match=r"plain\.mp4: torchcodec finds no FFmpeg libraries"):
        open_video(closed, backend="torchcodec")
    torchcodec_decoder.why_no_torchcodec.cache_clear()
