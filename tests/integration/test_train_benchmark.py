"""``gcvideo benchmark train``: the arithmetic of its results, and a tiny run of the whole."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gcvideo.arguments import read_options
from gcvideo.benchmark import peers
from gcvideo.benchmark import train as train_benchmark
from gcvideo.benchmark.complexity import count_config
from gcvideo.benchmark.harness import CPU, Times
from gcvideo.benchmark.train import at_the_limit, matmul_peak, matmul_share
from gcvideo.benchmark.workloads import NETWORKS, random_clips
from gcvideo.cli import main
from tests.training import train_config


def test_ratios_are_medians_of_those_within_a_round() -> None:
    times = Times({"pytorchvideo": [4.0, 8.0, 2.0], "plain": [1.0, 4.0, 1.0], "gc": [1.1, 4.8, 1.0]})
    expected = {"train_step.pytorchvideo": 0.5, "train_step.gc_overhead": pytest.approx(1.1)}
    assert times.ratios("train") == expected, "what was not measured is left out"


def test_clips_are_bytes_as_the_loader_gives_them() -> None:
    clips = random_clips((2, 3, 4, 32, 32))
    assert (clips.shape, clips.dtype) == ((2, 3, 4, 32, 32), torch.uint8)
    assert torch.equal(clips, random_clips((2, 3, 4, 32, 32)))


def test_a_batch_that_does_not_fit_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step_above_five_fails(config: Any, clips: torch.Tensor, **_: Any) -> Any:
        def step() -> None:
            if len(clips) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return step

    monkeypatch.setattr(train_benchmark, "training_step", step_above_five_fails)
    config = train_config(tmp_path)
    found = at_the_limit(config, (3, 4, 32, 32), most=64, rounds=2, device=CPU, precision="fp32")
    assert found["batch"] == 4
    assert found["ms"] >= 0
    assert found["memory_gib"] > 2**-10


def test_shares_count_three_forward_passes_of_two_operations(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    macs = count_config(config.model, (1, 3, 4, 32, 32)).macs
    assert matmul_share(config, (3, 4, 32, 32), 10.0, 60.0 * macs) == pytest.approx(1.0)


def test_every_contender_can_be_asked_for() -> None:
    assert read_options()["benchmark train"]["--contenders"]["choices"] == [peers.NAME, *NETWORKS]


def test_a_batch_of_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "train", "--up-to", "0"]) == 2
    assert "--up-to: must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_run_writes_all_that_a_gpu_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_benchmark, "model_config", partial(train_benchmark.model_config, width=8))
    monkeypatch.setattr(train_benchmark, "WARM_UP", 0)
    assert matmul_peak(CPU, "fp32") > 0
    out = tmp_path / "train.json"
    command = ["benchmark", "train", "--contenders", "pytorchvideo", "plain", "gc", "--rounds", "1"]
    assert main([*command, "--frames", "2", "--crop", "64", "--up-to", "2", "--device", "cpu", "--json", str(out)]) == 0
    results = json.loads(out.read_text())
    assert set(results["figures"]) == {"train_step.pytorchvideo", "train_step.gc_overhead"}
    assert all(value > 0 for value in results["figures"].values())
    assert results["settings"]["crop"] == 64
    assert set(results["limit"]) == {"plain", "gc"}
    assert results["networks"]["gc"]["share_of_matmul"] > 0
    assert results["networks"]["gc"]["clips_per_second"] == pytest.approx(1000 / results["milliseconds"]["gc"])
    assert {row["batch"] for row in results["limit"].values()} == {2}
    assert "largest batches that fit, up to 2" in capsys.readouterr().out
