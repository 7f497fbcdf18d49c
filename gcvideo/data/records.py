"""The records of a data set: one table, in columns."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gcvideo.console import printable
from gcvideo.errors import DataError, VideoError
from gcvideo.files import hash_text

KINETICS_CLIP = r"^.{11}_\d{6}_\d{6}$"
END_TOLERANCE = 1.0  # seconds: annotated times are often rounded to whole seconds


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One labelled video, or a segment of one.

    Attributes:
        path: of the file.
        label: -1 where unknown; of a table of several labels a video all of them, rising, or none.
        id: the name in reports and lists.
        start: seconds from the first frame to the begin of the segment; None for a whole video.
        end: seconds from the first frame to the end of the segment; None for a whole video.
        may_be_cut: whether a file that is no longer than the segment is the segment itself, already cut.
    """

    path: str
    label: int | tuple[int, ...]
    id: str
    start: float | None = None
    end: float | None = None
    may_be_cut: bool = False

    def __str__(self) -> str:
        """The path, with the times of a segment: ``a.mp4#t=1.5,3``."""
        return self.path if self.start is None else f"{self.path}#t={self.start:.10g},{self.end:.10g}"

    @property
    def label_text(self) -> str:
        """The label as text: ``3``, of several ``3,17``."""
        return ",".join(map(str, self.label)) if isinstance(self.label, tuple) else str(self.label)

    def span(self, times: np.ndarray) -> tuple[float, float]:
        """Start and end of the segment in this file, in seconds from its first frame.

        Args:
            times: float64 (frames,), the presentation time of each frame in seconds, rising.

        Raises:
            VideoError: the segment ends more than ``END_TOLERANCE`` seconds behind the end of the video.
        """
        count = len(times)
        duration = float(times[-1] - times[0]) * count / max(count - 1, 1)  # the last frame has a duration too
        if self.start is None or self.end is None:
            return 0.0, duration
        if self.may_be_cut and duration <= self.end - self.start + END_TOLERANCE:
            return 0.0, duration
        if self.start >= max(duration, 1e-6) or self.end > duration + END_TOLERANCE:
            reason = f"its segment from {self.start:g} to {self.end:g} s lies beyond its end ({duration:.2f} s)"
            raise VideoError(self.path, reason)
        return self.start, min(self.end, duration)

    def frame_range(self, times: np.ndarray) -> tuple[int, int]:
        """First frame of the segment, and the one after its last; see ``span``."""
        return frames_between(times - times[0], *self.span(times))


class Failure(NamedTuple):
    """A video that could not be read, and why."""

    id: str
    path: str
    reason: str


