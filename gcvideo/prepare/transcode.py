"""Transcode a folder of videos to a layout made for reading clips, and measure what that brings."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from gcvideo.data.annotations import load_records, videos_under
from gcvideo.errors import DataError
from gcvideo.files import write_atomically
from gcvideo.journal import Journal, Row
from gcvideo.prepare.encode import PRESETS, Encoding, encode_video
from gcvideo.prepare.jobs import Limits, run_jobs, scan
from gcvideo.video import open_video

JOURNAL = "transcode.jsonl"
LIMITS = Limits(seconds=3600, memory=8 << 30)
CLIP_FRAMES, CLIP_STRIDE = 8, 8  # the clip whose cost is measured: "8x8"


@dataclass(frozen=True)
class Cost:
    """What a set of videos costs: bytes, and the median CPU milliseconds of opening one and decoding a random clip."""

    bytes: int
    clip_ms: float


@dataclass(frozen=True)
class Transcoding:
    """What became of a transcode.

    Attributes:
        videos: how many there are now, with those that were there before.
        old: cost of the originals.
        new: cost of the copies.
        failures: path -> reason, of the videos that have no copy.
    """

    videos: int
    old: Cost
    new: Cost
    failures: dict[str, str]


def transcode(
    source: str | Path,
    target: str | Path,
    encoding: Encoding,
    *,
    workers: int | None = None,
    limits: Limits = LIMITS,
) -> Transcoding:
    """Write every video under ``source`` anew under ``target``, at the same place with the suffix ``.mp4``.

    Videos that an earlier run has written are kept; those that failed are tried again. Originals are only read.

    Raises:
        DataError: a folder that cannot be used, two videos that would get the same name, or a ``target`` that holds
            videos transcoded with other settings.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if encoding.preset not in PRESETS:
        raise DataError(f"no preset {encoding.preset!r}; the presets are {', '.join(PRESETS)}")
    copies = _copies(source, target)
    journal_path = target / JOURNAL
    key = dataclasses.asdict(encoding)
    with Journal(journal_path, key) as journal:
        if journal_path.exists() and not journal.fits:
            raise DataError(f"{target}: holds videos transcoded with other settings; choose another folder")
        for path, copy in copies.items():
            if not Path(copy).is_file():
                journal.forget(path)
        function = _Transcode(str(source), str(target), encoding)
        rows = scan(function, list(copies), journal=journal, title="transcode", limits=limits, workers=workers)
    failures = {path: row["error"] for path, row in rows.items() if "error" in row}
    old, new = _costs({path: copy for path, copy in copies.items() if path not in failures})
    return Transcoding(videos=len(copies) - len(failures), old=old, new=new, failures=failures)


def compare_presets(
    source: str | Path, *, videos: int = 8, short_side: int = 256, workers: int | None = None
) -> dict[str, Transcoding]:
    """Transcode a few videos with every preset, in a temporary folder, and measure bytes and decode cost of each."""
    paths = [os.path.join(source, path) for path in videos_under(Path(source).expanduser())]
    if not paths:
        raise DataError(f"{source}: holds no videos")
    chosen = random.Random(0).sample(paths, min(videos, len(paths)))
    results = {}
    with tempfile.TemporaryDirectory(prefix="gcvideo-presets-") as folder:
        sample = Path(folder) / "sample"
        sample.mkdir()
        for number, path in enumerate(chosen):
            (sample / f"{number}{Path(path).suffix}").symlink_to(Path(path).resolve())
        for preset in PRESETS:
            encoding = Encoding(preset=preset, short_side=short_side)
            results[preset] = transcode(sample, Path(folder) / preset, encoding, workers=workers)
    return results


def copy_annotation(annotation: str | Path, source: str | Path, target: str | Path) -> Path:
    """Write a ``path label`` list of the copies of an annotation's videos into ``target``; returns its path."""
    records = load_records(annotation, root=None)
    records.require_text()
    lines = []
    for record in records:
        relative = os.path.relpath(record.path, source)
        if relative.startswith(os.pardir):
            raise DataError(f"{annotation}: {record.path} does not lie in {source}")
        lines.append(f"{os.path.splitext(relative)[0]}.mp4 {record.label}\n")
    copy = Path(target) / f"{Path(annotation).stem}.txt"
    write_atomically(copy, "".join(lines).encode())
    return copy


@dataclass(frozen=True)
class _Transcode:
    """The job of one video."""

    source: str
    target: str
    encoding: Encoding

    def __call__(self, path: str) -> Row:
        copy = _copy_of(path, self.source, self.target)
        Path(copy).unlink(missing_ok=True)  # of the video as it was before it changed
        with open_video(path) as video:
            expected = len(video)
        frames = encode_video(path, copy, self.encoding)
        if frames != expected:
            os.unlink(copy)
            raise DataError(f"only {frames} of {expected} frames can be decoded")
        return {"frames": frames, "bytes": os.path.getsize(copy)}


def _copies(source: Path, target: Path) -> dict[str, str]:
    """Original -> copy, of every video."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder of videos")
    inside = Path(os.path.realpath(target))
    outside = Path(os.path.realpath(source))
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise DataError(f"{target}: must lie outside of {source}, and not around it")
    copies: dict[str, str] = {}
    owners: dict[str, str] = {}
    for relative in videos_under(source):
        path = os.path.join(source, relative)
        copy = _copy_of(path, str(source), str(target))
        if copy in owners:
            raise DataError(f"{path} and {owners[copy]} would both become {copy}; rename one of them")
        owners[copy] = path
        copies[path] = copy
    if not copies:
        raise DataError(f"{source}: holds no videos")
    return copies


def _copy_of(path: str, source: str, target: str) -> str:
    return os.path.join(target, os.path.splitext(os.path.relpath(path, source))[0] + ".mp4")


def _costs(copies: dict[str, str], *, sample: int = 24) -> tuple[Cost, Cost]:
    """Cost of originals and of copies, measured in turn, in one process that nothing else of ours disturbs."""
    chosen = random.Random(0).sample(list(copies.items()), min(sample, len(copies)))
    measured = run_jobs(_pair_seconds, chosen, title="measure", workers=1, limits=LIMITS)
    pairs = [seconds for _, seconds, _ in measured if seconds is not None]
    old, new = [1000 * median(side) for side in zip(*pairs, strict=True)] if pairs else (math.nan, math.nan)
    return Cost(_bytes(list(copies)), old), Cost(_bytes(list(copies.values())), new)


def _bytes(paths: list[str]) -> int:
    return sum(os.path.getsize(path) for path in paths)


def _pair_seconds(pair: tuple[str, str]) -> tuple[float, float]:
    return clip_seconds(pair[0]), clip_seconds(pair[1])


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
