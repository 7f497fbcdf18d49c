"""Pack a data set into tar shards, and read them back as streams: for clusters whose file systems dread small files.

The shards follow webdataset's convention (https://github.com/webdataset/webdataset): the members of a sample lie side
by side and share their name up to the first dot. Here a sample is three members: ``00000042.mp4`` (the untouched
file), ``00000042.cls`` (the label as text) and ``00000042.json`` (id and label).

Beside them lie ``shards.json``, by which ``read_shards`` streams them, and ``shards.parquet``, which says at what byte
of which shard every video is. With the latter, a folder of shards on a local disk is a data set like any other.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gcvideo.data.annotations import load_records
from gcvideo.data.records import RecordTable, VideoRecord
from gcvideo.errors import DataError
from gcvideo.files import write_atomically, write_json
from gcvideo.prepare.jobs import run_jobs
from gcvideo.video.mp4_slice import in_memory
from gcvideo.video.tar_members import INDEX, MANIFEST, Member


class ShardSample(NamedTuple):
    """One video out of a shard."""

    id: str
    label: int
    suffix: str  # of the file, with its dot
    video: bytes


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards.

    Attributes:
        folder: where they lie; may be a URL where ``read_shards`` is given a function that opens it.
        names: of the shards, in order.
        counts: samples in each.
        fingerprint: of the data set (see ``RecordTable.fingerprint``).
        classes: in label order, where known.
    """

    folder: str
    names: tuple[str, ...]
    counts: tuple[int, ...]
    fingerprint: str
    classes: tuple[str, ...] | None


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
    records = load_records(annotation, root=root)
    records.require_text()
    order = np.random.default_rng(seed).permutation(len(records))
    jobs = _plan([records[index] for index in order.tolist()], str(Path(folder).expanduser()), shard_bytes)
    manifest = {
        "format": 1,
        "seed": seed,
        "shard_bytes": shard_bytes,
        "fingerprint": records.fingerprint,
        "classes": list(records.classes) if records.classes else None,
        "shards": [{"name": os.path.basename(job.path), "samples": len(job.samples)} for job in jobs],
    }
    folder = Path(folder).expanduser()
    partial = folder / f"{MANIFEST}.partial"  # the manifest itself appears when all shards are there
    for earlier in (folder / MANIFEST, partial):
        if earlier.exists() and json.loads(earlier.read_text()) != manifest:
            raise DataError(f"{folder}: holds shards of other videos or settings; choose another folder")
    write_json(partial, manifest)
    members: dict[str, list[Member]] = {}  # of each shard
    for job, written, error in run_jobs(_finish_shard, jobs, title="shard", unit="shards", workers=workers):
        if written is None:
            raise DataError(f"{job.path}: {error}")
        members[job.path] = written
    packed = [member for job in jobs for member in members[job.path]]
    _write_index(folder, records, [packed[position] for position in np.argsort(order).tolist()])
    os.replace(partial, folder / MANIFEST)
    return open_shards(folder)


