"""Inputs of a predictor: names on a command line; videos as paths, bytes, files, arrays and iterators of frames."""

import contextlib
import glob
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.annotations import Readings, load_records, videos_under
from gcvideo.data.annotations.parquet import SHARD_FILES
from gcvideo.data.bad_videos import Failure
from gcvideo.data.dataset import VideoViews, ViewDataset, Windows, cut_views
from gcvideo.data.loader import eval_loader
from gcvideo.data.records import RecordTable, VideoRecord
from gcvideo.errors import VideoError
from gcvideo.video import FrameStream, StreamFrame, open_video
from gcvideo.video.frame_folder import is_frame_folder
from gcvideo.video.mp4_slice import in_memory
from gcvideo.video.reader import MAX_BYTES, open_array
from gcvideo.video.stream import URL, without_credentials

Frame: TypeAlias = np.ndarray | Tensor
Video: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Frame | Iterable[Frame]
Several: TypeAlias = list[Any] | tuple[Any, ...]

ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
LIVE = re.compile(rf"camera:\d+$|{URL.pattern}")
LISTS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")


class Source(NamedTuple):
    """One video to label, or a name that is refused, with the reason."""

    name: str
    kind: Literal["file", "camera", "stream", "stdin", "refused"] = "file"
    reason: str | None = None


def find_videos(names: Sequence[str], *, root: str | None = None) -> tuple[RecordTable, list[Source]]:
    """The videos of files, folders, patterns and lists, each once, and the sources that are no files.

    Rows of lists that cannot be used, as their file is missing, are among these too.

    Args:
        names: as for ``find_sources``, or annotations that ``load_records`` reads (``.txt``, ``.csv``, ``.parquet``).
        root: folder of the videos of the lists; by default each list's own folder.

    Raises:
        DataError: a list cannot be used, or none of its rows.
    """
    records: list[VideoRecord] = []
    others: list[Source] = []
    for name in names:
        if name.lower().endswith(LISTS) or (os.path.isdir(name) and SHARD_FILES & {*os.listdir(name)}):
            readings = Readings()
            table = load_records(name, root=root, readings=readings)
            if not len(table):
                load_records(name, root=root)  # says what is wrong with all rows
            records += table
            others += [Source(r.path, "refused", r.reason.removeprefix(f"{r.path}: ")) for r in readings.refusals]
            others += [Source(id_, "refused", "is listed but not among the files") for id_ in table.missing]
            continue
        folder = os.path.join(name, "") if os.path.isdir(name) else None
        for source in find_sources(name):
            if source.kind == "file":
                path = source.name
                records.append(VideoRecord(path, -1, path.removeprefix(folder) if folder else os.path.basename(path)))
            else:
                others.append(source)
    return RecordTable.of_records(list({os.path.abspath(str(record)): record for record in records}.values())), others


def find_records(names: Sequence[str], *, root: str | None = None) -> tuple[RecordTable, list[Failure]]:
    """As ``find_videos``, but what is no file is refused, with the reason."""
    records, others = find_videos(names, root=root)
    places = [without_credentials(source.name) for source in others]
    reasons = [source.reason or f"is no file but a {source.kind}, which has no end" for source in others]
    return records, list(map(Failure, places, places, reasons))


def find_sources(name: str) -> list[Source]:
    """What a name on a command line means.

    An existing file or folder is taken as such, even if its name looks like something else. Otherwise an integer and
    ``camera:N`` are cameras, ``rtsp://...`` and ``http://...`` are streams, ``-`` is standard input, and ``*``, ``?``
    and ``[...]`` (and ``**`` for all folders below) make a pattern. A folder of frames is one video; other folders give
    the videos inside them and in their subfolders, by name, as in a data set of class folders.
    """
    if is_frame_folder(name) and not videos_under(name, files_only=True):
        return [Source(os.path.normpath(name))]
    if os.path.isdir(name):
        found = [Source(os.path.join(name, path)) for path in videos_under(name)]
        return found or [Source(name, "refused", "a folder without videos")]
    if os.path.lexists(name):
        return [Source(name)]
    if name == "-":
        return [Source(name, "stdin")]
    if name.isdecimal():
        return [Source(name, "camera")]
    if LIVE.match(name):
        return [Source(name, "stream" if URL.match(name) else "camera")]
    if ANY_URL.match(name):
        reason = "is a URL of a kind that is not read; take rtsp, http, https, rtmp or udp, or download it first"
        return [Source(name, "refused", reason)]
    if glob.has_magic(name):
        # A link to a folder above gives its files many names; the shortest one is kept.
        files = sorted(glob.glob(name, recursive=True), key=len, reverse=True)
        unique = {os.path.realpath(path): path for path in files if not os.path.isdir(path) or is_frame_folder(path)}
        found = [Source(path) for path in sorted(unique.values())]
        return found or [Source(name, "refused", "no file matches this pattern")]
    return [Source(name)]


