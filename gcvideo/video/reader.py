"""Exact frames of a video file, by index.

``open_video`` gives a ``VideoReader``: its length, the presentation time of every frame, and any frames by index as
uint8 RGB. Whatever cannot be read raises one ``VideoError`` that says why. No wrong frame is ever returned knowingly:

====================================================  =======================================================
file                                                  read by
====================================================  =======================================================
MP4 and MOV, H.264 and HEVC, whole pictures,          its own tables say what to decode (``mp4``, ``samples``);
at most one edit                                      decord or PyAV decodes just that (``decoders``)
of these: order of output not told, more than 8 bits  the same, PyAV only
anything else that libav knows                        PyAV through a demuxer (``libav``)
cut short, encrypted, without pictures, huge          refused, with the reason
====================================================  =======================================================

torchcodec reads only where it is asked to, and of these files only those that it reads rightly.

Damage inside a picture is another matter. libavcodec hides it, by showing part of a neighbouring picture, and marks the
picture. PyAV tells of the mark, which is an error here, also where only another picture refers to the marked one;
decord and torchcodec do not tell. ``gcvideo prepare verify`` finds such files.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gcvideo.errors import DamagedVideoError, VideoError
from gcvideo.video.bitstream import Start, is_disposable
from gcvideo.video.decord_decoder import MAX_BYTES, MAX_PIXELS, DamageError, decode_with_decord, decode_with_pyav
from gcvideo.video.mp4 import Mp4DataError, Mp4Error, Mp4Track, looks_like_mp4, read_track
from gcvideo.video.mp4_slice import read_samples
from gcvideo.video.pyav_decoder import LibavVideo
from gcvideo.video.tar_members import local_path
from gcvideo.video.torchcodec_decoder import TorchcodecVideo, decode_with_torchcodec, why_no_torchcodec

BACKENDS = ("auto", "decord", "pyav", "torchcodec")


def open_video(path: str | Path, *, backend: str = "auto", short_side: int | None = None) -> VideoReader:
    """Open a video.

    Args:
        path: the file, or a video in a tar shard (see ``gcvideo.video.tar_members``), which is read into memory.
        backend: ``auto`` takes decord where it reads the file rightly, else PyAV. ``decord`` refuses the files that
            only PyAV reads rightly, and so does ``torchcodec``.
        short_side: for training only; frames come scaled down, never up, so that their short side has this length.
            The decoder interpolates bilinearly, averaging over the area that a pixel covers.

    Raises:
        VideoError: the file cannot be read, and why.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    path = os.fspath(path)
    with ExitStack() as opened:
        try:
            file = opened.enter_context(local_path(path))
            if not os.path.isfile(file):
                exists = os.path.exists(file)
                raise VideoError(
                    path, "is a folder" if os.path.isdir(file) else "is not a file" if exists else "does not exist"
                )
            video = VideoReader(path, _open_source(file, backend), short_side)
        except VideoError as error:
            raise error if error.path == path else VideoError(path, error.reason) from error
        except Exception as error:  # PyAV raises whatever it meets: InvalidDataError, UnicodeDecodeError ...
            raise VideoError(path, f"cannot be opened ({_one_line(error)})") from error
        video._opened = opened.pop_all()
    return video


