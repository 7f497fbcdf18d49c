"""Index of a data set: one Parquet file that describes each video, and a fingerprint of them all."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from gcvideo.data.annotations import load_records
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.files import hash_file, replacing
from gcvideo.journal import Journal, Row
from gcvideo.parts import WHOLE, Part
from gcvideo.prepare.jobs import reason_of, scan
from gcvideo.video import open_video
from gcvideo.video.frame_folder import list_files
from gcvideo.video.tar_members import local_path

COLUMNS: dict[str, str] = yaml.safe_load(Path(__file__).with_name("index.yaml").read_text(encoding="utf-8"))
SCHEMA = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
LIMITS: dict[str, Any] = {"seconds": 120, "memory": 4 << 30}


def make_index(
    annotation: str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
    part: Part = WHOLE,
) -> pa.Table:
    """Open every video of an annotation and write what it is; ``load_records`` reads the result.

    An interrupted run is resumed from a journal beside ``out``. Parts share it; the whole job puts their work together.

    Args:
        annotation: anything that ``load_records`` reads.
        out: the Parquet file to write.
        root: folder of the videos; by default the annotation's own folder.
        classes: class names in label order; by default the sorted names that the annotation uses.
        workers: processes at a time; by default one a core.
        part: of the videos; others do the rest.

    Returns:
        the content of the index (see ``index.yaml``). The metadata of its schema has as JSON the ``fingerprint``, the
        ``classes``, and the ids that the annotation has and the folder does not (``missing``).

    Raises:
        DataError: the annotation cannot be used.
        PartDone: this is a part, and its videos are done.
    """
    out = Path(out).expanduser()
    if out.suffix != ".parquet":
        raise DataError(f"{out}: an index is a Parquet file; give it a name that ends in .parquet")
    records = load_records(annotation, root=root, classes=classes)
    records.require_text()
    paths = [record.path for record in records]
    journal = Journal(f"{out}.partial", {"format": 1}, rank=part.number - 1)
    found = scan(describe_video, paths, journal=journal, title="index", part=part, **LIMITS, workers=workers)
    folder = Path(records.root)
    rows = [{**found[record.path], "path": os.path.relpath(record.path, folder)} for record in records]
    root = os.path.relpath(folder, out.parent)
    table = write_index(out, records, rows, root=root, fingerprint=records.fingerprint)
    journal.remove()
    return table


def describe_video(path: str) -> Row:
    """What the index says about one video, from its container's tables; also where it cannot be opened."""
    with local_path(path) as file:
        files = list_files(file)
        row: Row = {"bytes": sum(map(os.path.getsize, files)), "hash": hash_file(*files)}
    try:
        with open_video(path) as video:
            ends = [*video.keyframes.tolist()[1:], len(video)]
            row |= {name: getattr(video, name) for name in ("width", "height", "codec", "backend")}
            row |= {"frames": len(video), "gop": int(np.max(np.subtract(ends, video.keyframes)))}
            if video.timed:
                row |= {"fps": video.fps, "duration": float(video.times[-1] - video.times[0]) + 1 / video.fps}
    except Exception as error:
        row["error"] = reason_of(error)
    return row


def write_index(path: Path, records: RecordTable, rows: Sequence[Row], **metadata: Any) -> pa.Table:
    """Write the Parquet file that ``load_records`` reads.

    Args:
        path: of the file.
        records: the data set.
        rows: where the video of each record lies, and what else is known of it; see ``index.yaml``.
        metadata: JSON values for the metadata of the file.
    """
    metadata |= {"classes": list(records.classes) if records.classes else None, "missing": list(records.missing)}
    schema = SCHEMA.with_metadata({name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()})
    if records.sets is not None:
        schema = schema.set(schema.get_field_index("label"), pa.field("label", pa.list_(pa.int32())))
    labels = records.labels.tolist() if records.sets is None else records.sets.to_pylist()
    named = [{"id": r.id, "label": k, "start": r.start, "end": r.end} for r, k in zip(records, labels, strict=True)]
    table = pa.Table.from_pylist([{**name, **row} for name, row in zip(named, rows, strict=True)], schema=schema)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return table
