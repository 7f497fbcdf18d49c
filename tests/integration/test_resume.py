"""A run that was killed and resumed ends with exactly the weights of the uninterrupted run.

``GCVIDEO_KILL_SEEDS=20 pytest tests/integration/test_resume.py`` tries twenty places to die instead of one.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gcvideo.config import RunConfig
from gcvideo.train import logger
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.train.signals import EXIT_CODE
from gcvideo.train.trainer import Trainer
from tests.processes import wait, wait_for
from tests.training import (
    complaints,
    last_state,
    make_videos,
    metrics,
    release,
    same_tensors,
    start,
    steps_done,
    train_config,
    train_in_processes,
)

pytestmark = pytest.mark.slow  # starts many processes

SEEDS = range(int(os.environ.get("GCVIDEO_KILL_SEEDS", "1")))
STEPS = 9
# Everything that could make a difference: dropout, drop-path, averaging, clipping, accumulation, momentum.
THOROUGH: dict[str, Any] = {
    "model": {"dropout": 0.5, "drop_path": 0.2},
    "optim": {"clip_grad_norm": 1.0},
    "train": {"epochs": 3, "accumulate": 2, "ema": 0.9, "precise_bn": 1, "checkpoint_every": 2, "val_every": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("resume"), count=12)


def configure(place: Path, name: str, **train: Any) -> RunConfig:
    return train_config(place, name, **{**THOROUGH, "train": {**THOROUGH["train"], **train}})


@pytest.fixture(scope="module")
def unstopped(place: Path) -> dict[int, dict[str, Any]]:
    """The last checkpoint of an unbroken run, for one process and for two."""
    states = {}
    for processes in (1, 2):
        config = configure(place, f"unstopped{processes}")
        assert train_in_processes(config, processes=processes) == [0] * processes
        states[processes] = last_state(config)
        assert states[processes]["step"] == STEPS
    return states


def assert_same(state: dict[str, Any], other: dict[str, Any]) -> None:
    counts = ("ema_updates", "step", "epoch", "epoch_step", "best", "stale", "validation")
    for part in ("model", "raw_model", "optimizer", *counts):
        assert same_tensors(state[part], other[part]), part


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_anywhere_it_ends_with_the_same_weights(
    place: Path, unstopped: dict[int, dict[str, Any]], processes: int, workers: int, seed: int
) -> None:
    """SIGKILL at a random moment, go on with another number of workers, once more, then to the end."""
    rng = random.Random(f"{processes} {workers} {seed}")
    config = configure(place, f"killed-{processes}-{workers}-{seed}")
    config.data.workers = workers
    died_at = []
    for last, hold_after in ((STEPS // 2, STEPS - 2), (STEPS - 1, None)):  # the first death comes before the end
        target = rng.randint(1, last)
        running = start(config, processes=processes, hold_after=hold_after, resume=True)
        wait_for(lambda target=target: steps_done(config) >= target, running)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.05))  # anywhere in a step, a validation, or a write
        for process in running:
            process.kill()
        wait(running)
        died_at.append(steps_done(config))
        config.data.workers = 2 - workers
    assert died_at[0] < STEPS
    assert train_in_processes(config, processes=processes, resume=True) == [0] * processes
    assert_same(last_state(config), unstopped[processes])
    assert [line["step"] for line in metrics(config)] == list(range(1, STEPS + 1))  # each step told once
    assert not list((config.run_dir / "checkpoints").glob(".*"))


def test_three_killed_processes_end_within_rounding(place: Path) -> None:
    """After a restart DDP orders its buckets anew, so sums over more than two processes may round differently."""
    states = []
    for name in ("unstopped3", "killed3"):
        config = configure(place, name, accumulate=1, batch_size=3, epochs=1)
        if name == "killed3":
            running = start(config, processes=3, hold_after=2)
            wait_for(lambda config=config: steps_done(config) >= 2, running)  # type: ignore[misc]
            for process in running:
                process.kill()
            wait(running)
            assert steps_done(config) < 4
        assert train_in_processes(config, processes=3, resume=True) == [0] * 3
        states.append(last_state(config))
    torch.testing.assert_close(states[1]["model"], states[0]["model"], rtol=1e-4, atol=1e-5)
    assert states[1]["step"] == states[0]["step"] == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_saves_first_and_leaves_with_its_own_exit_code(
    place: Path, unstopped: dict[int, dict[str, Any]], processes: int, number: signal.Signals
) -> None:
    config = configure(place, f"signal-{processes}-{number}", checkpoint_every=0, val_every=0)
    running = start(config, processes=processes, hold_after=4)
    wait_for(lambda: steps_done(config) >= 4, running)
    os.kill(running[-1].pid or 0, number)  # one process receives it, all of them stop
    release(config)
    assert wait(running) == [EXIT_CODE] * processes
    step = last_state(config)["step"]
    assert step >= 4
    assert step == steps_done(config)  # not one step is lost
    assert train_in_processes(config, processes=processes, resume=True) == [0] * processes
    unlike = {"best": None, "stale": 0}  # it validates at the end alone
    assert_same(last_state(config) | unlike, unstopped[processes] | unlike)


def test_checkpoints_are_written_by_the_clock_and_as_many_kept_as_asked(place: Path) -> None:
    config = train_config(place, "clock", train={"checkpoint_minutes": 1e-9, "keep_checkpoints": 3})
    assert train_in_processes(config) == [0]
    names = {path.name for path in (config.run_dir / "checkpoints").iterdir()}
    assert names == {"best.pt", "last.pt", "step_00000007.pt", "step_00000008.pt", "step_00000009.pt"}


def test_a_damaged_last_checkpoint_costs_time_and_nothing_else(
    place: Path, unstopped: dict[int, dict[str, Any]]
) -> None:
    config = configure(place, "damaged")
    running = start(config)
    wait_for(lambda: steps_done(config) >= 5, running)
    for process in running:
        process.kill()
    wait(running)
    last = config.run_dir / "checkpoints" / "last.pt"
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size // 2)
    assert train_in_processes(config, resume=True) == [0]
    warning = complaints(config)[0]
    assert "last.pt" in warning
    assert "trying the one before" in warning
    assert_same(last_state(config), unstopped[1])


def test_where_only_the_best_checkpoint_is_whole_the_run_goes_on_from_it(
    place: Path, unstopped: dict[int, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with the weights of the run that never stopped: it holds all of a training."""
    config = configure(place, "best-left", keep_checkpoints=1, val_every=1, checkpoint_every=0)
    figures, accuracies = logger.validation_metrics, iter([0.5, 0.25, 0.25, 0.25, 0.25])  # the first is the best
    monkeypatch.setattr(logger, "validation_metrics", lambda p: {**figures(p), "video_top1": next(accuracies)})
    Trainer(config).fit()
    folder = config.run_dir / "checkpoints"
    assert load_checkpoint(folder / "best.pt")["step"] == STEPS // 3
    os.truncate(folder / "last.pt", 300)
    Trainer(config).fit(resume=True)
    assert f"{folder}/best.pt is used" in complaints(config)[-1]
    assert [line["step"] for line in metrics(config)] == list(range(1, STEPS + 1))
    for part in ("model", "raw_model", "optimizer", "step", "epoch"):
        assert same_tensors(last_state(config)[part], unstopped[1][part]), part


