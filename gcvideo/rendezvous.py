"""Rendezvous of one start of a torchrun job, kept apart from earlier starts of the same job."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist


def fresh_store(store: dist.Store, *, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """A part of the store that holds nothing from earlier starts.

    torchrun keeps its store when it restarts a job, so the addresses of processes that have died are still in it. Its
    restart count does not tell one start from another: where a process of one machine fails, only that machine counts
    a restart, and a machine that joins counts from 0. So every process sends a question that is unique to it, and
    rank 0 replies with the name of this start.

    Args:
        store: that all processes share.
        rank: of this process.
        world_size: number of processes.
        timeout: how long rank 0 waits for the others.

    Raises:
        TimeoutError: some process did not come.
    """
    if rank == 0:
        return dist.PrefixStore(_reply_to_all(store, world_size, timeout), store)
    question = uuid.uuid4().hex
    store.set(f"question of {rank}", question)
    name = store.get(f"reply to {question}").decode()  # waits for it
    store.add(f"joined {name}", 1)
    return dist.PrefixStore(name, store)


def _reply_to_all(store: dist.Store, world_size: int, timeout: timedelta) -> str:
    name, replied = uuid.uuid4().hex, set()
    end = time.monotonic() + timeout.total_seconds()
    while store.add(f"joined {name}", 0) < world_size - 1:
        for rank in range(1, world_size):
            if not store.check([f"question of {rank}"]):
                continue
            question = store.get(f"question of {rank}").decode()
            if question not in replied:  # perhaps of a process of an earlier start, which does no harm
                store.set(f"reply to {question}", name)
                replied.add(question)
        if time.monotonic() > end:
            raise TimeoutError(f"only some of the {world_size} processes came within {timeout}")
        time.sleep(0.01)
    return name
