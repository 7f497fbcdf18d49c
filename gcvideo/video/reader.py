"""Video reader: exact frames of a file, by index.

``open_video`` gives a ``VideoReader``: its length, the presentation time of every frame, and any frames by index as
uint8 RGB. What cannot be read raises one ``VideoError`` that says why. Who reads a
file:

====================================================  =======================================================
file                                                  read by
====================================================  =======================================================
MP4 and MOV, H.264 of 8 bits, whose tables are        decord, a slice of the file at a time; before each, the
sound: one sample description, whole pictures, at     slice headers of the pictures in it must agree with
most one edit, known order of output                  the times of the file
of these: HEVC, order of output not told, more than   the same, PyAV only
8 bits
of these: files of ``gcvideo prepare transcode``      PyAV, which starts sooner where little is to be decoded
a folder of numbered pictures                         Pillow; see ``gcvideo.video.frame_folder``
anything else that libav knows, and files whose       PyAV through a demuxer; where their times are not to be
slice headers contradict their times                  relied on it counts frames from the beginning
cut short, encrypted, without pictures, huge,         refused, with the reason
turned by other angles than multiples of 90 degrees
====================================================  =======================================================

Frames are those that a decode of the whole file from its first picture gives, in the order in which the decoder
outputs them. They are turned and mirrored as the display matrix says (by multiples of 90 degrees; other matrices are
refused). They are not stretched to the pixel aspect ratio and not cut to the clean aperture: rows and columns are those
of the decoded picture, cropped as the codec says. A frame of another size than the first one is refused.

Damage inside a picture is another matter. libavcodec hides it, by showing part of a neighbouring picture, and marks
some of these pictures. PyAV tells of the mark, which is an error here, also where only another picture refers to the
marked one; decord does not tell. ``gcvideo prepare verify`` finds such files.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.errors import DamagedVideoError, VideoError
from gcvideo.video.decode_plan import MAX_REORDER, DecodeError
from gcvideo.video.decord_decoder import decode_with_decord, has_decord
from gcvideo.video.frame_folder import FrameArray, FrameFolder, split_span
from gcvideo.video.mp4_tables import Mp4Track, read_samples, read_tables
from gcvideo.video.pyav_decoder import MAX_PIXELS, DamageError, LibavVideo, decode_with_pyav
from gcvideo.video.slice_headers import read_picture, why_not_in_order
from gcvideo.video.tar_members import local_path

BACKENDS = ("auto", "decord", "pyav")
# frames() gives at most so many bytes at a time.
MAX_BYTES = 4 << 30


def open_video(path: str | Path, *, backend: str = "auto", frame_rate: float | None = None) -> VideoReader:
    """Open a video.

    Args:
        path: the file; a folder of frames (see ``gcvideo.video.frame_folder``); or a video in a tar shard (see
            ``gcvideo.video.tar_members``), which is read into memory.
        backend: ``auto`` takes decord where it reads the file rightly, else PyAV. ``decord`` refuses the files that
            only PyAV reads rightly.
        frame_rate: frames per second of a folder of frames, which tells none; files tell their own.

    Raises:
        VideoError: the file cannot be read, and why.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    path = os.fspath(path)
    if missing := why_missing(backend):
        raise VideoError(path, missing)
    with ExitStack() as opened:
        try:
            file = opened.enter_context(local_path(path))
            reader = VideoReader(path, *_open_source(file, backend, frame_rate))
        except VideoError as error:
            raise error if error.path == path else VideoError(path, error.reason) from error
        except DamageError as error:
            raise DamagedVideoError(path, str(error)) from error
        except DecodeError as error:
            raise VideoError(path, str(error)) from error
        except Exception as error:  # PyAV raises what it meets: InvalidDataError, UnicodeDecodeError ...
            raise VideoError(path, f"cannot be opened ({_one_line(error)})") from error
        reader._opened = opened.pop_all()
    return reader


