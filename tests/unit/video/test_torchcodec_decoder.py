"""torchcodec: the same frames where it is asked for, a refusal where it cannot be trusted or is not there."""

import sys
from types import SimpleNamespace

import pytest

from gcvideo.errors import VideoError
from gcvideo.video import open_video, torchcodec_decoder
from tests.reading import COUNT, FOR_TORCHCODEC, VIDEOS, assert_right, needs_torchcodec, x264
from tests.videos import decode_all, moving_frames, write_video


@needs_torchcodec
@pytest.mark.parametrize("name", VIDEOS)
def test_every_frame_by_torchcodec(name, folder):
    settings, for_decord = VIDEOS[name]
    path = write_video(folder / name, moving_frames(COUNT, 64, 128), **settings)
    if for_decord or name in FOR_TORCHCODEC:
        assert assert_right(path, "torchcodec").backend == "torchcodec"
    else:
        with pytest.raises(VideoError, match=r"torchcodec cannot be trusted with it \(.*\); use backend pyav or auto"):
            open_video(path, backend="torchcodec")


@needs_torchcodec
def test_torchcodec_refuses_more_than_8_bits(folder):
    frames = moving_frames(3, 64, 128)
    path = write_video(folder / "ten_bits.mkv", frames, codec="libsvtav1", pixel_format="yuv420p10le")
    with pytest.raises(VideoError, match=r"more than 8 bits a sample"):
        open_video(path, backend="torchcodec")


@needs_torchcodec
def test_torchcodec_gives_no_picture_in_place_of_another(folder):
    """After a seek libavcodec leaves out what it cannot decode yet, here all pictures before the refresh is through;
    torchcodec then gives the next one that comes."""
    path = write_video(folder / "refresh.mkv", moving_frames(COUNT, 64, 128), **x264(intra_refresh=1))
    whole, _ = decode_all(path)
    wrong = 0
    for index in range(COUNT):
        with open_video(path, backend="pyav") as reader:
            assert (reader.frames([index]) == whole[index]).all()
        with open_video(path, backend="torchcodec") as reader:
            try:
                assert (reader.frames([index]) == whole[index]).all()
            except VideoError as error:
                wrong += "other pictures than those asked for" in error.reason
    assert wrong


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
