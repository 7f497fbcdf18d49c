"""Rank, world size and collective operations, which do nothing when there is only one process.

Processes are started by ``torchrun`` (or anything else that sets ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
``MASTER_ADDR`` and ``MASTER_PORT``). Tensors on a GPU travel by NCCL, everything on the CPU by gloo.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gcvideo.errors import GcvideoError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# Seconds between two looks at whether another process has failed, and then until a process ends that waits for it.
LOOK_EVERY, GRACE = 1.0, 20.0


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine, from 0: the index of its GPU; a task of ``srun`` has one too."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "0"))


def world_size() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def cores() -> int:
    """CPU cores for this process, at least 1: as many as it may use, over torchrun's processes on this machine."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # "max" where a container has no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        found = min(found, math.ceil(int(quota) / int(period)))
    found = min(found, int(os.environ.get("SLURM_CPUS_PER_TASK", found)))
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_main() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


@contextmanager
def init_from_env(device_type: str = "cpu", *, timeout_minutes: float = 30) -> Iterator[bool]:
    """Join the process group for the length of a ``with`` block; does nothing for a single process.

    After an exception in one process the others end too, whoever started them: within half a minute where they wait
    for it in NCCL, which does not notice.

    Args:
        device_type: "cpu" (gloo) or "cuda" (NCCL for GPU tensors, gloo for CPU tensors and Python objects).
        timeout_minutes: how long a process waits for the others before it gives up.

    Yields:
        Whether torchrun has restarted this job: after a failure, or because a machine left or joined. All processes
        get the same value, also those on a machine that has just joined.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if world_size() == 1 or _group():
        yield restarted
        return
    import torch.distributed as dist

    _end_with_torchrun()
    timeout = timedelta(minutes=timeout_minutes)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    store, number, count = next(dist.rendezvous("env://", timeout=timeout))
    if number == 0:
        restarted = store.add("starts", 1) > 1 or restarted
    store = dist.PrefixStore(_name_of_start(store, number, count), store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    left = threading.Event()
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun ends the others itself
        threading.Thread(target=_end_with_others, args=(store, left), daemon=True).start()
    try:
        yield bool(agree(int(restarted)))
    except BaseException:
        left.set()
        with suppress(RuntimeError):  # the store is gone where rank 0 is
            store.set("failed", str(number))
        dist.distributed_c10d._abort_process_group()  # to destroy it would wait for the others, who wait for this one
        if number == 0:
            time.sleep(2 * LOOK_EVERY)  # the store is in this process
        raise
    left.set()
    dist.destroy_process_group()


def _end_with_others(store: Any, left: threading.Event) -> None:
    """End this process some time after another has failed, unless it has left the group by then. Runs in a thread."""
    with suppress(RuntimeError):  # rank 0 has ended, and the store with it
        while not left.wait(LOOK_EVERY):
            if store.check(["failed"]) and not left.wait(GRACE):
                print(f"process {rank()}: ends because process {store.get('failed').decode()} failed", file=sys.stderr)
                os._exit(1)


def _name_of_start(store: Any, number: int, count: int) -> str:
    """A name for this start of the job, the same on every process: a place in the store without earlier entries.

    torchrun keeps its store when it restarts a job, so the addresses of processes that have died are still in it. Its
    restart count does not tell one start from another: where a process of one machine fails, only that machine counts
    a restart, and a machine that joins counts from 0. So every process sends a question that is unique to it, and
    rank 0 replies with the name, perhaps also to a question that is left from an earlier start.
    """
    name = uuid.uuid4().hex
    if number > 0:
        store.set(f"question of {number}", name)
        reply: bytes = store.get(f"reply to {name}")  # waits for it
        store.set(f"{number} joined {reply.decode()}", "")
        return reply.decode()
    for other in range(1, count):
        while not store.check([f"{other} joined {name}"]):
            store.set(f"reply to {store.get(f'question of {other}').decode()}", name)
            time.sleep(0.01)
    return name


def _end_with_torchrun() -> None:
    """Have the kernel send SIGTERM when torchrun, the parent process, dies without ending its child processes.

    SIGKILL ends torchrun so, and every signal that it does not handle, as SIGUSR1 (prctl(2), PR_SET_PDEATHSIG).
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))


def all_reduce(tensor: torch.Tensor, op: Literal["sum", "mean", "max"] = "sum") -> torch.Tensor:
    """Combine a tensor over all processes, in place; returns it."""
    if dist := _group():
        dist.all_reduce(tensor, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
        if op == "mean":
            tensor /= world_size()
    return tensor


def agree(code: int) -> int:
    """The largest ``code`` that any process brings. Travels over the CPU, so it never waits for a GPU."""
    if not _group():
        return code
    import torch

    return int(all_reduce(torch.tensor(code), "max"))


class LateAgreement:
    """``agree`` without a wait: each call starts an exchange and returns what came of the one before, at first 0.

    A single process gets back what it brings. Every process must call it equally often.
    """

    def __init__(self) -> None:
        self._begun: Any = None

    def __call__(self, code: int) -> int:
        """The largest code that any process brought to the call before."""
        if not (dist := _group()):
            return code
        import torch

        codes, before = torch.tensor(code), self._begun
        self._begun = codes, dist.all_reduce(codes, dist.ReduceOp.MAX, async_op=True)
        if before is None:
            return 0
        before[1].wait()
        return int(before[0])


def gather_objects(item: T) -> list[T]:
    """Every process's item, in rank order, on every process."""
    items: list[Any] = [item] * world_size()
    if dist := _group():
        dist.all_gather_object(items, item)
    return items


def broadcast_object(item: T) -> T:
    """Rank 0's item, on every process."""
    items = [item]
    if dist := _group():
        dist.broadcast_object_list(items, src=0)
    return items[0]


def on_main(work: Callable[[], T]) -> T:
    """What a call returns on rank 0, on every process.

    Raises:
        GcvideoError: on every process, if the call raises one on rank 0, or an ``OSError``.
    """
    result: Any = None
    error: GcvideoError | None = None
    if is_main():
        try:
            result = work()
        except GcvideoError as problem:
            error = problem
        except OSError as problem:
            error = GcvideoError(f"{problem.filename}: {problem.strerror}")
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite each tensor with rank 0's."""
    if dist := _group():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _group() -> Any:
    """``torch.distributed`` where this process has joined a group, else None."""
    if world_size() == 1:
        return None
    import torch.distributed as dist

    return dist if dist.is_initialized() else None


def repeat_after_torchrun(line: str) -> None:
    """Print an error once more when torchrun, which prints its own traceback, has ended; nothing without torchrun.

    A process that outlives torchrun does it, at the last of its attempts.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "") == os.environ.get("TORCHELASTIC_MAX_RESTARTS", "none"):
        # A process that has ended but was not waited for yet has no executable.
        code = "import os, sys, time\nwhile os.path.exists(sys.argv[1]): time.sleep(0.02)\nsys.exit(sys.argv[2])"
        place = f"/proc/{os.getppid()}/exe"
        subprocess.Popen([sys.executable, "-S", "-c", code, place, line], start_new_session=True)
