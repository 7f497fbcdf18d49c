"""An index in Parquet, as ``gcvideo prepare index`` and ``gcvideo prepare shard`` write it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gcvideo.data.annotations.labels import normalize
from gcvideo.data.annotations.table import Annotation
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.video.tar_members import INDEX, JOURNAL, MANIFEST

SHARD_FILES = {INDEX, MANIFEST, JOURNAL}  # in a folder of shards, which may be incomplete


def read_index(annotation: Annotation) -> RecordTable:
    """Records of a Parquet file with the columns ``id``, ``path``, ``label`` (integers or lists), ``start``, ``end``.

    A folder of tar shards, or its manifest, stands for the index in it.

    The schema's metadata may hold, each as JSON, the ``classes`` in label order, the ``root`` of the paths relative to
    the file, the ids that are ``missing``, and the sizes of the ``shards`` that the videos lie in.

    Raises:
        DataError: the file is no such index, was made with other classes, or a shard is missing.
    """
    folder = annotation.path.parent if annotation.path.name == MANIFEST else annotation.path
    path = folder / INDEX if folder.is_dir() else folder
    if not path.exists():
        raise DataError(f"{folder}: not all shards are there yet; run the same gcvideo prepare shard again")
    schema = pq.read_schema(path)
    spans = [name for name in ("start", "end") if name in schema.names]
    several = pa.types.is_list(schema.field("label").type)
    label = pa.list_(pa.int32()) if several else pa.int32()
    kinds = {"id": pa.string(), "path": pa.string(), "label": label, **dict.fromkeys(spans, pa.float64())}
    columns = pq.read_table(path, columns=[*kinds]).select([*kinds]).cast(pa.schema(kinds))
    if empty := [name for name in ("id", "path", "label")[: 3 - several] if columns[name].null_count]:
        raise DataError(f"{path}: has empty cells in the column {empty[0]}")
    names = ("classes", "root", "missing", "shards")
    stored, home, missing, shards = (json.loads((schema.metadata or {}).get(name.encode(), b"null")) for name in names)
    sets = columns["label"].combine_chunks()
    counted = columns.set_column(2, "label", pc.list_value_length(sets)) if several else columns
    known = counted.filter(pc.field("label") >= 0).group_by(["path", *spans])
    if (pc.max(known.aggregate([("label", "count_distinct")])["label_count_distinct"]).as_py() or 0) > 1:
        raise DataError(f"{path}: one video has two labels; remove one of its rows")
    root = annotation.root if annotation.root_given else path.parent / (home or ".")
    stored = tuple(map(normalize, stored)) if stored is not None else None
    if stored is None and annotation.names_only:
        raise DataError(f"{path}: has no class names; set data.classes to the names in the order of its labels")
    if None not in (annotation.classes, stored) and annotation.classes != stored:
        raise DataError(f"{path}: was made with other classes; make the index again with the new list of classes")
    for name, size in (shards or {}).items():
        if not (root / name).is_file() or (root / name).stat().st_size != size:  # all its videos would be lost
            fix = f"copy the shards of {path} again, or give their folder as root"
            raise DataError(f"{root / name}: expected a file of {size:,} bytes; {fix}")
    labels, classes = np.asarray(sets.flatten() if several else sets), annotation.classes or stored
    limit = annotation.limit or len(classes or ()) or 1 << 31
    if len(labels) and not -1 <= labels.min() <= labels.max() < limit:
        raise DataError(f"{path}: has labels from {labels.min()} to {labels.max()}, expected 0 to {limit - 1}")
    return RecordTable(
        ids=columns["id"].combine_chunks(),
        paths=columns["path"].combine_chunks(),
        labels=sets if several else labels,
        root=root,
        classes=classes,
        source=str(path),
        missing=missing or (),
        segments=np.column_stack([np.asarray(columns[name], float) for name in spans]) if spans else None,
    )
