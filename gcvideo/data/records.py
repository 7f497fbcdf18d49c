"""The records of a data set: one table, in columns."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gcvideo.console import printable
from gcvideo.errors import DataError, VideoError

KINETICS_CLIP = re.compile(r"(?P<id>.{11})_(?P<start>\d{6})_(?P<end>\d{6})")
END_TOLERANCE = 1.0  # seconds: annotated times are often rounded to whole seconds


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One labelled video, or a segment of one.

    Attributes:
        path: of the file.
        label: -1 where unknown.
        id: the name in reports and lists.
        start: seconds from the first frame to the begin of the segment; None for a whole video.
        end: seconds from the first frame to the end of the segment; None for a whole video.
    """

    path: str
    label: int
    id: str
    start: float | None = None
    end: float | None = None

    def frame_range(self, times: np.ndarray) -> tuple[int, int]:
        """First frame of the segment, and the one after its last.

        A file that is named by a Kinetics clip id and is no longer than the clip is the clip itself, already cut.

        Args:
            times: float64 (frames,), the presentation time of each frame in seconds, rising.

        Raises:
            VideoError: the segment ends more than ``END_TOLERANCE`` seconds behind the end of the video.
        """
        if self.start is None or self.end is None:
            return 0, len(times)
        times = times - times[0]
        count = len(times)
        duration = float(times[-1]) * count / max(count - 1, 1)  # the last frame has a duration too
        if KINETICS_CLIP.fullmatch(self.id) and duration <= self.end - self.start + END_TOLERANCE:
            return 0, count
        if self.start >= max(duration, 1e-6) or self.end > duration + END_TOLERANCE:
            reason = f"its segment from {self.start:g} to {self.end:g} s lies beyond its end ({duration:.2f} s)"
            raise VideoError(self.path, reason)
        first, last = np.searchsorted(times, [self.start - 1e-6, self.end - 1e-6]).tolist()
        return (first, last) if first < last else (max(first - 1, 0), max(first, 1))  # the frame shown at the start


class StringColumn:
    """Strings gathered into an Arrow column, a chunk at a time: a long list of Python strings takes several times more.

    Args:
        chunk: strings that wait to be packed.
    """

    def __init__(self, chunk: int = 65_536) -> None:
        self._chunk = chunk
        self._waiting: list[str] = []
        self._packed: list[pa.Array] = []

    def append(self, text: str) -> None:
        """Add one string."""
        self._waiting.append(text)
        if len(self._waiting) >= self._chunk:
            self._pack()

    def finish(self) -> pa.Array:
        """The column."""
        self._pack()
        return pa.concat_arrays(self._packed)

    def _pack(self) -> None:
        self._packed.append(_column(self._waiting))
        self._waiting = []


class RecordTable(Sequence[VideoRecord]):
    """Records in columns: Kinetics-700 takes tens of megabytes, and worker processes share them untouched.

    A ``VideoRecord`` is made on access.

    Args:
        ids: of the videos.
        paths: relative to ``root``, or absolute.
        labels: integers, -1 where unknown.
        root: folder of the videos.
        classes: class names in label order, where known.
        source: the annotation that the table was read from.
        missing: ids that the annotation has and the folder does not.
        segments: (len, 2), start and end in seconds, NaN for a whole video; None where all videos are whole.

    Attributes:
        labels: int32 (len,).
        segments: float64 (len, 2), or None.
    """

    def __init__(
        self,
        *,
        ids: Iterable[str],
        paths: Iterable[str],
        labels: Iterable[int],
        root: str | Path = "",
        classes: Sequence[str] | None = None,
        source: str = "",
        missing: Sequence[str] = (),
        segments: np.ndarray | None = None,
    ) -> None:
        self._ids = _column(ids)
        self._paths = _column(paths)
        self.labels = np.fromiter(labels, dtype=np.int32)
        self.root = str(root)
        self.classes = tuple(classes) if classes is not None else None
        self.source = source
        self.missing = tuple(missing)
        self.segments = segments if segments is not None and not np.isnan(segments).all() else None

    @classmethod
    def of_files(cls, paths: Sequence[str | Path]) -> RecordTable:
        """Unlabelled videos, for prediction: the ids are the paths."""
        names = [str(path) for path in paths]
        return cls(ids=names, paths=names, labels=[-1] * len(names))

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> VideoRecord | RecordTable:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = int(index) % len(self)
        path = os.path.join(self.root, _text(self._paths[index].as_py()))
        start, end = (None, None) if self.segments is None else self.segments[index].tolist()
        if start != start:  # NaN
            start = end = None
        return VideoRecord(path, int(self.labels[index]), _text(self._ids[index].as_py()), start, end)

    def select(self, indices: Sequence[int] | np.ndarray) -> RecordTable:
        """The records of these indices, in this order."""
        table = RecordTable(ids=(), paths=(), labels=(), root=self.root, classes=self.classes, source=self.source)
        rows = np.asarray(indices, dtype=np.int64)
        table._ids, table._paths, table.labels = self._ids.take(rows), self._paths.take(rows), self.labels[rows]
        table.segments = self.segments[rows] if self.segments is not None else None
        return table

    def find(self, ids: Iterable[str]) -> np.ndarray:
        """Indices of the records with these ids, int64, rising."""
        return np.flatnonzero(pc.is_in(self._ids, _column(ids)).to_numpy(False))

    def contradiction(self) -> tuple[int, int] | None:
        """Indices of the first two records with one id and different labels; records without a label do not count."""
        labelled = np.flatnonzero(self.labels >= 0)
        codes = self._ids.take(labelled).dictionary_encode().indices.to_numpy()
        _, first = np.unique(codes, return_index=True)
        labels = self.labels[labelled]
        others = np.flatnonzero(labels != labels[first[codes]])
        return (int(labelled[first[codes[others[0]]]]), int(labelled[others[0]])) if len(others) else None

    def require_text(self) -> None:
        """For what is written as UTF-8.

        Raises:
            DataError: the name of a video is no UTF-8.
        """
        for column in (self._ids, self._paths):
            try:
                column.cast(pa.large_string())
            except pa.ArrowInvalid:
                name = next(text for text in map(_text, column.to_pylist()) if _is_escaped(text))
                raise DataError(f"{printable(name)}: a name that is no UTF-8 cannot be listed: rename it") from None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all (id, label) pairs in sorted order.

        It tells which videos with which labels a run saw. It covers neither the order of the rows nor where the files
        lie nor their bytes, so a copied or transcoded data set keeps its fingerprint.
        """
        digest = hashlib.sha256()
        ids = map(_text, self._ids.to_pylist())
        for line in sorted(f"{id_}\t{label}\n" for id_, label in zip(ids, self.labels, strict=True)):
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @functools.cached_property
    def order(self) -> str:
        """SHA-256 (hex) of the ids in the order of the rows, which the order of samples depends on."""
        ids = "\n".join(map(_text, self._ids.to_pylist()))
        return hashlib.sha256(ids.encode("utf-8", "surrogateescape")).hexdigest()


def _column(texts: Iterable[str] | pa.Array) -> pa.Array:
    """Strings as bytes: the name of a file may hold some that are no UTF-8, which Python writes as lone surrogates."""
    if isinstance(texts, pa.Array):
        return texts.cast(pa.large_binary())
    return pa.array([text.encode("utf-8", "surrogateescape") for text in texts], type=pa.large_binary())


def _is_escaped(text: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
