"""Inputs of a predictor: names on a command line; videos as paths, bytes, files, arrays and iterators of frames."""

import glob
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.annotations import load_records, videos_under
from gcvideo.data.annotations.table import SHARD_FILES, Readings
from gcvideo.data.dataset import VideoViews, ViewDataset, Windows, cut_views
from gcvideo.data.loader import Loader, eval_loader
from gcvideo.data.records import Failure, RecordTable, VideoRecord
from gcvideo.errors import VideoError
from gcvideo.video import FrameStream, StreamFrame, open_video
from gcvideo.video.frame_folder import FrameArray, is_frame_folder
from gcvideo.video.reader import MAX_BYTES, VideoReader
from gcvideo.video.stream import URL, without_credentials
from gcvideo.video.tar_members import in_memory

Frame: TypeAlias = np.ndarray | Tensor
Video: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Frame | Iterable[Frame]
Several: TypeAlias = list[Any] | tuple[Any, ...]

ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
LIVE = re.compile(rf"camera:\d+$|{URL.pattern}")
LISTS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")
OWN_RATE = "tells its own frame rate; fps is for arrays, iterators and folders of frames"
SECONDS_AT_ONCE = 30.0  # of windows, so that a file of any length fits into memory


def find_videos(names: Sequence[str], *, root: str | None = None) -> tuple[RecordTable, list[str], list[Failure]]:
    """What names on a command line mean, see ``find_sources``: files, each once; live sources; and what is refused.

    Args:
        names: of videos and of lists.
        root: folder of the videos of the lists; by default each list's own folder.

    Raises:
        DataError: a list cannot be used, or none of its rows.
    """
    found = [source for name in names for source in find_sources(name, root=root)]
    files = {os.path.abspath(str(source)): source for source in found if isinstance(source, VideoRecord)}
    live = [source for source in found if isinstance(source, str)]
    refused = [source for source in found if isinstance(source, Failure)]
    return RecordTable.of_records(list(files.values())), live, refused


def find_sources(name: str, *, root: str | None = None) -> list[VideoRecord | str | Failure]:
    """What a name on a command line means: files, the name of a live source, or what is refused and why.

    An annotation that ``load_records`` reads (``.txt``, ``.csv``, ``.parquet``) means the videos in its rows; those
    that cannot be used, as their file is missing, are refused. An existing file or folder is taken as such, even if its
    name looks like something else. Otherwise an integer and ``camera:N`` are cameras, ``rtsp://...`` and ``http://...``
    are streams, ``-`` is standard input, and ``*``, ``?`` and ``[...]`` (and ``**`` for all folders below) make a
    pattern. A folder of frames is one video; other folders give the videos inside them and in their subfolders, by
    name, as in a data set of class folders.
    """
    if name.lower().endswith(LISTS) or (os.path.isdir(name) and SHARD_FILES & {*os.listdir(name)}):
        readings = Readings()
        table = load_records(name, root=root, readings=readings)
        if not len(table):
            load_records(name, root=root)  # says what is wrong with all rows
        refused = [Failure(row.id, row.path, row.reason.removeprefix(f"{row.path}: ")) for row in readings.refusals]
        return [*table, *refused, *(Failure(id_, id_, "is listed but not among the files") for id_ in table.missing)]
    if os.path.isdir(name) and (not is_frame_folder(name) or videos_under(name, files_only=True)):
        inside = [VideoRecord(os.path.join(name, path), -1, path) for path in videos_under(name)]
        return [*inside] or [Failure(name, name, "a folder without videos")]
    paths = [name.rstrip(os.sep)]
    if not os.path.lexists(name):
        if name == "-" or name.isdecimal() or LIVE.match(name):
            return [f"camera:{name}" if name.isdecimal() else name]
        if ANY_URL.match(name):
            shown = without_credentials(name)
            reason = "is a URL of a kind that is not read; take rtsp, http, https, rtmp or udp, or download it first"
            return [Failure(shown, shown, reason)]
        if glob.has_magic(name):
            # A link to a folder above gives its files many names; the shortest one is kept.
            files = sorted(glob.glob(name, recursive=True), key=len, reverse=True)
            unique = {
                os.path.realpath(path): path for path in files if not os.path.isdir(path) or is_frame_folder(path)
            }
            paths = sorted(unique.values())
    return [VideoRecord(path, -1, os.path.basename(path)) for path in paths] or [
        Failure(name, name, "no file matches this pattern")
    ]


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

    Windows over a long file come in several portions, one after the other, with the index of their video.

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
    if isinstance(videos, RecordTable) and windows:
        return _portions(videos, workers, **views)
    if isinstance(videos, RecordTable):
        return eval_loader(ViewDataset(videos, **views), workers=min(workers, len(videos)))
    if fps is not None:
        views["data"] = replace(data, frame_rate=_rate(fps, "the video"))
    kinds = [_kind(video) for video in videos]
    for kind, name in kinds:
        if kind == "path" and LIVE.match(name):
            raise VideoError(name, "is a stream, which only a timeline reads; or download it first")
    if fps is not None and videos and not any(map(_is_folder, videos)) and "frames" not in dict(kinds):
        raise VideoError(kinds[0][1], OWN_RATE)
    if videos and all(kind == "path" for kind, _ in kinds):
        return input_views(RecordTable.of_files([*map(os.fspath, videos)]), workers=workers, **views)  # type: ignore[arg-type]
    places = [f" (number {i} of {len(videos)})" if len(videos) > 1 else "" for i in range(1, len(videos) + 1)]
    return (
        _views(video, kind, name + place, fps, **views)._replace(index=index)
        for index, (video, (kind, name), place) in enumerate(zip(videos, kinds, places, strict=True))
    )


