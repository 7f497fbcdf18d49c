"""Disposable worker processes: a job that crashes, hangs or eats memory harms nobody but itself.

Damaged videos make decoders abort, loop or allocate without bound, and no ``try`` in the same process helps against
that. Each worker here is a fresh Python process that takes one job at a time; when it dies, the job is reported as
failed with the reason and another worker takes its place. The kernel ends a job that runs out of time (``SIGALRM``), so
that nothing is left running even when the command itself was killed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from gcvideo.errors import GcvideoError, VideoError

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Outcome(Generic[Item, Value]):
    """What became of one job: a value, or the reason why there is none."""

    item: Item
    value: Value | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one job may use.

    Args:
        seconds: wall-clock time; None for no limit.
        memory: bytes of address space beyond those of an idle worker; None for no limit.
    """

    seconds: float | None = None
    memory: int | None = None


def run_jobs(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    *,
    workers: int,
    limits: Limits | None = None,
) -> Iterator[Outcome[Item, Value]]:
    """Apply ``function`` to every item in worker processes; yield outcomes as they are ready, in no fixed order.

    Args:
        function: importable by its module and name; items and values must pickle.
        items: drawn only as fast as workers take them.
        workers: processes at a time.
        limits: what one job may use.
    """
    queue = iter(items)
    limits = limits or Limits()
    busy: dict[Any, tuple[_Worker, Item]] = {}
    idle = [_Worker(limits) for _ in range(max(1, workers))]
    try:
        while True:
            while idle and (item := next(queue, _END)) is not _END:
                worker = idle.pop()
                worker.give(function, item)
                busy[worker.connection] = (worker, item)
            if not busy:
                return
            for ready in wait(list(busy)):
                worker, done = busy.pop(ready)
                outcome, alive = worker.take(done)
                if not alive:
                    worker.close()
                idle.append(worker if alive else _Worker(limits))
                yield outcome
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.close()


def default_workers() -> int:
    """One worker for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_END: Any = object()


@dataclass
class _Worker:
    """The parent's end of one worker process."""

    limits: Limits
    connection: Connection[Any, Any] = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.connection, theirs = Pipe()
        # Not multiprocessing's own processes: fork is unsafe beside threads, and spawn runs the caller's script again.
        program = "from gcvideo.prepare.pool import work; work()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
        )
        theirs.close()

    def give(self, function: Callable[[Any], Any], item: Any) -> None:
        # A worker that died while it was idle is found out by ``take``.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((function, item, self.limits))

    def take(self, item: Item) -> tuple[Outcome[Item, Any], bool]:
        """The outcome of the job in hand, and whether the worker can take another."""
        try:
            value, error = self.connection.recv()
            return Outcome(item, value, error), True
        except (EOFError, ConnectionResetError):
            return Outcome(item, None, self._cause_of_death()), False

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _cause_of_death(self) -> str:
        code = self.process.wait()
        if code == -signal.SIGALRM:
            return f"took longer than {self.limits.seconds:g} s"
        if code < 0:
            return f"the process that read it died of {signal.Signals(-code).name}"
        return f"the process that read it ended with exit code {code}"


def work() -> None:
    """Life of a worker: take a job, answer, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    limited = False
    while True:
        try:
            function, item, limits = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        if limits.memory is not None and not limited:
            _limit_memory(limits.memory)
            limited = True
        signal.setitimer(signal.ITIMER_REAL, limits.seconds or 0)
        answer = _answer(function, item)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


def _answer(function: Callable[[Any], Any], item: Any) -> tuple[Any, str | None]:
    try:
        return function(item), None
    except VideoError as error:
        return None, error.reason
    except GcvideoError as error:
        return None, str(error)
    except MemoryError:
        return None, "needs more memory than allowed"
    except Exception as error:
        text = " ".join(str(error).split())
        return None, f"{type(error).__name__}: {text}" if text else type(error).__name__


def _limit_memory(memory: int) -> None:
    """Bound the address space: a request beyond it fails in this process instead of filling the machine."""
    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = used + memory
    resource.setrlimit(resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
