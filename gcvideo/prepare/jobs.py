"""One job for each of many items, in worker processes that may die, with progress and a journal to resume from."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from gcvideo import distributed
from gcvideo.console import Progress
from gcvideo.data.worker_pool import Hold, WorkerPool
from gcvideo.errors import DataError, GcvideoError, VideoError
from gcvideo.files import Journal, Row
from gcvideo.parts import WHOLE, Part
from gcvideo.video.frame_folder import list_files
from gcvideo.video.pyav_decoder import DecodeError
from gcvideo.video.tar_members import parse_member

Item = TypeVar("Item")
Value = TypeVar("Value")


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
