"""An index of a data set: one Parquet file that says what each video is, and a fingerprint of them all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gcvideo.data.annotations import clip_name, load_records, videos_under
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.files import write_atomically
from gcvideo.journal import Journal, Row
from gcvideo.prepare.jobs import Limits, scan
from gcvideo.video import open_video
from gcvideo.video.tar_members import local_path

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),  # relative to the root, which the metadata names relative to the index
        ("label", pa.int32()),  # -1 where unknown
        ("frames", pa.int32()),
        ("fps", pa.float64()),  # average
        ("duration", pa.float64()),  # seconds
        ("width", pa.int32()),  # as displayed
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("gop", pa.int32()),  # largest distance between key frames, in frames
        ("backend", pa.string()),  # which decoder reads it rightly
        ("bytes", pa.int64()),
        ("hash", pa.string()),  # SHA-256 of the file, as sha256sum prints it
        ("error", pa.string()),  # why it cannot be read; then the columns from frames to backend are null
    ]
)
LIMITS = Limits(seconds=120, memory=4 << 30)


@dataclass(frozen=True)
class Index:
    """An index that was made, and what was found on the way.

    Attributes:
        path: the Parquet file.
        table: its content.
        fingerprint: of ids and labels; the one in checkpoints and results.
        content: fingerprint of ids, labels and the bytes of the videos.
        missing: ids that the annotation has and the folder does not.
        extra: paths, relative to the root, of videos that the annotation does not have.
        replaced: paths of videos for which another file, such as a replacement, is used.
    """

    path: Path
    table: pa.Table
    fingerprint: str
    content: str
    missing: Sequence[str]
    extra: Sequence[str]
    replaced: Sequence[str]

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(path, reason) of the videos that cannot be opened."""
        rows = self.table.select(["path", "error"]).to_pylist()
        return [(row["path"], row["error"]) for row in rows if row["error"] is not None]


def make_index(
    annotation: str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
) -> Index:
    """Open every video of an annotation and write what it is; ``load_records`` reads the result.

    A run that was cut off goes on where it stood, from a journal beside ``out``.

    Args:
        annotation: anything that ``load_records`` reads.
        out: the Parquet file to write.
        root: folder of the videos; by default the annotation's own folder.
        classes: class names in label order; by default the sorted names that the annotation uses.
        workers: processes at a time; by default one a core.

    Raises:
        DataError: the annotation cannot be used.
    """
    out = Path(out).expanduser()
    if out.suffix != ".parquet":
        raise DataError(f"{out}: an index is a Parquet file; give it a name that ends in .parquet")
    records = load_records(annotation, root=root, classes=classes)
    records.require_text()
    paths = [record.path for record in records]
    with Journal(f"{out}.partial", {"format": 1}) as journal:
        rows = scan(describe_video, paths, journal=journal, title="index", limits=LIMITS, workers=workers)
        index = _collect(records, rows, out)
        write_atomically(out, _parquet(index.table))
        journal.remove()
    return index


def describe_video(path: str) -> Row:
    """What the index says about one video, from its container's tables; also where it cannot be opened."""
    with local_path(path) as file:
        row: Row = {"bytes": os.path.getsize(file), "hash": _sha256(file)}
    try:
        with open_video(path) as video:
            ends = [*video.keyframes.tolist()[1:], len(video)]
            row |= {
                "frames": len(video),
                "fps": video.fps,
                "duration": float(video.times[-1] - video.times[0]) + 1 / video.fps,
                "width": video.width,
                "height": video.height,
                "codec": video.codec,
                "gop": int(np.max(np.subtract(ends, video.keyframes))),
                "backend": video.backend,
            }
    except Exception as error:
        row["error"] = getattr(error, "reason", str(error))
    return row


def _collect(records: RecordTable, rows: dict[str, Row], out: Path) -> Index:
    root = Path(records.root)
    listed = [
        {"id": record.id, "path": os.path.relpath(record.path, root), "label": record.label, **rows[record.path]}
        for record in records
    ]
    content = hashlib.sha256()
    for line in sorted(f"{row['id']}\t{row['label']}\t{row.get('hash')}\n" for row in listed):
        content.update(line.encode())
    extra, replaced = _unused(root, listed)
    metadata = {
        "classes": list(records.classes) if records.classes else None,
        "root": os.path.relpath(root, out.parent),
        "fingerprint": records.fingerprint,
        "content": content.hexdigest(),
        "missing": list(records.missing),
    }
    schema = SCHEMA.with_metadata({name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()})
    return Index(
        path=out,
        table=pa.Table.from_pylist(listed, schema=schema),
        fingerprint=records.fingerprint,
        content=content.hexdigest(),
        missing=records.missing,
        extra=extra,
        replaced=replaced,
    )


def _unused(root: Path, listed: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Videos under ``root`` that no record names: (of other ids, of ids that another file stands for)."""
    used = {row["path"] for row in listed}
    ids = {clip_name(row["path"]) for row in listed} | {row["id"] for row in listed}
    unused = [path for path in videos_under(root) if path not in used]
    return [path for path in unused if clip_name(path) not in ids], [p for p in unused if clip_name(p) in ids]


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