class VideoReader(AbstractContextManager["VideoReader"]):
    """An open video; made by ``open_video``, of frames in memory by their ``FrameArray``. A context manager.

    Attributes:
        path: the file or folder.
        height: of the frames that come out, after rotation.
        width: of the frames that come out, after rotation.
        fps: average frames per second; 25 where the rate is not known.
        timed: whether the rate is known: of files always, of folders of frames where it was given.
        times: float64 (len,), presentation time of each frame in seconds, rising.
        codec: libavcodec's name.
        reason: why PyAV reads the file, where nobody asked for it; else "".
    """

    def __init__(self, path: str, source: Mp4Video | LibavVideo | FrameFolder | FrameArray, reason: str = "") -> None:
        self.path = path
        self.reason = reason
        self._source, self._show = source, source.orientation.apply
        self._opened = ExitStack()  # what must stay open as long as the source
        size = source.height, source.width
        if size[0] * size[1] > MAX_PIXELS:
            raise VideoError(path, f"frames of {size[1]} x {size[0]} are larger than {MAX_PIXELS} pixels")
        self.height, self.width = size[::-1] if source.orientation.transpose else size
        self.fps = source.fps
        self.timed = getattr(source, "timed", True)
        self.times = source.times
        self.codec = source.codec

    @property
    def keyframes(self) -> np.ndarray:
        """int64 (K,), frames at which decoding may start."""
        return self._source.keyframes

    @property
    def backend(self) -> str:
        """Who decodes: ``decord``, ``pyav`` or ``pillow``; ``memory`` where nobody needs to."""
        return self._source.backend

    def __len__(self) -> int:
        """Number of frames that a player would show."""
        return len(self.times)

    def frames(self, indices: Sequence[int] | np.ndarray, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """Frames by index; they may repeat and come in any order, and each is decoded once.

        Args:
            indices: of frames.
            box: top, left, height and width of the part of them to give; None for all.

        Returns:
            uint8 (T, H, W, 3) RGB, in the order of ``indices``.

        Raises:
            VideoError: a frame cannot be decoded, or the frames together exceed the memory bound.
            DamagedVideoError: PyAV says that a frame is damaged.
            IndexError: an index lies outside the video.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        top, left, height, width = box or (0, 0, self.height, self.width)
        if not len(indices):
            return np.empty((0, height, width, 3), np.uint8)
        rising = bool((indices[1:] > indices[:-1]).all())
        wanted, position = (indices, None) if rising else np.unique(indices, return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= len(self):
            raise IndexError(f"{self.path}: frames {wanted[0]} to {wanted[-1]} of {len(self)}")
        if len(indices) * height * width * 3 > MAX_BYTES:
            raise VideoError(self.path, f"{len(indices)} frames of this size exceed {MAX_BYTES} bytes")
        try:
            decoded = self._source.decode(wanted)
            if isinstance(decoded, np.ndarray):
                images = np.ascontiguousarray(self._show(decoded)[:, top : top + height, left : left + width])
            else:
                images = np.empty((len(wanted), height, width, 3), np.uint8)
                for place, image in decoded:
                    images[place] = self._show(image)[top : top + height, left : left + width]
        except DamageError as error:
            raise DamagedVideoError(self.path, f"cannot be decoded ({error})") from error
        except Exception as error:  # as in open_video
            raise VideoError(self.path, f"cannot be decoded ({_one_line(error)})") from error
        return images if rising else images[position]

    def close(self) -> None:
        """Close the file."""
        self._source.close()
        self._opened.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class Mp4Video:
    """A file whose own tables say what to decode; the slice headers of what is decoded must confirm them.

    Args:
        path: the file.
        track: its tables.
        backend: who decodes.
        fallback: whether PyAV may read what ``backend`` must not or cannot read.
    """

    def __init__(self, path: str, track: Mp4Track, backend: str, *, fallback: bool) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._file)
        self.track = track
        self._counted: LibavVideo | None = None  # where the slice headers contradict the tables
        self._fallback = fallback
        self.backend = backend
        self.codec = track.info.codec
        self.height, self.width = track.info.height, track.info.width
        self.orientation = track.orientation
        self.fps = track.fps
        self.times = track.table.seconds

    @property
    def keyframes(self) -> np.ndarray:
        """int64 (K,), frames at which decoding may start."""
        return self.track.table.keyframes

    def decode(self, wanted: np.ndarray) -> np.ndarray | Iterator[tuple[int, np.ndarray]]:
        """Frames by index, rising: uint8 (len(wanted), H, W, 3), or one by one as ``LibavVideo.decode`` gives them."""
        track, targets = self.track, self.track.table.order[wanted].tolist()
        data = self.needed(wanted)
        if self._counted:
            return self._counted.decode(wanted)
        try:
            images: Any = _DECODERS[self.backend](track, data, targets)
            if isinstance(images, np.ndarray) and images.shape[1:3] != (self.height, self.width):
                raise DecodeError(f"gave frames of shape {images.shape[1:]}, not {self.height, self.width, 3}")
            return images
        except Exception:  # decord refuses a few files that are sound, such as very narrow ones
            if self.backend == "pyav" or not self._fallback:
                raise
        self.backend = "pyav"
        return decode_with_pyav(track, data, targets)

    def needed(self, wanted: np.ndarray) -> dict[int, memoryview]:
        """The bytes of each sample that must be decoded to see frames; of none where frames must be counted."""
        if self._counted:
            return {}
        track, table = self.track, self.track.table
        # A picture is output before as many later ones are decoded as the stream may reorder.
        ahead = MAX_REORDER if track.info.reorder is None else max(2, track.info.reorder)
        span = table.needed(wanted.tolist(), ahead=ahead)
        data = read_samples(self._file, track, span)
        pictures = {sample: read_picture(piece, track.info) for sample, piece in data.items()}
        doubt = why_not_in_order(list(pictures.values()), table.pts[span], track.info)
        if doubt:
            self._count(doubt)
            return {}
        needed = table.needed(wanted.tolist(), lambda sample: pictures[sample].disposable)
        return {sample: data[sample] for sample in needed}

    def close(self) -> None:
        """Close the file."""
        self._close()
        if self._counted:
            self._counted.close()

    def _count(self, doubt: str) -> None:
        if self.backend != "pyav" and not self._fallback:
            raise DecodeError(f"{doubt}; use backend pyav or auto")
        self.backend = "pyav"
        counted = LibavVideo(self._path, count=True)
        if len(counted.times) != len(self.times):
            raise DecodeError(f"{doubt}, and {len(counted.times)} of {len(self.times)} can be decoded")
        if counted.orientation != self.orientation:
            raise DecodeError(doubt)
        self._counted = counted


_DECODERS = {"decord": decode_with_decord, "pyav": decode_with_pyav}


def _open_source(path: str, backend: str, fps: float | None) -> tuple[Mp4Video | LibavVideo | FrameFolder, str]:
    """Open a file with the decoder that reads it rightly; and why PyAV, where nobody asked for it."""
    if not os.path.isfile(path):
        if os.path.isdir(split_span(path)[0]):
            return FrameFolder(path, fps), ""
        raise DecodeError("is not a file" if os.path.exists(path) else "does not exist")
    track = read_tables(path)
    refusal = track if isinstance(track, str) else _why_only_pyav(track)
    if refusal and backend not in ("auto", "pyav"):
        raise DecodeError(f"{backend} cannot be trusted with it ({refusal}); use backend pyav or auto")
    if isinstance(track, str):
        return LibavVideo(path), track
    if backend != "auto":
        return Mp4Video(path, track, backend, fallback=False), ""
    prepared = "made by gcvideo prepare transcode: little to decode, and PyAV starts sooner" if track.prepared else ""
    why = refusal or prepared or ("" if has_decord() else "decord is not installed")
    return Mp4Video(path, track, "pyav" if why else "decord", fallback=True), why


def why_missing(backend: str) -> str | None:
    """Why a backend cannot be used on this machine, and what to do; None where it can."""
    return "decord is not installed; use backend pyav or auto" if backend == "decord" and not has_decord() else None


def _why_only_pyav(track: Mp4Track) -> str | None:
    """Why another decoder may give wrong frames even of a slice; None where it may not."""
    if track.info.reorder is None and track.table.reorder:
        return "the stream does not tell how pictures are reordered, so that decoders guess"
    if track.info.codec == "hevc":
        return "HEVC, where only PyAV tells that a picture is lost"
    if track.info.bit_depth > 8:
        return "more than 8 bits a sample"  # other rounding than PyAV's
    return None


def _one_line(error: Exception) -> str:
    # PyAV's errors are OSErrors, whose text repeats the path; those of decord begin with a place in its source.
    text = str(getattr(error, "strerror", None) or error).partition("Check failed: ")
    lines = re.sub(r"^.*\.(cpp|h):\d+, ", "", (text[2] or text[0]).strip()).splitlines()
    return lines[0] if lines else type(error).__name__
