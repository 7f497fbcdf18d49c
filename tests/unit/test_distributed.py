"""Processes of a restarted job find each other, although torchrun's store still holds the addresses of dead ones."""

from __future__ import annotations

import json
import os
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from gcvideo import distributed
from gcvideo.config import RunConfig
from gcvideo.data.bad_videos import NEVER, Quarantine
from gcvideo.data.records import RecordTable
from gcvideo.eval.predictions import Predictions
from gcvideo.train.run_folder import RunFolder
from tests.processes import start_ranks, wait, wait_for, warm_context
from tests.validation_time import finish, made_up

pytestmark = pytest.mark.slow  # starts processes


def _join(environment: dict[str, str], path: str) -> None:
    os.environ.update(environment)
    with distributed.init_from_env(timeout_minutes=1) as restarted:
        ranks = distributed.gather_objects(distributed.rank())
        Path(path).write_text(f"{ranks} {restarted}")


def _fail() -> None:
    """Process 1 fails; 0 waits for it in what no closed connection ends, as a kernel of NCCL is, 2 in a collective."""
    distributed.LOOK_EVERY = distributed.GRACE = 0.1
    with distributed.init_from_env(timeout_minutes=30):
        if distributed.rank() == 1:
            raise ValueError("a mistake")
        if distributed.rank() == 2:
            distributed.agree(0)
        threading.Event().wait()


def test_a_process_that_fails_ends_the_others_without_a_launcher() -> None:
    assert wait(start_ranks(_fail, processes=3), 60) == [1, 1, 1]


def _exchange(folder: Path) -> None:
    with distributed.init_from_env(timeout_minutes=1):
        rank = distributed.rank()
        records = RecordTable.of_files([f"{index:05}.mp4" for index in range(21)])
        run = RunFolder(RunConfig(name="run", output=str(folder)))
        finish(made_up(21, classes=7, rank=rank, world=2), records, run).save(folder / f"{rank}.npz")
        bad = Quarantine(records, folder / "quarantine.jsonl")
        bad.add(bad.failure(rank)._replace(reason=f"of rank {rank}"), from_epoch=3)
        bad.share()
        bad.add(bad.failure(1), from_epoch=3)
        bad.share()
        (folder / f"{rank}.json").write_text(json.dumps([*bad.bad_from[:3].tolist(), bad.reasons], sort_keys=True))


def test_processes_exchange_predictions_and_bad_videos_and_one_writes(tmp_path: Path) -> None:
    assert wait(start_ranks(_exchange, tmp_path, processes=2), 90) == [0, 0]
    expected = Predictions.collect(made_up(21, classes=7))
    for found in map(Predictions.load, (tmp_path / "0.npz", tmp_path / "1.npz", tmp_path / "run/predictions_val.npz")):
        assert found.ids == expected.ids
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.averages["logits"], expected.averages["logits"])
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
    assert json.loads((tmp_path / "0.json").read_text())[:3] == [3, 3, NEVER]
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows] == ["of rank 0", "of rank 1"]


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
