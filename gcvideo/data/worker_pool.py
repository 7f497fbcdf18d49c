"""A pool of worker processes that survives them.

Video decoders crash and hang on damaged files. A worker process says in shared memory which item it holds and sets
itself an alarm; when it dies, by a signal, by the alarm or by hand, the pool learns which item was to blame, starts
another process and gives it the tasks that the dead one had not delivered. Every task's result arrives exactly once,
in the order of the tasks, whatever the number of workers and whoever died on the way.

Results travel through anonymous memory files, so a small ``/dev/shm``, as containers have, is no obstacle.
"""

from __future__ import annotations

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
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, util
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Task = TypeVar("Task")
Result = TypeVar("Result")
Hold = Callable[[int], None]

NOTHING = -1
# A process that keeps dying without an item to blame has another reason, most often memory.
MAX_IDLE_DEATHS = 5


class WorkerPool(Generic[Task, Result]):
    """Runs ``work`` on tasks in forked processes.

    Args:
        work: called with a task and ``hold``, in a worker process, where it may change state of its own only. It
            calls ``hold(item)`` before it touches an item that might kill it.
        workers: number of processes, at least 1.
        on_death: called in the main process with the item that a dead worker held, and how it died; ``work`` gets the
            same task again and must by then know better.
        time_limit: seconds that one item may take.
        memory_limit: bytes that a worker may allocate beyond what it inherits; an item that needs more gets a
            ``MemoryError``.
        prefetch: tasks in flight for each worker.
        pin_memory: tensors of results come in page-locked memory, from which copies to a GPU run in the background.
    """

    def __init__(
        self,
        work: Callable[[Task, Hold], Result],
        *,
        workers: int,
        on_death: Callable[[int, str], None],
        time_limit: float,
        memory_limit: int,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._work = work
        self._pin_memory = pin_memory
        self._on_death = on_death
        self._time_limit = time_limit
        self._memory_limit = memory_limit
        self._prefetch = prefetch
        self._held = np.frombuffer(mmap.mmap(-1, 8 * workers), dtype=np.int64)
        self._size = workers
        self._workers: list[_Worker] = []
        self._idle_deaths = 0

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks.

        Raises:
            Exception: what ``work`` raised for a task, when its turn comes.
            RuntimeError: workers keep dying with no item to blame.
        """
        workers: list[_Worker] = []
        self._workers = workers
        # Workers would outlive a process that exits without closing the generator.
        finalizer = util.Finalize(self, _kill, args=(workers,), exitpriority=10)
        todo = enumerate(tasks)
        ready: dict[int, Any] = {}
        due = sent = 0
        try:
            for number in range(self._size):
                workers.append(self._start(number))
            while True:
                while sent - due < self._size * self._prefetch and (item := next(todo, None)) is not None:
                    self._freest().send(*item)
                    sent += 1
                if due == sent:
                    return
                while due not in ready:
                    ready.update(self._receive())
                result = ready.pop(due)
                due += 1
                if isinstance(result, _Raised):
                    raise result.error from _WorkerTraceback(result.trace)
                yield result
        finally:
            finalizer()

    def _start(self, number: int) -> _Worker:
        self._held[number] = NOTHING
        return _Worker(self._prefetch, self._run, number)

    def _freest(self) -> _Worker:
        return min(self._workers, key=lambda worker: len(worker.pending))

    def _receive(self) -> dict[int, Any]:
        """Wait for results, or for a death. Results are keyed by the number of their task."""
        results: dict[int, Any] = {}
        sources: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers}
        sources |= {worker.process.sentinel: worker for worker in self._workers}
        for worker in dict.fromkeys(sources[source] for source in connection.wait(list(sources))):
            try:
                while worker.connection.poll():
                    number, result = worker.receive(pin_memory=self._pin_memory)
                    results[number] = result
                    self._idle_deaths = 0
            except (EOFError, OSError):
                self._replace(worker)
            else:
                if not worker.process.is_alive() and not worker.connection.poll():
                    self._replace(worker)
        return results

    def _replace(self, worker: _Worker) -> None:
        """Bury a dead worker, blame the item it held, and give its tasks to a new one."""
        worker.process.join(timeout=10)
        worker.process.kill()  # in case that its connection broke, and not the process
        worker.process.join()
        number = self._workers.index(worker)
        how = _cause_of_death(worker.process.exitcode, self._time_limit)
        item = int(self._held[number])
        if item == NOTHING:
            self._idle_deaths += 1
            if self._idle_deaths > MAX_IDLE_DEATHS:
                raise RuntimeError(f"data workers keep dying ({how}); if memory is short, lower data.workers")
        else:
            self._on_death(item, how)
        tasks = list(worker.pending.items())
        worker.close()
        self._workers[number] = self._start(number)
        for task in tasks:
            self._workers[number].send(*task)

    def _run(self, number: int, link: connection.Connection, files: list[int]) -> None:
        """A worker process: take tasks and deliver results until the main process is gone."""
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(ignored, signal.SIG_IGN)  # they are meant for the main process, which ends this one
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.disable()  # a crash is reported by the main process, in one line
        gc.freeze()  # what was inherited stays shared: the garbage collector would write to all of it
        torch.set_num_threads(1)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_AS, _address_space() + self._memory_limit)

        def hold(item: int) -> None:
            self._held[number] = item
            signal.setitimer(signal.ITIMER_REAL, self._time_limit)

        parent = os.getppid()
        while True:
            try:
                while not link.poll(2):
                    if os.getppid() != parent:
                        os._exit(0)
                task_number, slot, task = link.recv()
            except (EOFError, OSError):
                os._exit(0)
            hold(NOTHING)  # the alarm runs from here, whether the work names an item or not
            try:
                result: Any = self._work(task, hold)
            except Exception as error:
                result = _Raised(error, traceback.format_exc())
            hold(NOTHING)
            message = pickle.dumps((task_number, slot, _pack(result, files[slot])))
            signal.setitimer(signal.ITIMER_REAL, 0)  # the main process may take its time to listen
            link.send_bytes(message)


class _Worker:
    """The main process's end of a worker: its process, its connection, and the tasks it has not delivered."""

    def __init__(self, prefetch: int, run: Callable[..., None], number: int) -> None:
        self.pending: dict[int, Any] = {}  # task number -> task, in the order sent
        self._files = [_memory_file() for _ in range(prefetch)]
        self._free = list(range(prefetch))
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=run, args=(number, theirs, self._files), daemon=True)
        with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads; workers use none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()

    def send(self, number: int, task: Any) -> None:
        self.pending[number] = task
        with contextlib.suppress(OSError):  # it just died: the tasks that are pending go to the next one
            self.connection.send((number, self._free.pop(), task))

    def receive(self, *, pin_memory: bool) -> tuple[int, Any]:
        number, slot, packed = pickle.loads(self.connection.recv_bytes())
        result = _Unpickler(packed, self._files[slot], pin_memory).load()
        self._free.append(slot)
        del self.pending[number]
        return number, result

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()
        for file in self._files:
            os.close(file)
        self._files = []


