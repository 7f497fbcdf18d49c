"""Crash-proof pool of worker processes, for training, testing and preparing data.

Video decoders crash, hang and take all memory on damaged files. A worker process writes to shared memory which item
it reads, and sets itself an alarm. When it dies, the pool reports that item, starts another process and gives it the
tasks that the dead one had not finished. Every task gives exactly one result, and results do not depend on the number
of workers or on which of them died.

Tensors travel through anonymous memory files, so a small ``/dev/shm``, as containers have, is enough.
"""

import contextlib
import faulthandler
import gc
import io
import mmap
import multiprocessing
import os
import pickle
import resource
import signal
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from multiprocessing import connection, util
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from gcvideo.device import keep_freed_memory, page_lock

Task = TypeVar("Task")
Result = TypeVar("Result")
Hold = Callable[[int], None]

NOTHING = -1
LARGE = 1 << 20  # bytes of a tensor from which its copy costs more than it is worth
# Processes that keep dying while they hold no item have another cause, most often too little memory.
MAX_IDLE_DEATHS = 5


@dataclass
class WorkerPool(Generic[Task, Result]):
    """Pool of forked processes that run one function on many tasks.

    Args:
        work: called with a task and ``hold`` in a worker process, where it may change state of its own only. It
            calls ``hold(item)`` before it reads an item that might kill the process.
        workers: number of processes, at least 1.
        on_death: called in the main process with the item that a dead worker held and the cause of death. Then
            ``work`` is called with the same task again, in a process forked afterwards, and must avoid that item.
        time_limit: seconds that one item may take; None for no limit.
        memory_limit: bytes that a worker may allocate beyond what it inherits, after which it gets a ``MemoryError``;
            None for no limit.
        prefetch: tasks in flight for each worker.
        ordered: give results in the order of the tasks, not in that in which they are finished.
        pin_memory: leave large tensors of a result where the worker put them, in page-locked memory, which GPUs copy
            from by themselves; asking for the next result ends them.
    """

    work: Callable[[Task, Hold], Result]
    _: KW_ONLY
    workers: int
    on_death: Callable[[int, str], None]
    time_limit: float | None = None
    memory_limit: int | None = None
    prefetch: int = 2
    ordered: bool = True
    pin_memory: bool = False

    def __post_init__(self) -> None:
        self._held = np.frombuffer(mmap.mmap(-1, 8 * self.workers), dtype=np.int64)  # item in hand, of each worker
        self._running: list[_Worker] = []
        self._todo: deque[Task] = deque()
        self._sent = self._done = 0  # tasks given to workers, and results given to the caller
        self._ready: dict[int, Any] = {}  # number of the task -> packed result, and the number of its file
        self._files: list[Any] = []  # shared memory: of each task in flight, and of the result that the caller has
        self._maps = defaultdict[int, np.ndarray](lambda: np.empty(0, np.uint8))  # number of the file -> its bytes
        self._free, self._lent = deque[int](), list[int]()  # numbers of files: of nobody, and of the caller
        self._measured = self._idle_deaths = 0
        self._busy = 0.0
        # Without a finalizer, workers would outlive a process that exits in the middle of a loop over the results.
        util.Finalize(self, _kill, args=(self._running, self._files), exitpriority=10)

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Results of all tasks; then the workers end.

        Raises:
            Exception: what ``work`` raised for a task, instead of its result.
            RuntimeError: workers keep dying while they hold no item.
        """
        try:
            yield from self.stream(tasks)
        finally:
            self.close()

    def stream(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """As ``map``, but the workers begin at once, and stay for the next stream, whose tasks they take after these.

        Streams must be read in the order in which they were made, each to its end.

        Args:
            tasks: the workers have the state that they were forked with, when the first tasks of all came.
        """
        tasks = list(tasks)
        self._todo.extend(tasks)
        self._send()
        return (self._next() for _ in tasks)

    def rate(self) -> float:
        """Tasks a second that the workers can do, by the time that they took for those done since the last call."""
        rate = self.workers * self._measured / self._busy
        self._measured, self._busy = 0, 0.0
        return rate

    def close(self) -> None:
        """End the workers, with what they have not finished."""
        _kill(self._running, self._files)
        self._maps.clear()
        self._todo.clear()
        self._ready.clear()
        self._done = self._sent

    def _send(self) -> None:
        """Give tasks to the workers with the fewest, new ones where all are busy, so many as may be in flight."""
        while self._todo and self._sent - self._done < self.workers * self.prefetch:
            worker = min(self._running, key=lambda worker: len(worker.pending), default=None)
            if worker is None or (worker.pending and len(self._running) < self.workers):
                worker = self._start(len(self._running))
                self._running.append(worker)
            worker.send(self._sent, (self._free.popleft(), self._todo.popleft()))
            self._sent += 1

    def _next(self) -> Result:
        while not self._ready or (self.ordered and self._done not in self._ready):
            self._receive()
        file, packed, sizes = self._ready.pop(self._done if self.ordered else next(iter(self._ready)))
        self._free.extend(self._lent)  # its caller asks for the next one
        self._lent = [file]
        if sum(sizes) > len(self._maps[file]):
            self._maps[file] = np.frombuffer(mmap.mmap(self._files[file].fileno(), sum(sizes)), np.uint8)
            if self.pin_memory:
                page_lock(self._maps[file])
        parts = np.split(self._maps[file][: sum(sizes)], np.cumsum(sizes)[:-1])
        buffers = [part if self.pin_memory and len(part) >= LARGE else part.copy() for part in parts]
        result: Result = pickle.loads(packed, buffers=buffers)
        self._done += 1
        self._send()
        if isinstance(result, Exception):
            raise result
        return result

    def _start(self, number: int) -> "_Worker":
        self._held[number] = NOTHING
        if not self._files:
            in_memory = hasattr(os, "memfd_create")  # macOS has none
            for _ in range(self.workers * self.prefetch + 1):
                file = os.fdopen(os.memfd_create("batch"), "r+b") if in_memory else tempfile.TemporaryFile()  # noqa: SIM115
                self._files.append(file)
            self._free, self._lent = deque(range(len(self._files))), []
        return _Worker(self._run, number)

    def _receive(self) -> None:
        """Wait for results, or for the death of a worker."""
        if not self._running:
            raise RuntimeError("the workers have ended")
        sources: dict[Any, _Worker] = {worker.connection: worker for worker in self._running}
        for source in connection.wait(list(sources)):
            try:
                number, seconds, self._ready[number] = sources[source].receive()
            except (EOFError, OSError):
                self._replace(sources[source])
            else:
                self._idle_deaths, self._measured, self._busy = 0, self._measured + 1, self._busy + seconds

    def _replace(self, worker: "_Worker") -> None:
        """Restart a dead worker, report its item, and resend its tasks."""
        worker.process.join(timeout=10)
        number = self._running.index(worker)
        cause = _cause_of_death(worker.process.exitcode, self.time_limit)
        item = int(self._held[number])
        if item == NOTHING:
            self._idle_deaths += 1
            if self._idle_deaths > MAX_IDLE_DEATHS:
                raise RuntimeError(f"data workers keep dying ({cause}); if memory is short, use fewer workers")
        else:
            self.on_death(item, cause)
        worker.close()
        self._running[number] = self._start(number)
        for task in worker.pending.items():
            self._running[number].send(*task)

    def _run(self, number: int, link: connection.Connection) -> None:
        """Main loop of a worker process: take tasks and send results until the main process has ended."""
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(ignored, signal.SIG_IGN)  # they are meant for the main process, which ends this one
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.disable()  # the main process reports a crash, in one line
        gc.freeze()  # keeps inherited memory shared: the garbage collector would write to all of it
        torch.set_num_threads(1)
        keep_freed_memory(64 << 20)  # else that of frames is fetched again in each clip: 500 page faults, 1.5 ms
        inherited = _address_space()
        if self.memory_limit is not None:
            with contextlib.suppress(ValueError):  # the process has a lower limit already
                most = resource.getrlimit(resource.RLIMIT_AS)[1]
                resource.setrlimit(resource.RLIMIT_AS, (inherited + self.memory_limit, most))

        def hold(item: int) -> None:
            self._held[number] = item
            signal.setitimer(signal.ITIMER_REAL, self.time_limit or 0)

        parent = os.getppid()
        while True:
            try:
                while not link.poll(2):
                    if os.getppid() != parent:
                        os._exit(0)
                task_number, (file, task) = link.recv()
            except (EOFError, OSError):
                os._exit(0)
            hold(NOTHING)  # starts the alarm also for work that holds no item
            began = time.perf_counter()
            try:
                packed = _pack(self.work(task, hold), self._files[file])
            except Exception as error:
                packed = _pack(ExceptionWithTraceback(error, error.__traceback__), self._files[file])
            hold(NOTHING)
            message = pickle.dumps((task_number, time.perf_counter() - began, (file, *packed)))
            signal.setitimer(signal.ITIMER_REAL, 0)  # the main process may take its time to receive
            link.send_bytes(message)
            if self.memory_limit is not None and _address_space() - inherited > self.memory_limit / 2:
                os._exit(0)  # the decoder leaks: another process takes over before memory is short


class _Worker:
    """The main process's end of a worker: its process, its connection, and the tasks it has not finished."""

    def __init__(self, run: Callable[..., None], number: int) -> None:
        self.pending: dict[int, Any] = {}  # number of the task -> its file and task, in the order sent
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=run, args=(number, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, number: int, task: Any) -> None:
        self.pending[number] = task
        with contextlib.suppress(OSError):  # it has just died: the next worker gets what is pending
            self.connection.send((number, task))

    def receive(self) -> tuple[int, float, Any]:
        number, seconds, packed = pickle.loads(self.connection.recv_bytes())
        del self.pending[number]
        return number, seconds, packed

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


