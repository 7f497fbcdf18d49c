"""``gcvideo benchmark train``: the arithmetic of its figures, and a tiny run of the whole."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gcvideo.analysis.complexity import count_config
from gcvideo.benchmark import train as train_benchmark
from gcvideo.benchmark.train import (
    WARM_UP,
    at_the_limit,
    largest_batch,
    matmul_peak,
    matmul_share,
    measure,
    random_batch,
    summarise,
)
from gcvideo.errors import ConfigError
from gcvideo.train.step import Learner
from tests.training import train_config

CPU = torch.device("cpu")


def arguments(**values: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_benchmark.add_arguments(parser)
    return argparse.Namespace(**{**vars(parser.parse_args([])), **values})


def test_figures_are_medians_of_paired_ratios() -> None:
    seconds = {"pytorchvideo": [4.0, 8.0, 2.0], "plain": [1.0, 4.0, 1.0], "gc": [1.1, 4.8, 1.0]}
    results = summarise(seconds, {}, arguments(), CPU)
    assert results["figures"] == {
        "train_step.pytorchvideo": 0.5,
        "train_step.gc_overhead": pytest.approx(1.1),
    }
    assert results["milliseconds"]["plain"] == 1000


def test_every_contender_takes_one_step_a_round_after_those_to_warm_up() -> None:
    taken: list[str] = []
    steps = {name: (lambda name=name: taken.append(name)) for name in ("a", "b", "c")}  # type: ignore[misc]
    seconds, memory = measure(steps, rounds=4, device=CPU)
    rounds = [sorted(taken[i : i + 3]) for i in range(0, len(taken), 3)]
    assert rounds == [["a", "b", "c"]] * (WARM_UP + 4)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert memory == {}


def test_a_batch_is_bytes_as_the_loader_gives_them() -> None:
    batch = random_batch(2, 4, 32, CPU)
    assert (batch.clips.shape, batch.clips.dtype) == ((2, 3, 4, 32, 32), torch.uint8)


def test_the_largest_batch_is_found_to_an_eighth() -> None:
    for capacity in (1, 2, 3, 7, 13, 100, 1000):
        tried: list[int] = []

        def fits(clips: int, capacity: int = capacity, tried: list[int] = tried) -> bool:
            tried.append(clips)
            return clips <= capacity

        found = largest_batch(fits, most=512)
        limit = min(capacity, 512)
        assert found <= limit < found + max(found // 8, 1)
        assert max(tried, default=1) <= 512
        assert len(tried) <= 20


def test_a_batch_that_does_not_fit_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config(tmp_path)
    forward = Learner.forward

    def fails_above_five(self: Learner, batch: Any) -> Any:
        if len(batch.labels) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(Learner, "forward", fails_above_five)
    found = at_the_limit(config, most=64, steps=2, device=CPU)
    assert found["batch"] == 5
    assert found["clips_per_second"] > 0
    assert found["memory_bytes"] > 2**20


def test_shares_count_three_forward_passes_of_two_operations(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    macs = count_config(config.model, (1, 3, 4, 32, 32)).macs
    assert matmul_share(config, 10.0, 60.0 * macs) == pytest.approx(1.0)
    assert 1e8 < matmul_peak(CPU, "fp32") < 1e14


def test_a_tiny_run_writes_all_that_a_gpu_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks = ["pytorchvideo", "plain", "nl", "gc"]
    args = arguments(contenders=networks, rounds=1, frames=2, crop=64, up_to=2, json=str(tmp_path / "train.json"))
    assert train_benchmark.run(args) is None
    results = json.loads((tmp_path / "train.json").read_text())
    assert set(results["figures"]) == {"train_step.pytorchvideo", "train_step.gc_overhead", "train_step.nl_overhead"}
    assert all(value > 0 for value in results["figures"].values())
    assert results["settings"]["crop"] == 64
    assert set(results["share_of_matmul"]) == set(results["limit"]) == {"plain", "nl", "gc"}
    assert {row["batch"] for row in results["limit"].values()} == {2}
    shown = capsys.readouterr().out
    assert "largest batches that fit, up to 2" in shown
    with pytest.raises(ConfigError, match="--up-to: must be 1 or more"):
        train_benchmark.run(arguments(up_to=0))