class _Raised:
    """An exception on its way from a worker, with the traceback it had there."""

    def __init__(self, error: Exception, trace: str) -> None:
        self.error = error
        self.trace = trace


class _WorkerTraceback(Exception):
    def __str__(self) -> str:
        return f"\n\nin a worker process:\n{self.args[0]}"


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.close()


def _cause_of_death(exitcode: int | None, time_limit: float) -> str:
    if exitcode == -signal.SIGALRM:
        return f"decoding took longer than {time_limit:g} s"
    if exitcode is not None and exitcode < 0:
        return f"the decoder died of {signal.Signals(-exitcode).name}"
    return f"the decoder ended its process with exit code {exitcode}"


# --- results as bytes in a memory file -------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Pickles everything but tensors, whose bytes go to a file."""

    def __init__(self, buffer: io.BytesIO, file: int) -> None:
        super().__init__(buffer)
        self._file = file
        self._offset = 0

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        tensor = value.detach().contiguous()
        start = self._offset
        view = _bytes(tensor)
        while view:
            written = os.pwrite(self._file, view, self._offset)
            self._offset += written
            view = view[written:]
        return tensor.dtype, tuple(tensor.shape), start


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: bytes, file: int, pin_memory: bool) -> None:
        super().__init__(io.BytesIO(packed))
        self._file = file
        self._pin_memory = pin_memory

    def persistent_load(self, tag: tuple[torch.dtype, tuple[int, ...], int]) -> Tensor:
        dtype, shape, offset = tag
        tensor = torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)
        view = _bytes(tensor)
        while view:
            read = os.preadv(self._file, [view], offset)
            if not read:
                raise OSError("a worker's memory file ends early")
            offset += read
            view = view[read:]
        return tensor


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.numpy().reshape(-1).view(np.uint8).data


def _pack(value: Any, file: int) -> bytes:
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, file).dump(value)
    except Exception as error:  # an exception that cannot be pickled, most likely
        buffer = io.BytesIO()
        _Pickler(buffer, file).dump(_Raised(RuntimeError(f"{type(error).__name__}: {error}"), traceback.format_exc()))
    return buffer.getvalue()


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("gcvideo-batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _address_space() -> int:
    """Bytes of address space in use; a limit has to lie above what was inherited, which a GPU's driver makes huge."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 1 << 50


def _limit(what: int, amount: int) -> None:
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))
