"""Index of a data set, one Parquet file that describes each video with a fingerprint of them all; and tar shards.

Shards hold a data set on clusters whose file systems are slow with many small files. They follow webdataset's
convention (https://github.com/webdataset/webdataset): the members of a sample follow each other and share their name up
to the first dot. Here a sample is three members: ``00000042.mp4`` (the untouched file), ``00000042.cls`` (the label as
text, of several ``3,17``) and ``00000042.json`` (id and label).

Beside them lie ``shards.json``, which lists them, ``shards.jsonl``, from which an interrupted run resumes, and
``shards.parquet``, the index of all videos with their byte ranges in the shards, from which training and tests read a
folder of shards as any other data set.
"""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gcvideo.data.annotations import load_records
from gcvideo.data.records import RecordTable, VideoRecord
from gcvideo.errors import DataError
from gcvideo.files import Journal, Row, hash_file, read_yaml, replacing, write_json
from gcvideo.prepare.jobs import WHOLE, Part, reason_of, scan, stamp_of
from gcvideo.video import open_video
from gcvideo.video.frame_folder import is_frame_folder, list_files
from gcvideo.video.tar_members import INDEX, JOURNAL, MANIFEST, Member, local_path

SCHEMA = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in read_yaml(__file__, "index.yaml").items()])
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
    table = write_index(out, records, rows, root=os.path.relpath(folder, out.parent), fingerprint=records.fingerprint)
    journal.remove()
    return table


def describe_video(path: str) -> Row:
    """What the index says about one video, from its container's tables; also where it cannot be opened."""
    with local_path(path) as file:
        files = list_files(file)
        row: Row = {"bytes": sum(map(os.path.getsize, files)), "hash": hash_file(*files)}
    try:
        with open_video(path) as video:
            row |= {name: getattr(video, name) for name in ("width", "height", "codec", "backend")}
            row |= {"frames": len(video), "gop": int(np.diff(np.append(video.keyframes, len(video))).max())}
            seconds = float(video.times[-1] - video.times[0]) + 1 / video.fps
            row |= {"fps": video.fps, "duration": seconds} if video.timed else {"fps": None, "duration": None}
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


def write_shards(
    annotation: str | Path,
    folder: str | Path,
    *,
    root: str | Path | None = None,
    shard_bytes: int = 256 << 20,
    seed: int = 0,
    workers: int | None = None,
) -> Row:
    """Pack the videos of an annotation, shuffled once, into shards of about ``shard_bytes``.

    Shards that an earlier run has finished are kept, and those that were lost or changed since are written again; the
    same videos and seed give the same bytes. The index lists the videos in the annotation's order, so that
    ``load_records`` of the folder gives the records of the annotation.

    Returns:
        the content of ``shards.json``: the ``shards``, each with its ``name`` and number of ``samples``, and the
        ``fingerprint`` of the data set (see ``RecordTable.fingerprint``).

    Raises:
        DataError: the annotation cannot be used, a video is missing, or the folder holds other shards.
        ConfigError: the same, of this version.
    """
    folder = Path(folder).expanduser()
    records = load_records(annotation, root=root)
    records.require_text()
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    shards = _plan({f"{index:08d}": records[index] for index in order}, shard_bytes)
    manifest = {
        "seed": seed,
        "shard_bytes": shard_bytes,
        "fingerprint": records.fingerprint,
        "shards": [{"name": name, "samples": len(samples)} for name, samples in shards.items()],
    }
    journal = Journal(folder / JOURNAL, manifest)
    journal.require_own("set of videos, seed or size of shards")
    earlier = folder / MANIFEST  # perhaps of a version without a journal
    if earlier.exists() and not manifest.items() <= json.loads(earlier.read_text()).items():
        raise DataError(f"{folder}: holds shards of other videos or settings; choose another folder")

    def write(name: str) -> Row:
        """Write a shard; returns the path of each video in it, by the key of its sample."""
        paths: Row = {}
        with replacing(folder / name) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, record in shards[name].items():
                note = json.dumps({"id": record.id, "label": record.label}, ensure_ascii=False)
                members = {
                    f"{key}{Path(record.path).suffix.lower()}": Path(record.path).read_bytes(),
                    f"{key}.cls": record.label_text.encode(),
                    f"{key}.json": note.encode(),
                }
                for member, content in members.items():
                    info = tarfile.TarInfo(member)  # owner, group and time stay 0: the same samples give the same bytes
                    info.size = len(content)
                    place = Member(name, tar.offset + tarfile.BLOCKSIZE, info.size, member)
                    paths.setdefault(key, place.path)  # the video comes first
                    tar.addfile(info, io.BytesIO(content))
        return paths

    options: dict[str, Any] = {"title": "shard", "unit": "shards", "must": True, "workers": workers}
    written = scan(write, list(shards), journal=journal, stamp=lambda name: stamp_of(f"{folder / name}"), **options)
    paths = {key: path for row in written.values() for key, path in row.items()}  # of each video in its shard
    rows = [{"path": paths[f"{index:08d}"]} for index in range(len(records))]
    write_index(folder / INDEX, records, rows, shards={name: os.path.getsize(folder / name) for name in shards})
    write_json(folder / MANIFEST, manifest)
    return manifest


def _plan(records: dict[str, VideoRecord], shard_bytes: int) -> dict[str, dict[str, VideoRecord]]:
    """Fill shards in order, each with at least one sample: its record by its key."""
    shards: dict[str, dict[str, VideoRecord]] = {}
    room = -1
    for key, record in records.items():
        if is_frame_folder(record.path):
            raise DataError(f"{record.path}: is a folder of frames; shards hold video files")
        size = os.path.getsize(record.path)
        if size > room:
            samples = shards[f"shard-{len(shards):06d}.tar"] = dict[str, VideoRecord]()
            room = shard_bytes
        room -= size
        samples[key] = record
    return shards
