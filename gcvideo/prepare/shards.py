"""Tar shards of a data set, for clusters whose file systems are slow with many small files.

The shards follow webdataset's convention (https://github.com/webdataset/webdataset): the members of a sample follow
each other and share their name up to the first dot. Here a sample is three members: ``00000042.mp4`` (the untouched
file), ``00000042.cls`` (the label as text, of several ``3,17``) and ``00000042.json`` (id and label).

Beside them lie ``shards.json``, which lists them, ``shards.jsonl``, from which an interrupted run resumes, and
``shards.parquet``, the index of all videos with their byte ranges in the shards, from which training and tests read a
folder of shards as any other data set.
"""

import io
import json
import os
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.data.annotations import load_records
from gcvideo.data.records import VideoRecord
from gcvideo.errors import DataError
from gcvideo.files import replacing, write_json
from gcvideo.journal import Journal, Row
from gcvideo.prepare.index import write_index
from gcvideo.prepare.jobs import scan, stamp_of
from gcvideo.video.frame_folder import is_frame_folder
from gcvideo.video.tar_members import INDEX, JOURNAL, MANIFEST, Member

Shards = dict[str, dict[str, VideoRecord]]  # name of a shard -> key of a sample -> its record


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
    if journal.is_foreign:
        raise DataError(f"{folder}: holds shards of other videos or settings; choose another folder")
    options: dict[str, Any] = {"title": "shard", "unit": "shards", "must": True, "workers": workers}
    stamp, write = lambda name: stamp_of(f"{folder / name}"), partial(_write_shard, folder=folder, shards=shards)
    written = scan(write, list(shards), journal=journal, stamp=stamp, **options).values()
    paths = {key: path for row in written for key, path in row.items()}  # of each video in its shard
    rows = [{"path": paths[f"{index:08d}"]} for index in range(len(records))]
    write_index(folder / INDEX, records, rows, shards={name: os.path.getsize(folder / name) for name in shards})
    write_json(folder / MANIFEST, manifest)
    return manifest


def _plan(records: dict[str, VideoRecord], shard_bytes: int) -> Shards:
    """Fill shards in order, each with at least one sample."""
    shards: Shards = {}
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


def _write_shard(shard: str, folder: Path, shards: Shards) -> Row:
    """Write a shard; returns the path of each video in it, by the key of its sample."""
    paths: Row = {}
    with replacing(folder / shard) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, record in shards[shard].items():
            note = json.dumps({"id": record.id, "label": record.label}, ensure_ascii=False)
            members = {
                f"{key}{Path(record.path).suffix.lower()}": Path(record.path).read_bytes(),
                f"{key}.cls": record.label_text.encode(),
                f"{key}.json": note.encode(),
            }
            for name, content in members.items():
                member = tarfile.TarInfo(name)  # owner, group and time stay 0: the same samples give the same bytes
                member.size = len(content)
                place = Member(shard, tar.offset + tarfile.BLOCKSIZE, member.size, name)
                paths.setdefault(key, place.path)  # the video comes first
                tar.addfile(member, io.BytesIO(content))
    return paths
