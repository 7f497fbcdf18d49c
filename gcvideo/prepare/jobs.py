"""One job for each of many items, in worker processes that may die, with progress and a journal to resume from.

Processes on any number of machines share a job without any talk among them, as its parts: a part takes every N-th item.
Three ways lead to it: ``--part I/N`` (I from 1), as for a job array of Slurm; ``torchrun`` (``RANK``, ``WORLD_SIZE``);
``srun`` (``SLURM_PROCID``, ``SLURM_STEP_NUM_TASKS``). With ``--part`` under one of the others, each process takes its
share of that part.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gcvideo import distributed
from gcvideo.console import Progress
from gcvideo.data.worker_pool import Hold, WorkerPool
from gcvideo.errors import ConfigError, DataError, GcvideoError, VideoError
from gcvideo.files import Journal, Row
from gcvideo.video.frame_folder import list_files
from gcvideo.video.pyav_decoder import DecodeError
from gcvideo.video.tar_members import parse_member

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Part:
    """One of the parts of a job.

    Attributes:
        number: from 1.
        count: of all parts; 1 where the job is whole.
    """

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"part {self.number}/{self.count}"

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Part":
        """The part that ``--part`` and the process's environment mean.

        Raises:
            ConfigError: ``--part`` is no ``I/N`` with I from 1 to N.
        """
        number, count = 1, 1
        if args.part is not None:
            match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", args.part)
            number, count = (int(match[1]), int(match[2])) if match else (0, 0)
            if not 1 <= number <= count:
                raise ConfigError(f"--part: expected I/N with I from 1 to N, as 1/4 to 4/4, not {args.part!r}")
        rank, world = _place()
        return cls((number - 1) * world + rank + 1, count * world)

    @property
    def is_whole(self) -> bool:
        """Whether there are no other parts."""
        return self.count == 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this part, in their order. Every item is in one part."""
        return items[self.number - 1 :: self.count]

    def file(self, path: str | Path) -> Path:
        """The name of this part's own file: ``out.part-2-of-4.csv``; the path itself where the job is whole."""
        path = Path(path)
        return path if self.is_whole else path.with_name(f"{path.stem}.part-{self.number}-of-{self.count}{path.suffix}")


WHOLE = Part()


class PartDone(Exception):
    """A part of a job has done its share of the videos; the whole job puts the parts together."""

    def __init__(self, part: Part, videos: int, failed: int) -> None:
        self.videos, self.failed = videos, failed
        done = f"{part} is done ({videos:,} videos, {failed:,} failed)"
        super().__init__(f"{done}; when all are, run the command once without --part, in one process, to join them")


def run_jobs(
    function: Callable[[Item], Value],
    items: Sequence[Item],
    *,
    title: str,
    unit: str = "videos",
    done: int = 0,
    workers: int | None = None,
    seconds: float | None = None,
    memory: int | None = None,
) -> Iterator[tuple[Item, Value | None, str | None]]:
    """Apply a function to every item, in worker processes.

    Args:
        function: runs in a forked process; its results must pickle.
        items: all of them.
        title: of the progress bar.
        unit: of the progress bar.
        done: items that an earlier run finished, for the progress bar.
        workers: processes at a time; by default one a core.
        seconds: wall-clock time limit of one job; None for no limit. A job beyond it fails, as one that crashes does;
            the others are not affected.
        memory: bytes that the worker process of one job may allocate; None for no limit.

    Yields:
        item, value and None; or item, None and the reason why the job failed. In the order in which jobs finish.
    """
    deaths: dict[int, str] = {}  # a worker that replaces a dead one is forked afterwards, and so knows of this death

    def work(number: int, hold: Hold) -> tuple[int, Value | None, str | None]:
        if number in deaths:
            return number, None, deaths[number]
        hold(number)
        try:
            return number, function(items[number]), None
        except Exception as error:
            return number, None, reason_of(error)

    pool: WorkerPool[int, tuple[int, Value | None, str | None]] = WorkerPool(
        work,
        workers=max(1, min(workers or distributed.cores(), len(items))),
        on_death=deaths.__setitem__,
        time_limit=seconds,
        memory_limit=memory,
        prefetch=1,
        ordered=False,
    )
    failed = 0
    with Progress(title, total=done + len(items), unit=unit, start=done) as progress:
        for number, value, error in pool.map(range(len(items))):
            failed += error is not None
            progress.advance(**({"failed": failed} if failed else {}))
            yield items[number], value, error


def stamp_of(path: str) -> Any:
    """Size and time of change of a video's files, or of its shard; None where they do not exist, or are no video."""
    member = parse_member(path)
    try:
        stats = [os.stat(file) for file in list_files(member.shard if member else path)]
    except (OSError, DecodeError):
        return None
    return [sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)]


def scan(
    function: Callable[[str], Row],
    paths: Sequence[str],
    *,
    journal: Journal,
    title: str,
    part: Part = WHOLE,
    stamp: Callable[[str], Any] = stamp_of,
    must: bool = False,
    **options: Any,
) -> dict[str, Row]:
    """Apply a function to every video, or other item, whose row is not in the journal, or that has changed since.

    Args:
        function: path -> row.
        paths: of the videos.
        journal: rows of earlier runs; every new row is added at once.
        title: of the progress bar.
        part: of the videos.
        stamp: path -> JSON value that changes when the video does.
        must: all have to succeed; those that failed are tried again by the next run.
        **options: those of ``run_jobs``.

    Returns:
        path -> row, in the order of ``paths``; ``{"error": reason}`` for a video on which the function failed.

    Raises:
        DataError: one that must succeed has failed; the others are done.
        PartDone: it is a part, and its videos are done.
    """
    paths = list(dict.fromkeys(paths))
    mine = part.share(paths)
    rows = {path: row for path in mine if (row := journal.find(path, stamp(path))) is not None}
    waiting = [path for path in mine if path not in rows]
    title = title if part.is_whole else f"{title} {part}"
    for path, row, error in run_jobs(function, waiting, title=title, done=len(rows), **options):
        rows[path] = {"error": error} if row is None else row
        if row is not None or not must:
            journal.add(path, rows[path], stamp(path))
    failed = [f"{path}: {row['error']}" for path, row in rows.items() if "error" in row]
    if failed and must:
        raise DataError(f"{failed[0]}; {len(failed)} of {len(paths)} {title} jobs failed; the same command resumes")
    if not part.is_whole:
        raise PartDone(part, len(rows), len(failed))
    return {path: rows[path] for path in paths}


def reason_of(error: Exception) -> str:
    """Why a job failed, in one line."""
    if isinstance(error, MemoryError):
        return "needs more memory than a worker process may use"
    if isinstance(error, GcvideoError):
        return error.reason if isinstance(error, VideoError) else str(error)
    text = " ".join(str(getattr(error, "strerror", None) or error).split())  # an OSError's text repeats its number
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place() -> tuple[int, int]:
    """Rank and number of the processes that a launcher started."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ.get("RANK", "0")), int(os.environ["WORLD_SIZE"])
    # The script of a batch job has a SLURM_PROCID too, but only what srun starts belongs to a step.
    if "SLURM_PROCID" in os.environ and ("SLURM_STEP_ID" in os.environ or "SLURM_JOB_ID" not in os.environ):
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "1")
        return int(os.environ["SLURM_PROCID"]), int(tasks)
    return 0, 1