def _portions(records: RecordTable, workers: int, *, windows: Windows, **views: Any) -> Iterator[VideoViews]:
    """The views of the windows over records, no more than ``SECONDS_AT_ONCE`` of a file at a time."""
    dataset = ViewDataset(records, windows=windows, **views)
    portions, owners = [], []
    lengths = Loader(dataset, dataset.spans, lambda spans: spans, range(len(records)), workers)
    for index, (record, spans) in enumerate(zip(records, lengths, strict=True)):
        cut = [record]  # also one that cannot be read, as its views will tell
        if spans is not None and (seconds := spans[-1, 1] - spans[0, 0]) > SECONDS_AT_ONCE:
            parts = np.array_split(spans, min(math.ceil(seconds / SECONDS_AT_ONCE), len(spans)))
            moments = enumerate((float(part[0, 0]), float(part[-1, 1])) for part in parts)
            cut = [replace(record, id=f"{record.id}#{i}", start=a, end=b, may_be_cut=False) for i, (a, b) in moments]
        portions += cut
        owners += [index] * len(cut)
    for found in eval_loader(ViewDataset(RecordTable.of_records(portions), windows=windows, **views), workers=workers):
        yield found._replace(index=owners[found.index])


def open_frames(video: Video, *, fps: float | None = None, frame_rate: float | None = None) -> FrameStream:
    """The frames of a video of any kind, one after the other; see ``input_views``, and ``open_video`` for the rate."""
    kind, name = _kind(video)
    source: Any = video
    if _is_folder(source):
        folder = open_video(os.fspath(source))
        frames = (folder.frames([i])[0] for i in range(len(folder)))
        return _Frames(frames, _rate(fps or frame_rate, name), name, len(folder))
    if kind == "frames":
        return _Frames(source, _rate(fps, name), name)
    if fps is not None:
        raise VideoError(name, OWN_RATE)
    return FrameStream(os.fspath(source) if kind == "path" else _open(source, name), name=name)


def rereadable(video: Video) -> Video:
    """A video that can be read several times: the frames of an iterator become an array."""
    kind, name = _kind(video)
    return _collect(video, name) if kind == "frames" else video