def input_views(
    videos: Sequence[Video] | RecordTable,
    *,
    fps: float | None = None,
    data: DataConfig,
    test: TestConfig,
    windows: Windows | None = None,
    workers: int = 0,
) -> Iterable[VideoViews]:
    """The views of videos of any kind, in their order, for ``gcvideo.eval.evaluator.view_outputs``.

    Args:
        videos: see ``Predictor.predict``; or records, of files.
        fps: frames per second of those that have no times of their own: arrays, iterators, folders of frames.
        data: length and stride of a clip, decoder.
        test: number and place of the views.
        windows: views of each of these parts of a video, instead of the whole.
        workers: processes that decode ahead, where all videos are paths.

    Raises:
        VideoError: something is no video, or frames are of a wrong shape or type. A file that cannot be read is a
            ``failure`` in its place instead.
    """
    views: dict[str, Any] = {"data": data, "test": test, "windows": windows}
    if isinstance(videos, RecordTable):
        return eval_loader(ViewDataset(videos, **views), workers=min(workers, len(videos)))
    kinds = [_kind(video) for video in videos]
    if fps is not None and any(map(_is_folder, videos)):
        views["data"] = replace(data, frame_rate=_rate(fps, _name(videos[0])))
    elif fps is not None and videos and "frames" not in kinds:
        raise VideoError(_name(videos[0]), "tells its own frame rate; fps is for arrays and iterators of frames")
    for video, kind in zip(videos, kinds, strict=True):
        if kind == "path" and LIVE.match(os.fspath(video)):  # type: ignore[arg-type]
            raise VideoError(_name(video), "is a stream, which only a timeline reads; or download it first")
    if set(kinds) == {"path"}:
        return input_views(RecordTable.of_files([*map(os.fspath, videos)]), workers=workers, **views)  # type: ignore[arg-type]
    places = [f" (number {i} of {len(videos)})" if len(videos) > 1 else "" for i in range(1, len(videos) + 1)]
    return (
        _views(video, kind, _name(video) + place, fps, **views)._replace(index=index)
        for index, (video, kind, place) in enumerate(zip(videos, kinds, places, strict=True))
    )


def open_frames(video: Video, *, fps: float | None = None, frame_rate: float | None = None) -> FrameStream:
    """The frames of a video of any kind, one after the other; see ``input_views``, and ``open_video`` for the rate."""
    kind, name = _kind(video), _name(video)
    if _is_folder(video):
        folder = open_video(os.fspath(video))  # type: ignore[arg-type]
        stream = _Frames((folder.frames([i])[0] for i in range(len(folder))), _rate(fps or frame_rate, name), name)
        stream.expected = len(folder)
        return stream
    if kind == "frames":
        return _Frames(video, _rate(fps, name), name)
    if fps is not None:
        raise VideoError(name, "tells its own frame rate; fps is for arrays and iterators of frames")
    if kind == "path":
        return FrameStream(os.fspath(video))  # type: ignore[arg-type]
    return FrameStream(io.BytesIO(video) if kind == "bytes" else _from_the_start(video, name), name=name)  # type: ignore[arg-type]


def _views(video: Any, kind: str, name: str, fps: float | None, data: DataConfig, **views: Any) -> VideoViews:
    with contextlib.ExitStack() as opened:
        if kind == "frames":
            timed = data.target_fps or views["windows"] is not None or fps is not None
            frames = _pixels(video, name, 4) if isinstance(video, Frame) else _collect(video, name)
            reader = open_array(frames, fps=_rate(fps, name) if timed else 25.0, name=name)  # 25: nothing depends on it
            pixels, clips, crops, spans = cut_views(reader, VideoRecord(name, -1, name), data=data, **views)
            return VideoViews(pixels, clips, crops, -1, 0, name, None, spans)
        if kind == "path":
            path = name = os.fspath(video)
        else:
            file = io.BytesIO(video) if kind == "bytes" else _from_the_start(video, name)
            path = opened.enter_context(in_memory(iter(lambda: file.read(1 << 20), b"")))
        found = ViewDataset(RecordTable.of_files([path]), data=data, **views)[0]
    failure = found.failure and found.failure._replace(id=name, path=name)
    return found._replace(id=name, failure=failure)


class _Frames(FrameStream):
    """Frames that somebody else makes, one after the other, at a steady rate."""

    def __init__(self, frames: Any, fps: float, name: str) -> None:
        whole = isinstance(frames, Frame)
        self._frames = _pixels(frames, name, 4) if whole else frames
        self.name, self.fps = name, fps
        self.expected = len(self._frames) if whole else None

    def __iter__(self) -> Iterator[StreamFrame]:
        for index, frame in enumerate(_each(self._frames, self.name)):
            yield StreamFrame(index, index / self.fps, frame)

    def close(self) -> None:
        """Nothing is open."""


