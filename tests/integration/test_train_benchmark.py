"""``gcvideo benchmark train``: the arithmetic of its figures, and a tiny run of the whole."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from gcvideo.analysis import train_benchmark
from gcvideo.analysis.train_benchmark import measure, random_batch, summarise

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


def test_every_contender_takes_one_step_a_round_and_one_to_warm_up() -> None:
    taken: list[str] = []
    steps = {name: (lambda name=name: taken.append(name)) for name in ("a", "b", "c")}  # type: ignore[misc]
    seconds, memory = measure(steps, rounds=4, device=CPU)
    rounds = [sorted(taken[i : i + 3]) for i in range(0, len(taken), 3)]
    assert rounds == [["a", "b", "c"]] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert memory == {}


def test_a_batch_is_bytes_as_the_loader_gives_them() -> None:
    batch = random_batch(2, 4, 32, CPU)
    assert (batch.clips.shape, batch.clips.dtype) == ((2, 3, 4, 32, 32), torch.uint8)


def test_a_tiny_run_writes_both_figures(tmp_path: Path) -> None:
    args = arguments(rounds=1, frames=2, crop=32, json=str(tmp_path / "train.json"))
    assert train_benchmark.run(args) is None
    results = json.loads((tmp_path / "train.json").read_text())
    assert set(results["figures"]) == {"train_step.pytorchvideo", "train_step.gc_overhead"}
    assert all(value > 0 for value in results["figures"].values())
    assert results["settings"]["crop"] == 32
