"""Processes of a restarted job find each other, although torchrun's store still holds the addresses of dead ones."""

from __future__ import annotations

import os
import socket
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from gcvideo import distributed
from tests.processes import start_ranks, wait, wait_for, warm_context

pytestmark = pytest.mark.slow  # starts processes


def _join(environment: dict[str, str], path: str) -> None:
    os.environ.update(environment)
    with distributed.init_from_env(timeout_minutes=1) as restarted:
        ranks = distributed.gather_objects(distributed.rank())
        Path(path).write_text(f"{ranks} {restarted}")


def _fail(environment: dict[str, str]) -> None:
    """Process 1 fails; 0 waits for it in what no closed connection ends, as a kernel of NCCL is, 2 in a collective."""
    os.environ.update(environment)
    distributed.LOOK_EVERY = distributed.GRACE = 0.1
    with distributed.init_from_env(timeout_minutes=30):
        if distributed.rank() == 1:
            raise ValueError("a mistake")
        if distributed.rank() == 2:
            distributed.barrier()
        threading.Event().wait()


def test_a_process_that_fails_ends_the_others_without_a_launcher() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "3"}
    context = warm_context()
    started = [context.Process(target=_fail, args=({**common, "RANK": str(r)},)) for r in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in started] == [1, 1, 1]


def start_all(store: dist.TCPStore, folder: Path, *, restarts: list[int]) -> list[str]:
    """What the processes of one start say, each on a machine whose torchrun has counted so many restarts."""
    context = warm_context()
    agent = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    started = []
    for rank, count in enumerate(restarts):
        (folder / f"{rank}.txt").unlink(missing_ok=True)
        own = {"RANK": str(rank), "WORLD_SIZE": str(len(restarts)), "TORCHELASTIC_RESTART_COUNT": str(count)}
        started.append(context.Process(target=_join, args=({**agent, **own}, str(folder / f"{rank}.txt"))))
        started[-1].start()
    for process in started:
        process.join(90)
        process.kill()
    return [path.read_text() for path in sorted(folder.glob("*.txt"))]


@pytest.fixture
def store() -> dist.TCPStore:
    """What the leading torchrun serves, from the first start to the last."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=1))


def test_a_machine_that_is_replaced_joins_the_others(store: dist.TCPStore, tmp_path: Path) -> None:
    """The new one has counted no restarts, the old one has; and the world may have another size."""
    assert start_all(store, tmp_path, restarts=[0, 0]) == ["[0, 1] False"] * 2
    assert start_all(store, tmp_path, restarts=[1, 0]) == ["[0, 1] True"] * 2
    assert start_all(store, tmp_path, restarts=[0, 1, 0]) == ["[0, 1, 2] True"] * 3


def test_a_machine_that_joins_without_a_failure_is_a_restart_too(store: dist.TCPStore, tmp_path: Path) -> None:
    start_all(store, tmp_path, restarts=[0, 0])
    assert start_all(store, tmp_path, restarts=[0, 0, 0]) == ["[0, 1, 2] True"] * 3


def _agree_late(environment: dict[str, str], folder: str) -> None:
    """Process 1 brings its code only after process 0 has brought two: that one must not wait for its first result."""
    os.environ.update(environment)
    first, codes = Path(folder) / "first", []
    with distributed.init_from_env(timeout_minutes=1):
        agree = distributed.LateAgreement()
        if distributed.rank() == 1:
            wait_for(first.exists, [])
            codes = [agree(2), agree(0)]
        else:
            codes = [agree(1)]
            first.touch()
            codes.append(agree(0))
        codes.append(agree(0))
    (Path(folder) / f"codes{distributed.rank()}").write_text(str(codes))


def test_a_late_agreement_does_not_wait_for_other_processes(tmp_path: Path) -> None:
    ranks = start_ranks(_agree_late, {}, str(tmp_path), processes=2)
    assert wait(ranks) == [0, 0]
    for rank in (0, 1):
        assert (tmp_path / f"codes{rank}").read_text() == "[0, 2, 0]"  # of the call before


def test_a_late_agreement_of_one_process_is_what_it_brings() -> None:
    assert [distributed.LateAgreement()(code) for code in (2, 0)] == [2, 0]