def _kind(video: object) -> Literal["path", "bytes", "file", "frames"]:
    if isinstance(video, str | os.PathLike):
        return "path"
    if isinstance(video, bytes | bytearray | memoryview):
        return "bytes"
    if hasattr(video, "read"):
        return "file"
    if isinstance(video, Frame) or (isinstance(video, Iterable) and not isinstance(video, list | tuple | dict | set)):
        return "frames"
    raise VideoError(
        type(video).__name__,
        "is no video: give a path, bytes, an open binary file, an array (T, H, W, 3), or an iterator of frames",
    )


def _is_folder(video: object) -> bool:
    return _kind(video) == "path" and is_frame_folder(os.fspath(video))  # type: ignore[call-overload]


def _name(video: object) -> str:
    """A video in messages."""
    kind = _kind(video)
    if kind == "path":
        return without_credentials(os.fspath(video))  # type: ignore[call-overload]
    if kind == "file":
        name = getattr(video, "name", None)
        return "standard input" if name == "<stdin>" else name if isinstance(name, str) else "the open file"
    return "bytes" if kind == "bytes" else "the array" if isinstance(video, Frame) else "the iterator of frames"


def _rate(fps: float | None, name: str) -> float:
    if fps is None:
        raise VideoError(name, "has no frame rate of its own: give fps= (--fps), its frames per second")
    if not isinstance(fps, int | float | np.number) or not 0 < fps < math.inf:
        raise VideoError(name, f"fps must be a number of frames per second above 0, not {fps!r}")
    return float(fps)


def _from_the_start(file: Any, name: str) -> Any:
    if getattr(file, "closed", False):
        raise VideoError(name, "is a closed file; open it with open(path, 'rb')")
    if isinstance(file, io.TextIOBase):
        raise VideoError(name, "is open as text; open it with open(path, 'rb')")
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    return file


def _collect(frames: Iterable[Frame], name: str) -> np.ndarray:
    """Every frame of an iterator, uint8 (T, H, W, 3)."""
    kept, room = [], MAX_BYTES
    for frame in _each(frames, name):
        room -= frame.nbytes
        if room < 0:
            raise VideoError(name, f"gives more than {MAX_BYTES >> 30} GiB of frames; timelines take any length")
        kept.append(frame.copy())  # a camera loop may write the next frame to the same place
    return np.stack(kept)


def _each(frames: Iterable[Frame], name: str) -> Iterator[np.ndarray]:
    """Each frame of an iterator or of a checked array, uint8 (H, W, 3), all of one size."""
    size = None
    for index, frame in enumerate(frames):
        checked = np.asarray(frame) if isinstance(frames, np.ndarray) else _pixels(frame, f"{name}, frame {index}", 3)
        size = size or checked.shape
        if checked.shape != size:
            raise VideoError(name, f"frame {index} has shape {checked.shape}, those before {size}")
        yield checked
    if size is None:
        raise VideoError(name, "holds no frame")


def _pixels(value: Any, name: str, dimensions: int) -> np.ndarray:
    """An array, tensor or picture as uint8 (T, H, W, 3) or (H, W, 3).

    Raises:
        VideoError: it is not, and how to make it so.
    """
    if not hasattr(value, "__array__") and not hasattr(value, "__array_interface__"):
        raise VideoError(name, f"is {type(value).__name__}, no array or tensor of pixels")
    pixels = value if isinstance(value, Tensor) else np.asarray(value)
    shape, wanted = tuple(pixels.shape), ("(T, H, W, 3)", "(H, W, 3)")[4 - dimensions]
    if len(shape) != dimensions or shape[-1] != 3 or 0 in shape:
        fix = ""
        if len(shape) == dimensions and 0 not in shape:
            fix = "; leave the alpha channel out" if shape[-1] == 4 else "; RGB comes last" if 3 in shape else ""
        elif len(shape) == dimensions + 1:
            fix = "; give several videos as a list"
        elif len(shape) == dimensions - 1 and shape[-1:] == (3,):
            fix = "; frames are stacked by numpy.stack"
        raise VideoError(name, f"has shape {shape}, not {wanted}{fix}")
    if pixels.dtype not in (np.uint8, torch.uint8):
        low, high = float(pixels.min()), float(pixels.max())
        kind = str(pixels.dtype).removeprefix("torch.")
        raise VideoError(name, f"has type {kind} and values from {low:g} to {high:g}; give uint8 from 0 to 255")
    return pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels
