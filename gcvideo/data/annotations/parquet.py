"""An index in Parquet, as ``gcvideo prepare index`` and ``gcvideo prepare shard`` write it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gcvideo.data.annotations.table import Annotation, normalize
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.video.tar_members import INDEX, MANIFEST


def read_index(annotation: Annotation) -> RecordTable:
    """Records of a Parquet file with the columns ``id``, ``path``, ``label`` (integers), ``start``, ``end``.

    The schema's metadata may hold, each as JSON, the ``classes`` in label order, the ``root`` of the paths relative to
    the file, the ids that are ``missing``, and the sizes of the ``shards`` that the videos lie in.

    Raises:
        DataError: the file is no such index, was made with other classes, or a shard is missing.
    """
    path, root = annotation.path, annotation.root if annotation.root_given else None
    try:
        spans = [name for name in ("start", "end") if name in pq.read_schema(path).names]
        columns = pq.read_table(path, columns=["id", "path", "label", *spans])
        metadata = columns.schema.metadata or {}
        stored = json.loads(metadata.get(b"classes", b"null"))
        missing = json.loads(metadata.get(b"missing", b"[]"))
        root = root or path.parent / json.loads(metadata.get(b"root", b'"."'))
        shards = {
            os.path.join(root, name): int(size) for name, size in json.loads(metadata.get(b"shards", b"{}")).items()
        }
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path}: not an index of videos ({str(error).strip().splitlines()[0]})") from None
    stored = tuple(map(normalize, stored)) if stored is not None else None
    if None not in (annotation.classes, stored) and annotation.classes != stored:
        raise DataError(f"{path}: was made with other classes; make the index again with the new list of classes")
    _check_shards(path, shards)
    ids, paths = (columns[name].combine_chunks() for name in ("id", "path"))
    labels, classes = np.asarray(columns["label"]), annotation.classes or stored
    times = np.column_stack([np.asarray(columns[name], float) for name in spans]) if len(spans) == 2 else None
    source = str(path)
    return RecordTable(
        ids=ids, paths=paths, labels=labels, root=root, classes=classes, source=source, missing=missing, segments=times
    )


def index_of_shards(path: Path) -> Path | None:
    """The index of a folder of tar shards, or of its manifest; None for anything else.

    Raises:
        DataError: the shards are not complete.
    """
    folder = path.parent if path.name == MANIFEST else path
    if (folder / INDEX).exists():
        return folder / INDEX
    if (folder / MANIFEST).exists():
        raise DataError(f"{folder}: has no {INDEX}; run the same gcvideo prepare shard again, which writes only that")
    if (folder / f"{MANIFEST}.partial").exists():
        raise DataError(f"{folder}: not all shards are there yet; run the same gcvideo prepare shard again")
    return None


def _check_shards(annotation: Path, shards: Mapping[str, int]) -> None:
    """Raise where a shard is missing or has another size than the index says: its videos would all be lost."""
    for path, expected in shards.items():
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size != expected:
            found = "is not there" if size is None else f"has {size:,} bytes instead of {expected:,}"
            raise DataError(f"{path}: {found}; copy the shards of {annotation} again, or give the folder as root")