def open_shards(folder: str | Path, *, open_file: Callable[[str], IO[bytes]] | None = None) -> ShardSet:
    """What lies in a folder of shards.

    Args:
        folder: a path, or a URL that ``open_file`` understands.
        open_file: opens a file of the folder; by default a local one.

    Raises:
        DataError: the folder holds no complete set.
    """
    where = f"{folder}/{MANIFEST}"
    try:
        with (open_file or _open_local)(where) as file:
            manifest = json.loads(file.read())
        names = tuple(shard["name"] for shard in manifest["shards"])
        counts = tuple(int(shard["samples"]) for shard in manifest["shards"])
        classes = tuple(manifest["classes"]) if manifest["classes"] else None
        return ShardSet(str(folder), names, counts, manifest["fingerprint"], classes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: no complete set of shards ({type(error).__name__}: {error})") from None


def read_shards(
    shards: ShardSet,
    *,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    open_file: Callable[[str], IO[bytes]] | None = None,
) -> Iterator[ShardSample]:
    """This rank's share of an epoch, sample by sample, in a single pass over the shards that it touches.

    The shards come in an order that only ``seed`` and ``epoch`` decide. Their samples, laid end to end, are cut into
    ``world_size`` equal runs, one a rank: every rank gets exactly as many samples as the others, and up to
    ``world_size - 1`` samples at the end of the epoch are left out, other ones in each epoch.

    Args:
        shards: from ``open_shards``.
        start: samples of this share that an interrupted run has had already.
        open_file: opens ``folder/name`` and gives a binary file; it need not be able to seek. By default a local file.

    Raises:
        DataError: a shard is damaged or incomplete.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(shards.names)).tolist()
    share = sum(shards.counts) // world_size
    first, last = rank * share + start, (rank + 1) * share
    position = 0  # of the shard's first sample in the epoch
    for number in order:
        count = shards.counts[number]
        begin, end = max(first - position, 0), min(last - position, count)
        if begin < end:
            path = f"{shards.folder}/{shards.names[number]}"
            with (open_file or _open_local)(path) as file:
                yield from _read_shard(path, file, begin, end)
        position += count


def as_path(video: bytes) -> AbstractContextManager[str]:
    """A path under which ``open_video`` finds bytes that are in memory only, for as long as the context lasts."""
    return in_memory([memoryview(video)])


@dataclass(frozen=True)
class _Job:
    """One shard to write: (key, path, id, label) of each sample."""

    path: str
    samples: tuple[tuple[str, str, str, int], ...]


def _plan(records: Sequence[VideoRecord], folder: str, shard_bytes: int) -> list[_Job]:
    """Fill shards in order, each with at least one sample."""
    jobs: list[_Job] = []
    samples: list[tuple[str, str, str, int]] = []
    size = 0

    def close_shard() -> None:
        jobs.append(_Job(os.path.join(folder, f"shard-{len(jobs):06d}.tar"), tuple(samples)))
        samples.clear()

    for position, record in enumerate(records):
        try:
            length = os.path.getsize(record.path)
        except OSError as error:
            raise DataError(f"{record.path}: {error.strerror}") from None
        if samples and size + length > shard_bytes:
            close_shard()
            size = 0
        samples.append((f"{position:08d}", record.path, record.id, record.label))
        size += length
    close_shard()
    return jobs


def _finish_shard(job: _Job) -> list[Member]:
    """Write a shard where it is not there yet; returns where in it the video of each sample lies."""
    if not os.path.exists(job.path):
        _write_shard(job)
    try:
        with tarfile.open(job.path, "r:") as tar:
            infos = tar.getmembers()[::3]
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"damaged shard ({error}); remove it to have it written again") from None
    if [os.path.splitext(info.name)[0] for info in infos] != [key for key, *_ in job.samples]:
        raise DataError("holds other videos; remove it to have it written again")
    return [Member(os.path.basename(job.path), info.offset_data, info.size, info.name) for info in infos]


def _write_shard(job: _Job) -> None:
    temporary = f"{job.path}.part"
    with open(temporary, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, path, id_, label in job.samples:
                suffix = os.path.splitext(path)[1].lower()
                note = json.dumps({"id": id_, "label": label}, ensure_ascii=False)
                _add(tar, f"{key}{suffix}", Path(path).read_bytes())
                _add(tar, f"{key}.cls", str(label).encode())
                _add(tar, f"{key}.json", note.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, job.path)


def _write_index(folder: Path, records: RecordTable, members: Sequence[Member]) -> None:
    """Write what ``load_records`` reads: the records, with paths into the shards."""
    shards = sorted({member.shard for member in members})
    metadata = {
        "classes": list(records.classes) if records.classes else None,
        "missing": list(records.missing),
        "shards": {shard: os.path.getsize(folder / shard) for shard in shards},
    }
    columns = {
        "id": pa.array([record.id for record in records], pa.large_string()),
        "path": pa.array([member.path for member in members], pa.large_string()),
        "label": pa.array(records.labels, pa.int32()),
    }
    table = pa.table(
        columns, metadata={name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(folder / INDEX, sink.getvalue().to_pybytes())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner, group and time stay 0: the same samples give the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _read_shard(path: str, file: IO[bytes], begin: int, end: int) -> Iterator[ShardSample]:
    """Samples ``begin`` to ``end`` of one shard."""
    index = 0
    parts: dict[str, bytes] = {}  # suffix -> content, of the sample in hand
    try:
        # Where the file can seek, the samples before ``begin`` cost nothing but their headers.
        with tarfile.open(fileobj=file, mode="r:" if file.seekable() else "r|") as tar:
            for member in tar:
                if index >= begin:
                    content = tar.extractfile(member)
                    assert content is not None
                    parts[os.path.splitext(member.name)[1]] = content.read()
                if not member.name.endswith(".json"):  # the last member of a sample
                    continue
                if index >= begin:
                    note = json.loads(parts.pop(".json"))
                    del parts[".cls"]
                    ((suffix, video),) = parts.items()
                    yield ShardSample(note["id"], int(note["label"]), suffix, video)
                    parts.clear()
                index += 1
                if index == end:
                    return
    except (tarfile.TarError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged shard ({error})") from error
    raise DataError(f"{path}: holds {index} samples, fewer than its set says")


def _open_local(path: str) -> IO[bytes]:
    return open(path, "rb")