class _Pickler(pickle.Pickler):
    """Pickler that leaves the bytes of tensors and arrays to its ``buffer_callback``."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        order = sorted(range(value.ndim), key=value.stride, reverse=True)  # of its dimensions in memory, which is kept
        return _tensor, (value.detach().permute(order).contiguous().numpy(), np.argsort(order).tolist())


def _tensor(array: np.ndarray, dimensions: list[int]) -> Tensor:
    return torch.from_numpy(array).permute(dimensions)


def _pack(value: Any, file: BinaryIO) -> tuple[bytes, list[int]]:
    """The pickled value, and the sizes of its tensors and arrays, whose bytes are written to the file instead."""
    packed, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(packed, protocol=5, buffer_callback=buffers.append).dump(value)
    file.seek(0)
    sizes = [file.write(buffer.raw()) for buffer in buffers]
    file.flush()
    return packed.getvalue(), sizes


def _kill(workers: list[_Worker], files: list[BinaryIO]) -> None:
    while workers:
        workers.pop().close()
    while files:
        files.pop().close()


def _cause_of_death(exitcode: int | None, time_limit: float | None) -> str:
    if exitcode == -signal.SIGALRM:
        return f"took longer than {time_limit:g} s"
    if exitcode and exitcode < 0:
        return f"its process died of {signal.Signals(-exitcode).name}"
    return f"its process ended with exit code {exitcode}"


def _address_space() -> int:
    """Bytes of address space in use. A limit must lie above what was inherited, which a GPU's driver makes huge."""
    if not os.path.exists("/proc"):  # macOS, which keeps no such limit
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
