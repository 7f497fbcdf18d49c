"""The frames of a long video, a camera or a pipe, one after the other, in bounded memory.

For frames by index, in files that can be sought, see ``gcvideo.video.reader``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from gcvideo.errors import VideoError
from gcvideo.video.pyav_decoder import declared_fps, orientation_of


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """A decoded frame: number, seconds since the first frame, and PyAV's frame or uint8 (H, W, 3) RGB."""

    index: int
    time: float
    picture: Any

    def rgb(self) -> np.ndarray:
        """uint8 (H, W, 3), as displayed: rotation metadata applied."""
        if isinstance(self.picture, np.ndarray):
            return self.picture
        return orientation_of(self.picture).apply(self.picture.to_ndarray(format="rgb24"))


class FrameStream:
    """Frames of a source in presentation order; a context manager.

    Args:
        source: a file, ``camera:N`` for the camera /dev/videoN, or an open binary file such as ``sys.stdin.buffer``.
        name: of an open file, for messages.

    Attributes:
        fps: average frames per second, as the source declares it; 25 where it declares none.
        expected: number of frames that the source is thought to have; None where that is not known.
        problem: why the stream ended before its time, known once it has; None where all went well.

    Raises:
        VideoError: the source cannot be opened or has no video.
    """

    def __init__(self, source: str | IO[bytes], *, name: str = "standard input") -> None:
        import av

        self.name = source if isinstance(source, str) else name
        self.problem: str | None = None
        place, options = _what_to_open(source)
        try:
            self._container: Any = av.open(place, metadata_errors="replace", **options)
        except (OSError, ValueError) as error:  # PyAV's errors are either
            raise VideoError(self.name, _why(error, self.name)) from None
        if not self._container.streams.video:
            self.close()
            raise VideoError(self.name, "has no video track")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"flags": "unaligned"}
        self.fps = declared_fps(self._container, self._stream)
        length = self._container.duration or 0  # in microseconds
        self.expected = self._stream.frames or round(length * 1e-6 * self.fps) or None

    def __iter__(self) -> Iterator[StreamFrame]:
        """The frames; times never go back.

        Raises:
            VideoError: not one frame can be decoded. A problem after that ends the stream and is kept in ``problem``.
        """
        first, last = None, -1 / self.fps
        index = 0
        frames = self._container.decode(self._stream)
        while True:
            try:
                picture = next(frames, None)
                if picture and not index:
                    orientation_of(picture)  # raises here what ``rgb`` would raise
            except (OSError, ValueError) as error:
                self.problem = f"cannot be decoded after {max(last, 0):.1f} s ({_why(error, self.name)})"
                break
            if picture is None:
                break
            time = last + 1 / self.fps if picture.time is None else float(picture.time)
            first = time if first is None else first
            last = max(time - first, last)
            yield StreamFrame(index, max(last, 0.0), picture)
            index += 1
        if not index:
            raise VideoError(self.name, self.problem or "holds no frame")

    def close(self) -> None:
        """Let go of the source."""
        self._container.close()

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _what_to_open(source: str | IO[bytes]) -> tuple[Any, dict[str, Any]]:
    if not isinstance(source, str):
        return source, {}
    if source.startswith("camera:"):
        device = f"/dev/video{source.partition(':')[2]}"
        if not os.path.exists(device):
            raise VideoError(source, f"there is no camera {device}")
        return device, {"format": "v4l2"}
    if not os.path.isfile(source):
        raise VideoError(source, "no such file")
    if os.path.getsize(source) == 0:
        raise VideoError(source, "the file is empty")
    return f"file:{os.path.abspath(source)}", {}  # a name with a colon in it is no protocol


def _why(error: Exception, name: str) -> str:
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    if name == "standard input":
        text += (
            "; a pipe must carry a format that is read front to back: MPEG-TS, Matroska, MP4 with its index in front"
        )
    return text
