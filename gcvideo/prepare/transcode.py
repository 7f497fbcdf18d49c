"""Transcode a folder of videos to a layout that is fast to read clips from, and measure the gain."""

import math
import os
import random
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from gcvideo.data.annotations import load_records, videos_under
from gcvideo.errors import DataError
from gcvideo.files import write_atomically
from gcvideo.journal import Journal, Row
from gcvideo.parts import WHOLE, Part
from gcvideo.prepare.encode import Encoding, encode_video
from gcvideo.prepare.jobs import run_jobs, scan
from gcvideo.video import open_video

JOURNAL = "transcode.jsonl"
LIMITS: dict[str, Any] = {"seconds": 3600, "memory": 8 << 30}
CLIP_FRAMES, CLIP_STRIDE = 8, 8  # the clip whose cost is measured: "8x8"


class Transcoding(NamedTuple):
    """Result of a transcode.

    Attributes:
        videos: how many have a copy now, with those of earlier runs.
        old: ``bytes`` of the originals, and ``clip_ms``, the median CPU milliseconds of opening one and decoding a
            random clip.
        new: the same of the copies.
        failures: path -> reason, of the videos that have no copy.
    """

    videos: int
    old: dict[str, float]
    new: dict[str, float]
    failures: dict[str, str]


def transcode(
    source: str | Path,
    target: str | Path,
    encoding: Encoding,
    *,
    most: int | None = None,
    workers: int | None = None,
    part: Part = WHOLE,
) -> Transcoding:
    """Transcode every video under ``source``; its copy has the same place under ``target`` and the suffix ``.mp4``.

    Videos that an earlier run has written are kept; those that failed are tried again. Originals are only read. Parts
    share the work; the whole job puts it together. Of more than ``most`` videos a random sample is taken.

    Raises:
        DataError: a folder that cannot be used, two videos that would get the same name, or a ``target`` that holds
            videos transcoded with other settings.
        PartDone: this is a part, and its videos are done.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    inside, outside = target.resolve(), source.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise DataError(f"{target}: must lie outside of {source}, and not around it")
    names = videos_under(source, files_only=True)
    if not names:
        raise DataError(f"{source}: no folder of videos in files; folders of frames are read as they are")
    names = random.Random(0).sample(names, most) if most and most < len(names) else names
    copies = {str(source / name): str(target / os.path.splitext(name)[0]) + ".mp4" for name in names}
    for copy, count in Counter(copies.values()).items():
        if count > 1:
            raise DataError(f"{source}: {count} videos would become {copy}; rename all but one")
    journal = Journal(target / JOURNAL, encoding._asdict(), rank=part.number - 1)
    if journal.is_foreign:
        raise DataError(f"{target}: holds videos transcoded with other settings; choose another folder")
    return transcode_files(copies, encoding, journal, workers, part)


def copy_annotation(annotation: str | Path, source: str | Path, target: str | Path) -> Path:
    """Write a list of the copies of an annotation's videos into ``target``; returns its path.

    Its columns are ``path``, ``start``, ``end`` and ``label`` (or ``labels``), separated by tabs; times are empty for
    whole videos.
    """
    records = load_records(annotation, root=None)
    records.require_text()
    lines = [f"path\tstart\tend\tlabel{'s' * (records.sets is not None)}\n"]
    for record in records:
        relative = os.path.relpath(record.path, source)
        if relative.startswith(os.pardir):
            raise DataError(f"{annotation}: {record.path} does not lie in {source}")
        if record.may_be_cut:
            raise DataError(f"{annotation}: whether {record.path} is one clip is not known; use the CSV for copies too")
        times = ["" if time is None else str(time) for time in (record.start, record.end)]
        lines.append("\t".join([f"{os.path.splitext(relative)[0]}.mp4", *times, f"{record.label_text}\n"]))
    copy = Path(target) / f"{Path(annotation).stem}.txt"
    write_atomically(copy, "".join(lines).encode())
    return copy


def transcode_files(
    copies: dict[str, str], encoding: Encoding, journal: Journal, workers: int | None = None, part: Part = WHOLE
) -> Transcoding:
    """Transcode videos, original -> copy, but those whose rows are in the journal; and measure what it brought."""
    for path, copy in copies.items():
        if not os.path.isfile(copy):
            journal.forget(path)

    def copy_video(path: str) -> Row:
        Path(copies[path]).unlink(missing_ok=True)  # of the video as it was before it changed
        return {"frames": encode_video(path, copies[path], encoding)}

    rows = scan(copy_video, list(copies), journal=journal, title="transcode", part=part, **LIMITS, workers=workers)
    failures = {path: row["error"] for path, row in rows.items() if "error" in row}
    old, new = _costs([(path, copy) for path, copy in copies.items() if path not in failures])
    return Transcoding(len(copies) - len(failures), old, new, failures)


def _costs(pairs: list[tuple[str, str]], *, sample: int = 24) -> list[dict[str, float]]:
    """Cost of originals and of copies, measured alternately in one process."""
    chosen = random.Random(0).sample(pairs, min(sample, len(pairs)))
    measured = run_jobs(lambda pair: [*map(clip_seconds, pair)], chosen, title="measure", workers=1, **LIMITS)
    seconds = [both for _, both, _ in measured if both is not None] or [[math.nan, math.nan]]
    sizes = np.sum([[*map(os.path.getsize, pair)] for pair in pairs] or [[0, 0]], axis=0).tolist()
    medians = (1000 * np.median(seconds, axis=0)).tolist()
    return [{"bytes": size, "clip_ms": cost} for size, cost in zip(sizes, medians, strict=True)]


def clip_seconds(path: str, *, clips: int = 5) -> float:
    """Median CPU seconds, over all threads, of opening a video and decoding a random clip of 8 frames, stride 8."""
    rng = np.random.default_rng(0)
    seconds = []
    for _ in range(clips + 1):
        start = time.process_time()
        with open_video(path) as video:
            begin = rng.integers(max(1, len(video) - CLIP_FRAMES * CLIP_STRIDE + 1))
            video.frames(np.minimum(begin + CLIP_STRIDE * np.arange(CLIP_FRAMES), len(video) - 1))
        seconds.append(time.process_time() - start)
    return median(seconds[1:])  # the first one also imports the decoder
