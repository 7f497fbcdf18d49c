"""On a real GPU (``pytest -m gpu``): ``benchmark device``, a step in bf16 against float64 on the CPU, graphs."""

from __future__ import annotations

import copy
import ctypes
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gcvideo.cli import main
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ClipBatch
from gcvideo.train.optimizer import build_optimizer
from gcvideo.train.step import TrainStep
from tests.device.steps import CASES, build, tiny

real = torch.cuda.is_available() and not hasattr(ctypes.CDLL(None), "nullcuda_counts")

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not real, reason="torch finds no GPU here")]


def assert_step_like_float64(step: TrainStep, batch: ClipBatch) -> None:
    """One step changes the weights as one in float64 on the CPU does, but for the rounding of bf16."""
    batch.clips.random_(0, 256)
    exact, config = copy.deepcopy(step.network).double().cpu(), step.config
    before = torch.cat([parameter.detach().flatten() for parameter in exact.parameters()])
    optimizer = build_optimizer(exact, replace(config.optim, lr=0.1))
    clips = normalize(batch.clips.cpu(), mean=config.data.mean, std=config.data.std, dtype=torch.float64)
    F.cross_entropy(exact(clips), batch.labels.cpu()).backward()
    optimizer.step()
    step.step(iter([batch]), number=0, lr=0.1)
    found, expected = (
        torch.cat([parameter.detach().double().cpu().flatten() for parameter in network.parameters()]) - before
        for network in (step.network, exact)
    )
    assert (found - expected).norm() <= 0.05 * expected.norm()  # 0.004 on a CPU


def test_the_benchmark_of_the_device_finds_what_it_expects(tmp_path: Path) -> None:
    """Numerics of blocks, of a network and of a test, waits, launches and copies; times depend on the machine."""
    command = ["benchmark", "device", "--batch", "4", "--crop", "64", "--rounds", "1", "--compile"]
    assert main([*command, "--json", str(tmp_path / "device.json")]) == 0
    checks = json.loads((tmp_path / "device.json").read_text())["checks"]
    told = [check for check in checks if check["check"].startswith(("numerics", "calls"))]
    assert len(told) == 10
    assert [check for check in told if not check["holds"]] == []


def test_a_training_step_in_bf16_changes_weights_as_in_float64() -> None:
    model, data = {**CASES["gc"]["model"], "dropout": 0.0}, {"frames": 4, "crop": 128, "short_side": [128, 128]}
    step, (batch,) = build(tiny(model=model, data=data), cudnn=True)
    assert step.precision == "bf16"
    assert_step_like_float64(step, batch)


@pytest.mark.parametrize("case", ["plain", "gc", "nl", "ema", "dropout", "mixup", "accumulate", "adamw"])
def test_a_graph_trains_like_single_kernels(case: str) -> None:
    weights = []
    for cuda_graph in (False, True):
        values = dict(CASES[case])
        values["train"] = {**values.get("train", {}), "cuda_graph": cuda_graph}
        step, batches = build(tiny(**values), cudnn=True)
        torch.manual_seed(1)
        for batch in batches:
            batch.clips.random_(0, 256)
        for number in range(8):
            step.step(iter(batches), number=number, lr=0.01 * (number + 1))
        assert (step._graphs is not None) == cuda_graph
        weights.append(torch.cat([parameter.detach().flatten() for parameter in step.tested_network.parameters()]))
    assert weights[1].isfinite().all()
    assert (weights[1] - weights[0]).norm() <= 1e-3 * weights[0].norm()  # atomic sums differ from run to run
