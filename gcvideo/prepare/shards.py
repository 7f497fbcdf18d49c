"""Tar shards of a data set, for clusters whose file systems are slow with many small files.

The shards follow webdataset's convention (https://github.com/webdataset/webdataset): the members of a sample follow
each other and share their name up to the first dot. Here a sample is three members: ``00000042.mp4`` (the untouched
file), ``00000042.cls`` (the label as text, of several ``3,17``) and ``00000042.json`` (id and label).

Beside them lie ``shards.json``, which lists them, and ``shards.parquet``, the index of all videos with their byte
ranges in the shards, from which training and tests read a folder of shards as any other data set.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gcvideo.data.annotations import load_records
from gcvideo.data.records import VideoRecord
from gcvideo.errors import DataError
from gcvideo.files import replacing, write_json
from gcvideo.prepare.index import write_index
from gcvideo.prepare.jobs import run_jobs
from gcvideo.video.frame_folder import is_frame_folder
from gcvideo.video.tar_members import INDEX, MANIFEST, Member


class ShardSet(NamedTuple):
    """Shards that were written.

    Attributes:
        folder: of the shards.
        names: of the shards, in order.
        counts: samples in each.
        fingerprint: of the data set (see ``RecordTable.fingerprint``).
    """

    folder: Path
    names: list[str]
    counts: list[int]
    fingerprint: str


def write_shards(
    annotation: str | Path,
    folder: str | Path,
    *,
    root: str | Path | None = None,
    shard_bytes: int = 256 << 20,
    seed: int = 0,
    workers: int | None = None,
) -> ShardSet:
    """Pack the videos of an annotation, shuffled once, into shards of about ``shard_bytes``.

    Shards that an earlier run has finished are kept; the same videos and seed give the same bytes. The index lists the
    videos in the annotation's order, so that ``load_records`` of the folder gives the records of the annotation.

    Raises:
        DataError: the annotation cannot be used, a video is missing, or the folder holds other shards.
    """
    folder = Path(folder).expanduser()
    records = load_records(annotation, root=root)
    records.require_text()
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    shards = _plan((records[index] for index in order), folder, shard_bytes)
    names, counts = [shard.path.name for shard in shards], [len(shard.samples) for shard in shards]
    manifest = {
        "format": 1,
        "seed": seed,
        "shard_bytes": shard_bytes,
        "fingerprint": records.fingerprint,
        "classes": list(records.classes) if records.classes else None,
        "shards": [{"name": name, "samples": count} for name, count in zip(names, counts, strict=True)],
    }
    partial = folder / f"{MANIFEST}.partial"  # renamed once all shards are written
    for earlier in (folder / MANIFEST, partial):
        if earlier.exists() and json.loads(earlier.read_text()) != manifest:
            raise DataError(f"{folder}: holds shards of other videos or settings; choose another folder")
    write_json(partial, manifest)
    paths: dict[str, str] = {}  # of each video in its shard, by the key of its sample
    for shard, members, error in run_jobs(_finish_shard, shards, title="shard", unit="shards", workers=workers):
        if members is None:
            raise DataError(f"{shard.path}: {error}")
        paths |= members
    rows = [{"path": paths[f"{position:08d}"]} for position in np.argsort(order).tolist()]
    write_index(folder / INDEX, records, rows, shards={name: os.path.getsize(folder / name) for name in names})
    os.replace(partial, folder / MANIFEST)
    return ShardSet(folder, names, counts, records.fingerprint)


class _Shard(NamedTuple):
    """A shard to write, and the record of each sample by its key."""

    path: Path
    samples: dict[str, VideoRecord]


def _plan(records: Iterable[VideoRecord], folder: Path, shard_bytes: int) -> list[_Shard]:
    """Fill shards in order, each with at least one sample."""
    shards: list[_Shard] = []
    room = 0
    for position, record in enumerate(records):
        try:
            with open(record.path, "rb") as file:  # which a folder of frames is not
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            frames = "is a folder of frames; shards hold video files" if is_frame_folder(record.path) else ""
            raise DataError(f"{record.path}: {frames or error.strerror}") from None
        if not shards or size > room:
            shards.append(_Shard(folder / f"shard-{len(shards):06d}.tar", {}))
            room = shard_bytes
        room -= size
        shards[-1].samples[f"{position:08d}"] = record
    return shards


def _finish_shard(shard: _Shard) -> dict[str, str]:
    """Write a shard unless it exists; returns the path of each video in it, by the key of its sample."""
    if not shard.path.exists():
        _write_shard(shard)
    try:
        with tarfile.open(shard.path, "r:") as tar:
            videos = {os.path.splitext(info.name)[0]: info for info in tar.getmembers()[::3]}
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"damaged shard ({error}); remove it to have it written again") from None
    if list(videos) != list(shard.samples):
        raise DataError("holds other videos; remove it to have it written again")
    return {key: Member(shard.path.name, info.offset_data, info.size, info.name).path for key, info in videos.items()}


def _write_shard(shard: _Shard) -> None:
    ustar = tarfile.USTAR_FORMAT
    with replacing(shard.path) as temporary, tarfile.open(temporary, "w", format=ustar) as tar:
        for key, record in shard.samples.items():
            note = json.dumps({"id": record.id, "label": record.label}, ensure_ascii=False)
            members = {
                f"{key}{Path(record.path).suffix.lower()}": Path(record.path).read_bytes(),
                f"{key}.cls": record.label_text.encode(),
                f"{key}.json": note.encode(),
            }
            for name, content in members.items():
                member = tarfile.TarInfo(name)  # owner, group and time stay 0: the same samples give the same bytes
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
