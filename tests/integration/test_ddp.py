"""Two processes do what one does with both their batches."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gcvideo import distributed
from gcvideo.config import config_from_dict, config_to_dict, save_config
from gcvideo.data.dataset import ClipDataset, ViewDataset
from gcvideo.data.loader import eval_loader, train_loader
from gcvideo.data.splits import load_split
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions
from gcvideo.models.resnet3d import build_model
from gcvideo.train.batch_norm import measure_batch_norms
from gcvideo.train.step import TrainStep
from tests.processes import gcvideo, run_apart, start_ranks, wait, wait_for
from tests.training import (
    EVERYTHING,
    last_state,
    make_videos,
    metrics,
    same_tensors,
    steps_done,
    train_config,
    train_in_processes,
)

pytestmark = pytest.mark.slow  # starts many processes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("ddp"), count=11)  # which neither 2 nor 4 divides


def gradients(values: dict[str, Any]) -> list[torch.Tensor]:
    """The gradients that the optimizer sees in the first step, and all buffers after it.

    Batch norms are in evaluation, as each process would compute statistics over its own clips.
    """
    config = config_from_dict(values, where="the test's config")
    learner = TrainStep(config, torch.device("cpu"))
    if isinstance(learner.model, nn.parallel.DistributedDataParallel):
        assert learner.model.static_graph == config.train.static_graph
    learner.train_mode(epoch=1)
    for module in learner.model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    records = load_split(config, config.data.train, name="training")
    assert records is not None
    accumulate, world = config.train.accumulate, distributed.world_size()
    loader = train_loader(
        ClipDataset(records, data=config.data, seed=config.seed),
        batch_size=config.train.batch_size // (accumulate * world),
        accumulate=accumulate,
        seed=config.seed,
        epoch=0,
        rank=distributed.rank(),
        world_size=world,
    )
    seen: list[torch.Tensor] = []

    def look(*_: Any) -> None:
        seen.extend(p.grad.clone() for p in learner.network.parameters() if p.grad is not None)

    learner.optimizer.register_step_pre_hook(look)
    learner.step(iter(loader), number=0, lr=0.1)
    return seen + [buffer.float() for buffer in learner.network.buffers()]


def clip_stream(rank: int) -> list[torch.Tensor]:
    return [torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(10 * rank + i)) for i in range(3)]


def precise_statistics(_: dict[str, Any]) -> list[torch.Tensor]:
    network = nn.Sequential(nn.BatchNorm3d(3))
    batches = clip_stream(distributed.rank()) if distributed.world_size() > 1 else clip_stream(0) + clip_stream(1)
    measure_batch_norms(network, batches, len(batches))
    return [network[0].running_mean, network[0].running_var]  # type: ignore[list-item]


WORK = {
    "gradients": gradients,
    "precise_statistics": precise_statistics,
}


def in_processes(work: str, values: dict[str, Any], processes: int, folder: Path) -> list[list[torch.Tensor]]:
    """What each process answers."""
    assert wait(start_ranks(_answer, work, values, folder, processes=processes)) == [0] * processes
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


def _answer(work: str, values: dict[str, Any], folder: Path) -> None:
    with distributed.init_from_env(timeout_minutes=2):
        torch.save(WORK[work](values), folder / f"{distributed.rank()}.pt")


@pytest.mark.parametrize(("accumulate", "static_graph"), [(1, False), (2, False), (1, True)])
def test_two_processes_have_the_gradients_of_one_with_both_batches(
    place: Path, tmp_path: Path, accumulate: int, static_graph: bool
) -> None:
    train = {"batch_size": 4, "accumulate": accumulate, "static_graph": static_graph}
    if static_graph:  # what is trained from the second epoch on, too
        train |= {"freeze": ["stem", "res3"], "freeze_epochs": 1}
    values = config_to_dict(train_config(place, train=train))
    alone = gradients({**values, "train": {**values["train"], "accumulate": 1}})
    first, second = in_processes("gradients", values, 2, tmp_path)
    assert same_tensors(first, second)
    assert any(gradient.abs().max() > 1e-3 for gradient in alone)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)


def test_precise_batch_norms_pool_the_batches_of_all_processes(tmp_path: Path) -> None:
    first, second = in_processes("precise_statistics", {}, 2, tmp_path)
    assert same_tensors(first, second)
    torch.testing.assert_close(first, precise_statistics({}), rtol=1e-5, atol=1e-6)


def test_every_recipe_at_once_on_two_processes(place: Path) -> None:
    """With what needs several processes, and without what goes together with neither: accumulation and multigrid."""
    together = {"accumulate": 1, "multigrid": "none", "static_graph": True, "epochs": 2}
    config = train_config(place, "everything", **{**EVERYTHING, "train": {**EVERYTHING["train"], **together}})
    assert train_in_processes(config, processes=2) == [0, 0]
    lines = metrics(config)
    assert [line["step"] for line in lines] == list(range(1, 5))  # two epochs of two steps of four videos
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert all(tensor.isfinite().all() for tensor in last_state(config)["model"].values())


def test_each_validation_video_counts_once_whatever_the_number_of_processes(place: Path) -> None:
    """Without dropout and with still batch norms, one and two processes train the same network on 11 videos."""
    runs = []
    for processes in (1, 2):
        config = train_config(place, f"world{processes}", train={"epochs": 1, "freeze": ["backbone"]})
        assert train_in_processes(config, processes=processes) == [0] * processes
        runs.append(config)
    torch.testing.assert_close(last_state(runs[1])["model"], last_state(runs[0])["model"], rtol=1e-4, atol=1e-5)
    alone, together = (metrics(config, "val")[-1] for config in runs)
    assert alone["videos"] == together["videos"] == 11
    assert together["video_top1"] == alone["video_top1"]
    for alone, together in zip(*(metrics(config) for config in runs), strict=True):  # the mean loss of all clips
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert together["top1"] == alone["top1"]


def test_all_processes_validate_the_network_that_is_saved(place: Path) -> None:
    """Batch norms of rank 1 have measured other clips; those of rank 0 are in the checkpoint."""
    config = train_config(place, "validated", train={"epochs": 1})
    assert train_in_processes(config, processes=2) == [0, 0]
    validated = Predictions.load(config.run_dir / "predictions_val.npz")
    network = build_model(config.model)
    network.load_state_dict(last_state(config)["model"])
    records = load_split(config, config.data.val, name="validation")
    assert records is not None
    views = dataclasses.replace(config.test, clips=1, crops=1)
    loader = eval_loader(ViewDataset(records, data=config.data, test=views))
    expected = evaluate(network, loader, test=views, data=config.data)
    assert validated.ids == expected.ids
    torch.testing.assert_close(validated.averages["logits"], expected.averages["logits"], rtol=1e-4, atol=1e-5)


def children(process: int) -> list[int]:
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def torchrun(path: Path) -> None:
    """``torchrun --standalone --nproc-per-node=2 --max-restarts=1``, whose workers are forks of this process."""
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(launch, gcvideo)("train", str(path), "--overwrite")  # once, not at every start


def test_torchrun_restarts_a_killed_job_whose_processes_save_and_leave_when_it_dies(place: Path) -> None:
    """SIGUSR1 ends torchrun itself, which would leave them training."""
    config = train_config(place, "torchrun", train={"epochs": 5000, "val_every": 0, "checkpoint_every": 1})
    path, log, last = place / "torchrun.yaml", config.run_dir / "train.log", config.run_dir / "checkpoints" / "last.pt"
    save_config(config, path)
    output = place / "torchrun.txt"
    job = run_apart(torchrun, path, output=output)
    wait_for(last.exists, [job])
    os.kill(children(job.pid or 0)[-1], signal.SIGKILL)
    wait_for(lambda: "resuming from" in log.read_text(), [job])
    done, workers = steps_done(config), children(job.pid or 0)
    wait_for(lambda: steps_done(config) > done, [job])
    os.kill(job.pid or 0, signal.SIGUSR1)
    assert wait([job]) == [-signal.SIGUSR1]
    left = [Path(f"/proc/{worker}/exe") for worker in workers]
    end = time.monotonic() + 60
    while any(map(os.path.exists, left)) and time.monotonic() < end:
        time.sleep(0.01)
    for worker, exe in zip(workers, left, strict=True):
        if os.path.exists(exe):
            os.kill(worker, signal.SIGKILL)
            raise AssertionError(f"process {worker} trains on")
    said = output.read_text()
    assert said.count("resuming from") == 1  # one process speaks
    assert said.count("stopped by SIGTERM; a checkpoint is saved") == 1
    steps = [line["step"] for line in metrics(config)]
    assert steps == list(range(1, last_state(config)["step"] + 1))
    assert len(steps) > done