class RecordTable:
    """Records in columns: Kinetics-700 takes tens of megabytes, and worker processes share them untouched.

    A ``VideoRecord`` is made on access.

    Args:
        ids: of the videos.
        paths: relative to ``root``, or absolute.
        labels: integers, -1 where unknown; or of several labels a video an Arrow array of lists of integers, null where
            unknown.
        root: folder of the videos.
        classes: class names in label order, where known.
        source: the annotation that the table was read from.
        missing: ids that the annotation has and the folder does not.
        segments: (len, 2), start and end in seconds, NaN for a whole video, or (len, 3), and whether the file may be
            the segment, already cut; None where all videos are whole.

    Attributes:
        labels: int32 (len,); where videos have several labels, how many each has. -1 where unknown.
        sets: the labels of each video where it may have several (Arrow, list<int32>: offsets and one flat array);
            else None.
    """

    def __init__(
        self,
        *,
        ids: Iterable[str],
        paths: Iterable[str],
        labels: Iterable[int] | pa.Array,
        root: str | Path = "",
        classes: Sequence[str] | None = None,
        source: str = "",
        missing: Sequence[str] = (),
        segments: np.ndarray | None = None,
    ) -> None:
        self._ids = _column(ids)
        self._paths = _column(paths)
        self.sets = labels.cast(pa.list_(pa.int32())) if isinstance(labels, pa.Array) else None
        counts = labels if self.sets is None else pc.fill_null(pc.list_value_length(self.sets), -1).to_numpy()
        self.labels = np.fromiter(counts, dtype=np.int32)
        self.root = str(root)
        self.classes = tuple(classes) if classes is not None else None
        self.source = source
        self.missing = tuple(missing)
        if segments is not None and segments.shape[1] == 2:
            segments = None if np.isnan(segments).all() else np.column_stack([segments, self._may_be_cut()])
        self._segments = segments  # float64 (len, 3): start, end, may_be_cut

    @classmethod
    def of_files(cls, paths: Sequence[str | Path]) -> RecordTable:
        """Unlabelled videos, for prediction: the ids are the paths."""
        return cls.of_records([VideoRecord(str(path), -1, str(path)) for path in paths])

    @classmethod
    def of_records(cls, records: Sequence[VideoRecord]) -> RecordTable:
        """A table of these records, without their labels; an id that several have becomes the path."""
        number = Counter(record.id for record in records)
        names = [record.id if number[record.id] == 1 else str(record) for record in records]
        paths, times = [record.path for record in records], [(r.start, r.end, r.may_be_cut) for r in records]
        segments = np.array(times, dtype=np.float64).reshape(-1, 3)  # None becomes NaN
        return cls(ids=names, paths=paths, labels=[-1] * len(names), segments=segments)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[VideoRecord]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> VideoRecord:
        index = range(len(self))[index]  # counts from the end where negative
        path = os.path.join(self.root, _text(self._paths[index].as_py()))
        found = self.sets[index].as_py() if self.sets is not None else None
        label = int(self.labels[index]) if found is None else tuple(found)
        id_ = _text(self._ids[index].as_py())
        if self._segments is None or np.isnan(self._segments[index]).any():
            return VideoRecord(path, label, id_)
        start, end, may_be_cut = self._segments[index].tolist()
        return VideoRecord(path, label, id_, start, end, bool(may_be_cut))

    def select(self, indices: Sequence[int] | np.ndarray) -> RecordTable:
        """The records of these indices, in this order."""
        table = RecordTable(ids=(), paths=(), labels=(), root=self.root, classes=self.classes, source=self.source)
        rows = np.asarray(indices, dtype=np.int64)
        table._ids, table._paths, table.labels = self._ids.take(rows), self._paths.take(rows), self.labels[rows]
        table.sets = self.sets.take(rows) if self.sets is not None else None
        table._segments = self._segments[rows] if self._segments is not None else None
        return table

    def find(self, ids: Iterable[str]) -> np.ndarray:
        """Indices of the records with these ids, int64, rising."""
        return np.flatnonzero(pc.is_in(self._ids, _column(ids)).to_numpy(False))

    def without_duplicates(self) -> RecordTable:
        """The first record of each id, in the same order."""
        _, first = np.unique(_codes(self._ids), return_index=True)
        return self if len(first) == len(self) else self.select(np.sort(first))

    def _may_be_cut(self) -> np.ndarray:
        """Which files, bool (len,), may be a clip and not a whole video: of Kinetics, and named by one record only."""
        _, first = np.unique(_codes(self._ids), return_index=True)
        paths = _codes(self._paths)
        clips = pc.match_substring_regex(self._ids, KINETICS_CLIP).to_numpy(zero_copy_only=False)
        return clips & (np.bincount(paths[first], minlength=len(paths))[paths] == 1)

    def require_text(self) -> None:
        """For what is written as UTF-8.

        Raises:
            DataError: the name of a video is no UTF-8.
        """
        for name in self._ids.to_pylist() + self._paths.to_pylist():
            try:
                name.decode()
            except UnicodeDecodeError:
                raise DataError(f"{printable(_text(name))}: this name is no UTF-8, so rename the file") from None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all (id, label) pairs in sorted order.

        It tells which videos with which labels a run saw. It covers neither the order of the rows nor where the files
        lie nor their bytes, so a copied or transcoded data set keeps its fingerprint.
        """
        ids, labels = map(_text, self._ids.to_pylist()), self.labels if self.sets is None else self.sets.to_pylist()
        return hash_text("".join(sorted(f"{id_}\t{label}\n" for id_, label in zip(ids, labels, strict=True))))

    @functools.cached_property
    def order(self) -> str:
        """SHA-256 (hex) of the ids in the order of the rows, which the order of samples depends on."""
        return hash_text("\n".join(map(_text, self._ids.to_pylist())))


def frames_between(times: np.ndarray, start: float, end: float) -> tuple[int, int]:
    """First frame shown from ``start`` on, and the one after the last before ``end``; never none.

    Args:
        times: float64 (frames,), seconds of each frame, rising.
        start: seconds.
        end: seconds.
    """
    first, last = np.searchsorted(times, [start - 1e-6, end - 1e-6]).tolist()
    return (first, last) if first < last else (max(first - 1, 0), max(first, 1))  # the frame shown at the start


def _column(texts: Iterable[str] | pa.Array) -> pa.Array:
    """Strings as bytes: the name of a file may hold some that are no UTF-8, which Python writes as lone surrogates."""
    if isinstance(texts, pa.Array):
        return texts.cast(pa.large_binary())
    return pa.array([text.encode("utf-8", "surrogateescape") for text in texts], type=pa.large_binary())


def _codes(column: pa.Array) -> np.ndarray:
    """Integers that are equal where the strings are, counted from 0 in the order of appearance."""
    return column.dictionary_encode().indices.to_numpy()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
