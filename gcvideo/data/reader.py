"""Exact frames of a video file, by index.

``open_video`` gives a ``VideoReader``: its length, the presentation time of every frame, and any frames by index as
uint8 RGB. Rotation metadata is honoured. Whatever cannot be read raises one ``VideoError`` that says why.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.errors import VideoError

BACKENDS = ("auto", "decord", "pyav")


def open_video(path: str | Path, *, backend: str = "auto", short_side: int | None = None) -> VideoReader:
    """Open a video.

    Args:
        path: the file.
        backend: ``auto`` takes decord where it reads the file rightly, else PyAV.
        short_side: training only; frames may come scaled down (never up) so that their short side has this length.

    Raises:
        VideoError: the file cannot be read.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise VideoError(path, "is a directory" if os.path.isdir(path) else "no such file")
    if os.path.getsize(path) == 0:
        raise VideoError(path, "the file is empty")
    try:
        return VideoReader(path, backend, short_side)
    except VideoError:
        raise
    except Exception as error:  # libav's bindings raise whatever they meet: ValueError, IndexError, UnicodeDecodeError
        raise VideoError(path, f"cannot be opened ({_one_line(error)})") from error


class VideoReader:
    """An open video; made by ``open_video``. A context manager."""

    def __init__(self, path: str, backend: str, short_side: int | None) -> None:
        import av

        self.path = path
        self.short_side = short_side
        with av.open(path, metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError(path, "has no video track")
            stream = container.streams.video[0]
            stream.thread_count = 1
            times: list[Any] = []
            rotation = 0
            for frame in container.decode(stream):
                times.append(frame.pts)
                rotation = frame.rotation
                self.height, self.width = frame.height, frame.width
            if not times:
                raise VideoError(path, "holds no frame")
            base = float(stream.time_base)
            rate = float(stream.average_rate or stream.guessed_rate or 25)
        increasing = None not in times and all(a < b for a, b in zip(times, times[1:], strict=False))
        self.pts = np.array(times) * base if increasing else np.arange(len(times)) / rate
        self.fps = rate
        self._turns = round(rotation / 90) % 4
        if self._turns % 2:
            self.height, self.width = self.width, self.height
        self.backend = "pyav"

    def __len__(self) -> int:
        return len(self.pts)

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by index, each decoded once; indices may repeat and come in any order.

        Returns:
            uint8 (T, H, W, 3) RGB.

        Raises:
            VideoError: a frame cannot be decoded.
            IndexError: an index is outside the video.
        """
        wanted, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(self)):
            raise IndexError(f"{self.path}: frame {wanted[-1]} of {len(self)}")
        try:
            return self._decode(wanted)[inverse]
        except Exception as error:
            raise VideoError(self.path, f"cannot be decoded ({_one_line(error)})") from error

    def _decode(self, wanted: np.ndarray) -> np.ndarray:
        import av

        images = []
        with av.open(self.path, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            remaining = set(wanted.tolist())
            for index, frame in enumerate(container.decode(stream)):
                if index in remaining:
                    images.append(np.rot90(frame.to_ndarray(format="rgb24"), self._turns))
                    remaining.remove(index)
                if not remaining:
                    break
        return np.stack(images)

    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
