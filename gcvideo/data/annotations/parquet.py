"""An index in Parquet, as ``gcvideo prepare index`` and ``gcvideo prepare shard`` write it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gcvideo.data.annotations.table import Annotation, normalize
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.video.tar_members import INDEX, MANIFEST

SHARD_FILES = {INDEX, MANIFEST, f"{MANIFEST}.partial"}  # in a folder of shards, which may be incomplete


def read_index(annotation: Annotation) -> RecordTable:
    """Records of a Parquet file with the columns ``id``, ``path``, ``label`` (integers or lists), ``start``, ``end``.

    A folder of tar shards, or its manifest, stands for the index in it.

    The schema's metadata may hold, each as JSON, the ``classes`` in label order, the ``root`` of the paths relative to
    the file, the ids that are ``missing``, and the sizes of the ``shards`` that the videos lie in.

    Raises:
        DataError: the file is no such index, was made with other classes, or a shard is missing.
    """
    path, root = annotation.path, annotation.root if annotation.root_given else None
    folder = path.parent if path.name == MANIFEST else path
    path = folder / INDEX if folder.is_dir() else path
    if not path.exists():
        raise DataError(f"{folder}: not all shards are there yet; run the same gcvideo prepare shard again")
    try:
        spans = [name for name in ("start", "end") if name in pq.read_schema(path).names]
        columns = pq.read_table(path, columns=["id", "path", "label", *spans])
        metadata = columns.schema.metadata or {}
        names = ("classes", "root", "missing", "shards")
        stored, home, missing, shards = (json.loads(metadata.get(name.encode(), b"null")) for name in names)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: not an index of videos ({str(error).strip().splitlines()[0]})") from None
    sets = columns["label"].combine_chunks() if pa.types.is_list(columns["label"].type) else None
    for name, expected in (("id", "string"), ("path", "string"), ("label", "int")):
        kind, empty = str(columns[name].type), columns[name].null_count
        if expected not in kind or (empty and "list" not in kind) or "dict" in kind:
            raise DataError(f"{path}: expected {expected} in the column {name}, found {kind} with {empty} empty cells")
    counted = columns if sets is None else columns.set_column(2, "label", pc.list_value_length(sets))
    known = counted.filter(pc.field("label") >= 0).group_by(["path", *spans])
    if (pc.max(known.aggregate([("label", "count_distinct")])["label_count_distinct"]).as_py() or 0) > 1:
        raise DataError(f"{path}: one video has two labels; remove one of its rows")
    root = root or path.parent / (home or ".")
    stored = tuple(map(normalize, stored)) if stored is not None else None
    if stored is None and annotation.names_only:
        raise DataError(f"{path}: has no class names; set data.classes to the names in the order of its labels")
    if None not in (annotation.classes, stored) and annotation.classes != stored:
        raise DataError(f"{path}: was made with other classes; make the index again with the new list of classes")
    for name, size in (shards or {}).items():
        if not (root / name).is_file() or (root / name).stat().st_size != size:  # all its videos would be lost
            fix = f"copy the shards of {path} again, or give their folder as root"
            raise DataError(f"{root / name}: expected a file of {size:,} bytes; {fix}")
    labels, classes = np.asarray(columns["label"] if sets is None else sets.flatten()), annotation.classes or stored
    limit = annotation.limit or len(classes or ()) or 1 << 31
    if len(labels) and not -1 <= labels.min() <= labels.max() < limit:
        raise DataError(f"{path}: has labels from {labels.min()} to {labels.max()}, expected 0 to {limit - 1}")
    return RecordTable(
        ids=columns["id"].combine_chunks(),
        paths=columns["path"].combine_chunks(),
        labels=labels if sets is None else sets,
        root=root,
        classes=classes,
        source=str(path),
        missing=missing or (),
        segments=np.column_stack([np.asarray(columns[name], float) for name in spans]) if spans else None,
    )