class VideoReader:
    """An open video; made by ``open_video``. A context manager.

    Attributes:
        path: the file.
        height: of the frames that come out, after rotation and scaling.
        width: of the frames that come out, after rotation and scaling.
        fps: average frames per second.
        pts: float64 (len,), presentation time of each frame in seconds, rising.
        codec: libavcodec's name.
        keyframes: int64 (K,), frames at which decoding may start.
    """

    def __init__(self, path: str, source: _Source, short_side: int | None) -> None:
        self.path = path
        self._source = source
        self._opened = ExitStack()  # what must stay open as long as the source
        if source.height * source.width > MAX_PIXELS:
            raise VideoError(path, f"frames of {source.width} x {source.height} are larger than {MAX_PIXELS} pixels")
        self._size = _scaled_down((source.height, source.width), short_side)  # before rotation
        self._turns = source.quarter_turns
        self.height, self.width = self._size if self._turns % 2 == 0 else self._size[::-1]
        self.fps = source.fps
        self.pts = source.seconds
        self.codec = source.codec
        self.keyframes = source.keyframes

    @property
    def backend(self) -> str:
        """``decord``, ``pyav`` or ``torchcodec``: who decodes."""
        return self._source.backend

    def __len__(self) -> int:
        """Number of frames that a player would show."""
        return len(self.pts)

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by index; they may repeat and come in any order, and each is decoded once.

        Returns:
            uint8 (T, H, W, 3) RGB, in the order of ``indices``.

        Raises:
            VideoError: a frame cannot be decoded, or the frames together exceed the memory bound.
            DamagedVideoError: PyAV says that a frame is damaged.
            IndexError: an index lies outside the video.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if not len(indices):
            return np.empty((0, self.height, self.width, 3), np.uint8)
        wanted, position = np.unique(indices, return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= len(self):
            raise IndexError(f"{self.path}: frames {wanted[0]} to {wanted[-1]} of {len(self)}")
        if len(indices) * self.height * self.width * 3 > MAX_BYTES:
            raise VideoError(
                self.path, f"{len(indices)} frames of {self.width} x {self.height} exceed {MAX_BYTES} bytes"
            )
        try:
            images = self._source.decode(wanted, self._size)
        except DamageError as error:
            raise DamagedVideoError(self.path, f"cannot be decoded ({error})") from error
        except Exception as error:  # as in open_video
            raise VideoError(self.path, f"cannot be decoded ({_one_line(error)})") from error
        if images.shape != (len(wanted), *self._size, 3):
            raise VideoError(self.path, f"gave frames of shape {images.shape[1:]} instead of {self._size}")
        images = np.ascontiguousarray(np.rot90(images, self._turns, axes=(1, 2)))
        return images if np.array_equal(wanted, indices) else images[position]

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()
        self._opened.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Source(Protocol):
    """What a ``VideoReader`` reads from; sizes are those before rotation."""

    codec: str
    height: int
    width: int
    quarter_turns: int
    fps: float
    seconds: np.ndarray
    keyframes: np.ndarray

    @property
    def backend(self) -> str: ...

    def decode(self, wanted: np.ndarray, size: tuple[int, int]) -> np.ndarray: ...

    def close(self) -> None: ...


class _Mp4Video:
    """A file whose own tables say what to decode."""

    def __init__(self, file: int, track: Mp4Track, backends: Sequence[str]) -> None:
        decoders = {"decord": decode_with_decord, "pyav": decode_with_pyav, "torchcodec": decode_with_torchcodec}
        self._file = file
        self._track = track
        self._decoders: list[tuple[str, Any]] = [(backend, decoders[backend]) for backend in backends]
        self.codec = track.info.codec
        self.height, self.width = track.info.height, track.info.width
        self.quarter_turns = track.quarter_turns
        self.fps = track.table.fps or 25.0
        self.seconds = track.table.seconds
        self.keyframes = np.flatnonzero(np.isin(track.table.order, list(track.table.starts)))

    @property
    def backend(self) -> str:
        return self._decoders[0][0]

    def decode(self, wanted: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        table = self._track.table
        span = table.needed(wanted.tolist(), lambda sample: False)
        bytes_of = dict(zip(span, read_samples(self._file, self._track, span), strict=True))
        samples = table.needed(wanted.tolist(), lambda sample: is_disposable(bytes_of[sample], self._track.info))
        data = [bytes_of[sample] for sample in samples]
        targets = table.order[wanted].tolist()
        while True:
            _, decoder = self._decoders[0]
            try:
                return decoder(self._track, samples, data, targets, size)
            except Exception:
                # decord refuses a few files that are sound, such as very narrow ones.
                if len(self._decoders) == 1:
                    raise
                self._decoders.pop(0)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()


def _open_source(path: str, backend: str) -> _Source:
    """Decide from the file's tables who reads it rightly."""
    missing = why_missing(backend)
    if missing:
        raise VideoError(path, missing)
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(file, 16, 0)
        if not head:
            raise VideoError(path, "is empty")
        if not looks_like_mp4(head):
            raise Mp4Error("not an MP4 file")
        track = read_track(file)
        _check_trust(track)
        refusal = _why_only_pyav(track)
        if backend in ("decord", "torchcodec") and refusal:
            raise Mp4Error(refusal)
        if backend == "torchcodec":
            track = _from_idr_only(track)
        with_decord = backend == "auto" and not refusal and _has_decord()
        source = _Mp4Video(file, track, [backend] if backend != "auto" else ["decord"] * with_decord + ["pyav"])
        file = -1
        return source
    except Mp4DataError as error:
        raise VideoError(path, str(error)) from error
    except Mp4Error as error:
        if backend == "decord":
            raise VideoError(path, f"decord cannot be trusted with it ({error}); use backend pyav or auto") from error
        return TorchcodecVideo(path) if backend == "torchcodec" else LibavVideo(path)
    finally:
        if file >= 0:
            os.close(file)


def _check_trust(track: Mp4Track) -> None:
    """Raise where samples and frames are not one to one, or come out in an order that cannot be foretold."""
    info = track.info
    if not info.progressive:
        raise Mp4Error("interlaced")  # a frame may be two samples, one a field
    if info.reorder is not None and track.table.reorder > info.reorder:
        raise Mp4Error("pictures are reordered more than the stream allows")


def _why_only_pyav(track: Mp4Track) -> str | None:
    """Why another decoder may give wrong frames even of a slice; None where it may not."""
    if track.info.reorder is None and track.table.reorder:
        return "the stream does not tell how pictures are reordered, so that decoders guess"
    if track.info.bit_depth > 8:
        return "more than 8 bits a sample"  # other rounding than PyAV's
    return None


def _from_idr_only(track: Mp4Track) -> Mp4Track:
    """The track without those starts of decoding in H.264 that are no IDR pictures.

    FFmpeg 5, which torchcodec may find, leaves out pictures that it decodes right after such a start.
    """
    if track.info.codec != "h264":
        return track
    starts: dict[int, Start] = {sample: kind for sample, kind in track.table.starts.items() if kind is Start.ANYWHERE}
    table = dataclasses.replace(track.table, starts=starts)
    return dataclasses.replace(track, table=table)


def why_missing(backend: str) -> str | None:
    """Why a backend cannot be used on this machine, and what to do; None where it can."""
    if backend == "decord" and not _has_decord():
        return "decord is not installed; use backend pyav or auto"
    return why_no_torchcodec() if backend == "torchcodec" else None


def _has_decord() -> bool:
    return importlib.util.find_spec("decord") is not None


def _scaled_down(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """Height and width with the given short side and the same shape, to the nearest pixel; never larger than before."""
    short = min(size)
    if short_side is None or short_side >= short:
        return size
    return max(1, round(size[0] * short_side / short)), max(1, round(size[1] * short_side / short))


def _one_line(error: Exception) -> str:
    # PyAV's errors are OSErrors, whose text repeats the path; those of decord and torchcodec begin with a place in
    # their source.
    text = str(getattr(error, "strerror", None) or error).partition("Check failed: ")
    lines = re.sub(r"^.*\.(cpp|h):\d+, ", "", (text[2] or text[0]).strip()).splitlines()
    return lines[0] if lines else type(error).__name__