def test_another_number_of_processes_goes_on_and_says_so(place: Path) -> None:
    config = configure(place, "world", accumulate=1)
    running = start(config, processes=2)
    wait_for(lambda: steps_done(config) >= 5, running)
    for process in running:
        process.kill()
    wait(running)
    assert train_in_processes(config, processes=1, resume=True) == [0]
    assert "number of processes was 2 in the checkpoint and is 1 now" in complaints(config)[0]
    assert last_state(config)["step"] == STEPS


def test_changes_since_the_checkpoint_are_told(tmp_path: Path) -> None:
    make_videos(tmp_path)
    config = train_config(tmp_path, train={"epochs": 1})
    assert train_in_processes(config) == [0]
    config.train.epochs = 2
    config.optim.lr = 0.01
    config.data.workers = 1
    (tmp_path / "val.txt").write_text((tmp_path / "val.txt").read_text().replace("video_0.mp4 0", "video_0.mp4 1"))
    assert train_in_processes(config, resume=True) == [0]
    warnings = complaints(config)
    assert len(warnings) == 3
    assert "fingerprint of the training videos and their labels was " in warnings[0]
    assert "optim.lr was 0.05 in the checkpoint and is 0.01 now" in warnings[1]
    assert "train.epochs was 1.0 in the checkpoint and is 2.0 now" in warnings[2]
    assert last_state(config)["step"] == 4


def test_a_larger_batch_goes_on_with_what_was_done_and_what_it_saves(tmp_path: Path) -> None:
    make_videos(tmp_path)
    config = train_config(tmp_path, train={"epochs": 2, "batch_size": 1, "checkpoint_every": 2})
    Trainer(config).fit()  # 16 steps
    config.train.epochs, config.train.batch_size = 3, 2
    Trainer(config).fit(resume=True)  # 8 steps of these are done: 9 to 12 are left
    assert last_state(config)["step"] == 12
    steps = [*range(1, 17), *range(9, 13)]
    assert [line["step"] for line in metrics(config)] == steps
    assert [line["epoch"] for line in metrics(config)] == [i / 8 for i in range(1, 17)] + [2.25, 2.5, 2.75, 3]
    assert [line["step"] for line in metrics(config, "val")] == [16, 12]
    folder = config.run_dir / "checkpoints"
    assert sorted(path.name for path in folder.glob("step_*")) == ["step_00000010.pt", "step_00000012.pt"]
    os.truncate(folder / "last.pt", 300)
    config.train.epochs = 4
    Trainer(config).fit(resume=True)  # from step 10: what it wrote about 11 and 12 is taken back
    assert [line["step"] for line in metrics(config)] == [*range(1, 17), *range(9, 17)]


def test_resuming_where_nothing_is_starts_from_the_beginning(place: Path) -> None:
    config = configure(place, "fresh", epochs=1)
    assert train_in_processes(config, resume=True) == [0]
    assert last_state(config)["step"] == 3


def test_resuming_a_finished_run_changes_nothing(place: Path) -> None:
    config = configure(place, "done", epochs=1)
    assert train_in_processes(config) == [0]
    before = (config.run_dir / "checkpoints" / "last.pt").read_bytes()
    assert train_in_processes(config, resume=True) == [0]
    assert (config.run_dir / "checkpoints" / "last.pt").read_bytes() == before


def test_a_checkpoint_of_another_network_is_refused_in_one_line(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = configure(place, "other", epochs=1)
    assert train_in_processes(config) == [0]
    config.model.width = 8
    assert train_in_processes(config, resume=True) == [2]
    complaint = complaints(config)[-1]
    assert "does not fit the network of this config (model.width was" in complaint
    assert complaint.endswith("; start a new run")
    load_checkpoint(config.run_dir / "checkpoints" / "last.pt")