def _views(video: Any, kind: str, name: str, fps: float | None, data: DataConfig, **views: Any) -> VideoViews:
    if kind == "frames":
        timed = data.target_fps or views["windows"] is not None or fps is not None
        rate = _rate(fps, name) if timed else 25.0  # nothing depends on it
        reader = VideoReader(name, FrameArray(_collect(video, name), rate))
        pixels, clips, crops, spans = cut_views(reader, VideoRecord(name, -1, name), data=data, **views)
        return VideoViews(pixels, clips, crops, -1, 0, name, None, spans)
    if kind == "path":
        place: Any = nullcontext(os.fspath(video))
    else:
        file = _open(video, name)
        place = in_memory(iter(lambda: file.read(1 << 20), b""))
    with place as path:
        found = ViewDataset(RecordTable.of_files([path]), data=data, **views)[0]
    return found._replace(id=name, failure=found.failure and found.failure._replace(id=name, path=name))


class _Frames(FrameStream):
    """Frames that somebody else makes, one after the other, at a steady rate."""

    def __init__(self, frames: Iterable[Frame], fps: float, name: str, expected: int | None = None) -> None:
        self._frames, self.fps, self.name, self.expected = frames, fps, name, expected

    def __iter__(self) -> Iterator[StreamFrame]:
        for index, frame in enumerate(_each(self._frames, self.name)):
            yield StreamFrame(index, index / self.fps, frame)

    def close(self) -> None:
        """Nothing is open."""


def _kind(video: object) -> tuple[Literal["path", "bytes", "file", "frames"], str]:
    """The kind of a video, and its name in messages."""
    if isinstance(video, str | os.PathLike):
        return "path", without_credentials(os.fspath(video))
    if isinstance(video, bytes | bytearray | memoryview):
        return "bytes", "bytes"
    if hasattr(video, "read"):
        return "file", str(getattr(video, "name", "the open file"))
    if isinstance(video, Frame):
        return "frames", "the array"
    if isinstance(video, Iterable) and not isinstance(video, list | tuple | dict | set):
        return "frames", "the iterator of frames"
    raise VideoError(
        type(video).__name__,
        "is no video: give a path, bytes, an open binary file, an array (T, H, W, 3), or an iterator of frames",
    )


def _is_folder(video: object) -> bool:
    return isinstance(video, str | os.PathLike) and is_frame_folder(os.fspath(video))


def _rate(fps: float | None, name: str) -> float:
    if fps is None:
        raise VideoError(name, "has no frame rate of its own: give fps= (--fps), its frames per second")
    if not isinstance(fps, int | float | np.number) or not 0 < fps < math.inf:
        raise VideoError(name, f"fps must be a number of frames per second above 0, not {fps!r}")
    return float(fps)


def _open(video: Any, name: str) -> IO[bytes]:
    """The content of a file, or an open file, from its beginning."""
    file: Any = io.BytesIO(video) if isinstance(video, bytes | bytearray | memoryview) else video
    if getattr(file, "closed", False) or isinstance(file, io.TextIOBase):
        raise VideoError(name, "is closed, or open as text; open it with open(path, 'rb')")
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    return file


def _collect(frames: Any, name: str) -> np.ndarray:
    """Every frame of an array, a tensor or an iterator, uint8 (T, H, W, 3)."""
    if isinstance(frames, Frame):
        next(_each(frames, name))  # all others are like the first
        return np.asarray(frames.cpu() if isinstance(frames, Tensor) else frames)
    kept, room = [], MAX_BYTES
    for frame in _each(frames, name):
        room -= frame.nbytes
        if room < 0:
            raise VideoError(name, f"gives more than {MAX_BYTES >> 30} GiB of frames; timelines take any length")
        kept.append(frame.copy())  # a camera loop may write the next frame to the same place
    return np.stack(kept)


def _each(frames: Iterable[Any], name: str) -> Iterator[np.ndarray]:
    """Each frame of an array, a tensor or an iterator (of arrays, tensors or pictures), uint8 (H, W, 3)."""
    size = None
    for index, frame in enumerate(frames):
        pixels = frame.cpu() if isinstance(frame, Tensor) else np.asarray(frame)
        shape, kind = tuple(pixels.shape), str(pixels.dtype).removeprefix("torch.")
        size = size or shape
        if shape != size or len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != "uint8":
            wanted = "(H, W, 3), RGB, uint8 from 0 to 255, all of one size; several videos make a list"
            raise VideoError(name, f"frame {index} is {kind} of shape {shape}; frames are {wanted}")
        yield np.asarray(pixels)
    if size is None:
        raise VideoError(name, "holds no frame")
