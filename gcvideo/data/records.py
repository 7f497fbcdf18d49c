"""The records of a data set: one table, in columns."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gcvideo.console import printable
from gcvideo.errors import DataError


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: where it lies, its label (-1: unknown) and the name it goes by in reports."""

    path: str
    label: int
    id: str


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

    Attributes:
        labels: int32 (len,).
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
    ) -> None:
        self._ids = _column(ids)
        self._paths = _column(paths)
        self.labels = np.fromiter(labels, dtype=np.int32)
        self.root = str(root)
        self.classes = tuple(classes) if classes is not None else None
        self.source = source
        self.missing = tuple(missing)

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
        return VideoRecord(path=path, label=int(self.labels[index]), id=_text(self._ids[index].as_py()))

    def select(self, indices: Sequence[int] | np.ndarray) -> RecordTable:
        """The records of these indices, in this order."""
        table = RecordTable(ids=(), paths=(), labels=(), root=self.root, classes=self.classes, source=self.source)
        rows = np.asarray(indices, dtype=np.int64)
        table._ids, table._paths, table.labels = self._ids.take(rows), self._paths.take(rows), self.labels[rows]
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
