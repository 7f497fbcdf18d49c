"""Encode H.264 in MP4: frames in memory, and videos with a layout that is fast to read clips from."""

from __future__ import annotations

import io
import os
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from gcvideo.errors import VideoError


class Preset(NamedTuple):
    """Settings of libx264 and what they are good for."""

    about: str
    options: dict[str, str]


# A clip of 8 frames with a stride of 8 needs one frame in eight. Frames that no other refers to need not be decoded
# unless they are wanted; so presets differ in how many there are, and in how far the next key frame is.
PRESETS = {
    "clip": Preset(
        "long runs of B-frames that nothing refers to: little to decode, few bytes",
        {"g": "96", "bf": "7", "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0"},
    ),
    "fast": Preset(
        "longer runs, more key frames, no loop filter and no arithmetic coding: least to decode, more bytes",
        {
            "preset": "slower",  # saves a part of the bytes
            "g": "48",
            "bf": "11",
            "tune": "fastdecode",
            "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0:ref=4",
        },
    ),
    "gop16": Preset(
        "a key frame every 16 frames, no B-frames, fast to decode", {"g": "16", "bf": "0", "tune": "fastdecode"}
    ),
    "intra": Preset("key frames only: any frame at the cost of one, many bytes", {"g": "1", "tune": "fastdecode"}),
    "default": Preset("libx264's defaults: a key frame every 250 frames", {"g": "250"}),
}
CRF = "23"  # libx264's default quality


class Encoding(NamedTuple):
    """How to write videos.

    Attributes:
        preset: one of ``PRESETS``.
        short_side: in pixels; smaller videos keep their size.
        audio: keep the sound, as AAC.
    """

    preset: str = "clip"
    short_side: int = 256
    audio: bool = False


def encode_frames(frames: np.ndarray, *, fps: float, options: dict[str, str] | None = None) -> bytes:
    """Encode frames in memory.

    Args:
        frames: uint8 (T, H, W, 3) RGB. The last row or column of an odd size is left out, as 4:2:0 sampling needs.
        fps: frames per second.
        options: of libx264.

    Returns:
        the content of the MP4 file.
    """
    buffer = io.BytesIO()
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_video(source: str | Path, target: str | Path, encoding: Encoding) -> int:
    """Encode ``source`` as ``target``; returns the number of frames.

    Frames keep their times, counted from the first one; they are rotated as the metadata says. ``target`` appears when
    it is complete.

    Raises:
        VideoError: the source cannot be decoded to its end.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    try:
        frames = _encode(str(source), str(temporary), encoding)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except av.FFmpegError as error:
        raise VideoError(source, f"cannot be transcoded ({str(error).splitlines()[0]})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return frames


def _encode(source: str, target: str, encoding: Encoding) -> int:
    # The moov box in front: opening a file then takes one read.
    options = {"movflags": "+faststart"}
    with (
        av.open(f"file:{source}", metadata_errors="replace") as old,
        av.open(f"file:{target}", "w", format="mp4", options=options) as new,
    ):
        if not old.streams.video:
            raise VideoError(source, "has no video track")
        pictures = _Pictures(new, old.streams.video[0], encoding)
        tracks: list[Any] = [old.streams.video[0]]
        sound: Any = None
        if encoding.audio and old.streams.audio:
            tracks.append(old.streams.audio[0])
            sound = new.add_stream("aac", rate=tracks[1].codec_context.sample_rate or 44_100)
        waiting: deque[Any] = deque()  # audio frames before the first picture: its size must be known first
        for packet in old.demux(tracks):
            for frame in packet.decode():
                if packet.stream is tracks[0]:
                    pictures.take(frame)
                else:
                    frame.pts = None  # counted again from the samples
                    waiting.append(frame)
            while waiting and pictures.count:
                new.mux(sound.encode(waiting.popleft()))
        if not pictures.count:
            raise VideoError(source, "has no frame that can be decoded")
        for stream in [pictures.stream, *([sound] if sound else [])]:
            new.mux(stream.encode(None))
    return pictures.count


class _Pictures:
    """The video track: scaled, rotated and encoded frame by frame."""

    def __init__(self, container: Any, source: Any, encoding: Encoding) -> None:
        self.count = 0
        self._container, self._short_side = container, encoding.short_side
        source.codec_context.thread_count = 1  # one worker process a core already
        options = {"crf": CRF, "threads": "1", **PRESETS[encoding.preset].options}
        self.stream = container.add_stream("libx264", rate=source.average_rate or 25, options=options)
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = source.time_base
        self._first, self._last = 0, -1

    def take(self, frame: Any) -> None:
        turns = round(frame.rotation / 90) % 4  # counter-clockwise
        if not self.count:
            self._first = frame.pts or 0
            self._size = scaled_size(frame.height, frame.width, self._short_side)
            self.stream.height, self.stream.width = self._size if turns % 2 == 0 else self._size[::-1]
        # Without a time, or with one that does not rise, a frame comes one tick after its predecessor.
        time = self._last + 1 if frame.pts is None else frame.pts - self._first
        self._last = max(time, self._last + 1)
        picture = _rotated(frame, turns, *self._size)
        picture.pts, picture.time_base = self._last, frame.time_base
        picture.pict_type = 0  # the encoder chooses key frames, not the source
        self._container.mux(self.stream.encode(picture))
        self.count += 1


def _rotated(frame: Any, turns: int, height: int, width: int) -> Any:
    """Scale a frame to an even height and width, then rotate it by quarter turns, counter-clockwise."""
    frame = frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")
    if not turns:
        return frame
    packed = frame.to_ndarray()  # (3 / 2 height, width): Y, then U and V of half the size
    planes = (packed[:height], *packed[height:].reshape(2, height // 2, width // 2))
    turned = [np.rot90(plane, turns) for plane in planes]
    packed = np.concatenate([plane.ravel() for plane in turned]).reshape(-1, turned[0].shape[1])
    return av.VideoFrame.from_ndarray(packed, format="yuv420p")


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of the same shape with the given short side, never larger than before.

    Both are even, as 4:2:0 sampling needs.
    """
    scale = min(1.0, short_side / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))
