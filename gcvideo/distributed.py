"""Rank, world size and collective operations, which do nothing when there is only one process.

Processes are started by ``torchrun`` (or anything else that sets ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
``MASTER_ADDR`` and ``MASTER_PORT``). Tensors on a GPU travel by NCCL, everything on the CPU by gloo.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine, from 0: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


@contextmanager
def init_from_env(device_type: str = "cpu", *, timeout_minutes: float = 30) -> Iterator[bool]:
    """Join the process group for the length of a ``with`` block; does nothing for a single process.

    Args:
        device_type: "cpu" (gloo) or "cuda" (NCCL for GPU tensors, gloo for CPU tensors and Python objects).
        timeout_minutes: how long a process waits for the others before it gives up.

    Yields:
        Whether torchrun has restarted this job: after a failure, or because a machine left or joined. All processes
        get the same value, also those on a machine that has just joined.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if world_size() == 1 or _initialized():
        yield restarted
        return
    import torch.distributed as dist

    from gcvideo.rendezvous import fresh_store

    _end_with_torchrun()
    timeout = timedelta(minutes=timeout_minutes)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    store, number, count = next(dist.rendezvous("env://", timeout=timeout))
    if number == 0:
        restarted = store.add("starts", 1) > 1 or restarted
    store = fresh_store(store, rank=number, world_size=count, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    try:
        yield bool(agree(int(restarted)))
    finally:
        dist.destroy_process_group()


def _end_with_torchrun() -> None:
    """Have the kernel send SIGTERM when torchrun, the parent process, dies without ending its child processes.

    SIGKILL ends torchrun so, and every signal that it does not handle, as SIGUSR1 (prctl(2), PR_SET_PDEATHSIG).
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))


def all_reduce(tensor: torch.Tensor, op: Literal["sum", "mean", "max"] = "sum") -> torch.Tensor:
    """Combine a tensor over all processes, in place; returns it."""
    if _initialized():
        import torch.distributed as dist

        dist.all_reduce(tensor, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
        if op == "mean":
            tensor /= world_size()
    return tensor


def agree(code: int) -> int:
    """The largest ``code`` that any process brings. Travels over the CPU, so it never waits for a GPU."""
    if not _initialized():
        return code
    import torch

    return int(all_reduce(torch.tensor(code), "max"))


def gather_objects(item: T) -> list[T]:
    """Every process's item, in rank order, on every process."""
    if not _initialized():
        return [item]
    import torch.distributed as dist

    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def broadcast_object(item: T) -> T:
    """Rank 0's item, on every process."""
    if not _initialized():
        return item
    import torch.distributed as dist

    items: list[Any] = [item]
    dist.broadcast_object_list(items, src=0)
    return items[0]


def broadcast_tensors(tensors: list[torch.Tensor]) -> None:
    """Overwrite each tensor with rank 0's."""
    if _initialized():
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def barrier() -> None:
    """Wait until every process has come here."""
    agree(0)


def _initialized() -> bool:
    if world_size() == 1:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()
