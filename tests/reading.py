"""Videos of every kind that the reader must know, and what reading one rightly means."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from gcvideo.video import VideoReader, open_video
from tests.videos import decode_all, moving_frames, write_video

INSTALLED = ("decord", "pyav")
COUNT = 45
RNG = np.random.default_rng(0)
X265 = "log-level=none:pools=none:frame-threads=1:scenecut=0:"
UNEVEN = np.cumsum(RNG.integers(1, 6, COUNT)).tolist()
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def x264(gop: int = 12, **parameters: str | int) -> dict:
    text = ":".join(f"{key.replace('_', '-')}={value}" for key, value in {"scenecut": 0, **parameters}.items())
    return {"gop": gop, "options": {"preset": "medium", "x264-params": text}}


def x265(parameters: str) -> dict:
    return {"codec": "libx265", "options": {"preset": "medium", "x265-params": X265 + parameters}}


# File name: how it is written, and whether decord may read it.
VIDEOS: dict[str, tuple[dict, bool]] = {
    "closed_gop.mp4": (x264(bframes=3, b_pyramid="normal"), True),
    "many_b.mp4": (x264(gop=40, bframes=8, b_pyramid="strict", b_adapt=0), True),
    "no_b.mov": (x264(bframes=0), True),
    "default_gop.mp4": (x264(gop=250), True),
    "intra_only.mp4": (x264(gop=1), True),
    "open_gop.mp4": (x264(bframes=3, open_gop=1, b_pyramid="normal"), True),
    "open_gop_many_b.mp4": (x264(bframes=6, open_gop=1, b_pyramid="strict", b_adapt=0), True),
    "intra_refresh.mp4": (x264(intra_refresh=1), True),
    "interlaced.mp4": (x264(tff=1), False),
    "fragmented.mp4": ({**x264(), "container_options": FRAGMENTS}, False),
    "tables_first.mp4": ({**x264(), "container_options": {"movflags": "faststart"}}, True),
    "sound.mp4": ({**x264(), "audio": True}, True),
    "uneven.mp4": ({**x264(), "pts": UNEVEN, "time_base": Fraction(1, 100)}, True),
    "late_start.mp4": ({**x264(), "pts": range(125, 125 + COUNT), "time_base": Fraction(1, 25)}, True),
    "late_start.mkv": ({**x264(), "pts": range(125, 125 + COUNT), "time_base": Fraction(1, 25)}, False),
    "ten_bits.mp4": ({**x264(), "pixel_format": "yuv420p10le"}, False),
    "yuv444.mp4": ({**x264(), "pixel_format": "yuv444p"}, False),
    "full_range.mp4": ({**x264(), "pixel_format": "yuvj420p"}, True),
    "hevc_closed.mp4": (x265("open-gop=0:keyint=12"), False),
    "hevc_open.mp4": (x265("open-gop=1:keyint=12:bframes=4"), False),
    "hevc_layers.mp4": (x265("temporal-layers=3:keyint=15:bframes=4"), False),
    "hevc_ten_bits.mp4": ({**x265("keyint=12"), "pixel_format": "yuv420p10le"}, False),
    "hevc_open.mkv": (x265("open-gop=1:keyint=12:bframes=4"), False),
    "open_gop.mkv": (x264(bframes=3, open_gop=1), False),
    "h264.avi": (x264(), False),
    "h264.ts": (x264(), False),
    "h264.flv": (x264(), False),
    "mpeg2.ts": ({"codec": "mpeg2video", "gop": 12, "options": {"bf": "2"}}, False),
    "mpeg4.avi": ({"codec": "mpeg4", "gop": 12}, False),
    "mpeg4_b.avi": ({"codec": "mpeg4", "gop": 12, "options": {"bf": "2"}}, False),
    "mpeg4_b.mp4": ({"codec": "mpeg4", "gop": 12, "options": {"bf": "2"}}, False),
    "mjpeg.avi": ({"codec": "mjpeg", "pixel_format": "yuvj420p"}, False),
    "vp8.webm": ({"codec": "libvpx", "gop": 12, "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}, False),
    "vp9.webm": ({"codec": "libvpx-vp9", "gop": 12}, False),
    "vp9.mp4": ({"codec": "libvpx-vp9", "gop": 12, "options": {"lag-in-frames": "16"}}, False),
    "av1.mp4": ({"codec": "libsvtav1", "gop": 12}, False),
    "av1.mkv": ({"codec": "libsvtav1", "gop": 12}, False),
    "animation.gif": ({"codec": "gif", "pixel_format": "rgb8"}, False),
}


def write_plain(path: Path) -> Path:
    """A file that every backend reads."""
    return write_video(path, moving_frames(COUNT, 64, 128), **x264(bframes=3))


def assert_right(path: Path, backend: str) -> VideoReader:
    """Compare length, times and frames (all, single ones, clips, shuffled and repeated ones) with the whole decode."""
    frames, times = decode_all(path)
    with open_video(path, backend=backend) as reader:
        assert len(reader) == len(frames)
        assert (reader.height, reader.width) == frames.shape[1:3]
        np.testing.assert_allclose(reader.times, np.sort(times), atol=1e-9)
        choices = [np.arange(len(frames)), np.array([len(frames) - 1, 0, len(frames) - 1])]
        choices += [RNG.integers(0, len(frames), 5) for _ in range(3)] + [RNG.integers(0, len(frames), 1)]
        choices += [np.arange(len(frames) // 3, len(frames), 4)]
        results = [reader.frames(indices) for indices in choices]
        for indices, found in zip(choices, results, strict=True):  # which the decoder's memory has to outlive
            assert found.dtype == np.uint8
            assert found.flags.c_contiguous
            assert found.flags.writeable
            wrong = [int(i) for i, frame in zip(indices, found, strict=True) if (frame != frames[i]).any()]
            assert not wrong, f"wrong frames {wrong} of {indices.tolist()}"
        return reader
