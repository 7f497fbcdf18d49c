"""Training steps on the null GPU: kernels, copies, allocations, waits, and the host's time.

tests/device/null_gpu/run.sh python -m tests.device.steps kinetics400/slow_r50_gc_c345_8x8.yaml [--batch-size N] [...]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.config import RunConfig, load_config
from gcvideo.console import Progress
from gcvideo.data.dataset import ClipBatch
from gcvideo.data.loader import Loader, Prefetcher
from gcvideo.train.step import TrainStep
from tests.device import null
from tests.tiny import tiny_config


def build(config: RunConfig, *, cudnn: bool = False) -> tuple[TrainStep, list[ClipBatch]]:
    """The step of a config, and the micro-batches of one step on the device; the null GPU has no cuDNN."""
    device = runtime.pick_device("auto")
    runtime.tune(device)
    torch.backends.cudnn.enabled = cudnn
    step = TrainStep(config, device)
    step.train_mode()
    clips = config.train.batch_size // config.train.accumulate
    size = (clips, 3, config.data.frames, config.data.crop, config.data.crop)
    labels = torch.zeros(clips, dtype=torch.int64, device=device)
    batch = ClipBatch(torch.zeros(size, dtype=torch.uint8, device=device), labels, torch.arange(clips), [])
    return step, [batch] * config.train.accumulate


def count(step: TrainStep, batches: Iterable[ClipBatch], *, warm_up: int, steps: int = 2) -> dict[str, float]:
    """Calls of one step, and milliseconds of this process's CPU time, after the first ones."""
    for number in range(warm_up):
        step.step(iter(batches), number=number, lr=0.1)
    draws = torch.cuda.default_generators[0]
    before, began, seeds = null.cuda_counts(), time.process_time(), set()
    for number in range(warm_up, warm_up + steps):
        step.step(iter(batches), number=number, lr=0.01 * number)
        seeds.add(draws.initial_seed())
    milliseconds = 1000 * (time.process_time() - began) / steps
    after = null.cuda_counts()
    calls = {name: (after[name] - before[name]) / steps for name in after}
    step.meter.read_later(len, leave=1)
    calls["log_syncs"] = null.cuda_counts()["syncs"] - after["syncs"]
    return calls | {"ms": milliseconds, "seeds": len(seeds), "drawn": draws.get_offset()}


def count_fed(step: TrainStep, config: RunConfig, *, warm_up: int, steps: int) -> dict[str, float]:
    """The same with batches from a worker process, and milliseconds of the thread that takes steps ("thread_ms")."""
    clips, data = config.train.batch_size, config.data
    batch = ClipBatch(
        torch.zeros(clips, 3, data.frames, data.crop, data.crop, dtype=torch.uint8),
        torch.zeros(clips, dtype=torch.int64),
        torch.arange(clips),
        [],
    )
    dataset: Any = SimpleNamespace(quarantine=SimpleNamespace(strike=print), data=data)
    loader = Loader(dataset, lambda task, hold: batch, lambda found: found, range(warm_up + steps), 1, pin_memory=True)
    batches, agree = Prefetcher(loader, step.device), distributed.LateAgreement()
    before, began, thread = null.cuda_counts(), time.process_time(), time.thread_time()
    with Progress("steps", total=(warm_up + steps) * clips, unit="clips") as progress:
        for number in range(warm_up + steps):
            if number == warm_up:
                before, began, thread = null.cuda_counts(), time.process_time(), time.thread_time()
            step.step(batches, number=number, lr=0.1)
            progress.advance(clips)
            agree(0)
    found = {"ms": 1000 * (time.process_time() - began), "thread_ms": 1000 * (time.thread_time() - thread)}
    found |= {name: value - before[name] for name, value in null.cuda_counts().items()}
    return {name: value / steps for name, value in found.items()}


def tiny(model: dict[str, Any], **sections: dict[str, Any]) -> RunConfig:
    """A small network and four clips a step."""
    train = {"batch_size": 4, **sections.pop("train", {})}
    return tiny_config(Path("unused"), model=model, train=train, **sections)


def context(kind: str, **options: Any) -> dict[str, Any]:
    stages = {"res3": "all"} if kind != "none" else {}
    return {"context": {"kind": kind, "stages": stages, **options}}


def waiting_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A loss that reads a value from the device, which no graph can hold."""
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert isinstance(loss.item(), float)
    return loss


CASES: dict[str, dict[str, Any]] = {
    "plain": {"model": context("none")},
    "nl": {"model": context("nl")},
    "snl": {"model": context("snl")},
    "se": {"model": context("se")},
    "gc": {"model": context("gc")},
    "accumulate": {"model": context("none"), "train": {"accumulate": 2}},
    "ema": {"model": context("none"), "train": {"ema": 0.9}},
    "clip_grad_norm": {"model": context("none"), "optim": {"clip_grad_norm": 1.0}},
    "adamw": {"model": context("none"), "optim": {"optimizer": "adamw"}},
    "mixup": {"model": context("none"), "data": {"augment": {"mixup": 0.8, "cutmix": 1.0}}},
    "dropout": {"model": {**context("none"), "dropout": 0.5, "drop_path": 0.1}},
    "shapes": {"model": context("gc")},  # two in turn, as in multigrid training
    "multi_label": {"model": {**context("none"), "multi_label": True}},
    "own_loss": {"model": context("none"), "train": {"loss": "tests.device.steps:waiting_loss"}},
}


def half_as_long(batch: ClipBatch) -> ClipBatch:
    """Twice as many clips of half the frames."""
    n, c, t, h, w = batch.clips.shape
    return ClipBatch(batch.clips.view(2 * n, c, t // 2, h, w), batch.labels.repeat(2), torch.arange(2 * n), [])


def measure_cases(names: list[str]) -> None:
    """Print the counts of each case as a line of JSON, eager and as a CUDA graph."""
    for name in names:
        for cuda_graph in (False, True):
            case = dict(CASES[name])
            case["train"] = {**case.get("train", {}), "cuda_graph": cuda_graph}
            step, batches = build(tiny(**case))
            if name == "shapes":
                batches = cycle([batches[0], half_as_long(batches[0])])
            found = count(step, batches, warm_up=12 if name == "shapes" else 6)
            print("CASE", json.dumps({"name": name + ".graph" * cuda_graph, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", help="configs, or with --cases names of CASES")
    parser.add_argument("--cases", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8, help="clips a step (default 8)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fed", action="store_true", help="with batches from a worker process")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.cases:
        measure_cases(args.configs)
        return
    for name in args.configs:
        config = load_config(name, [f"train.batch_size={args.batch_size}", *args.set])
        step, batches = build(config)
        how: dict[str, int] = {"warm_up": 6, "steps": args.steps}
        found = count_fed(step, config, **how) if args.fed else count(step, batches, **how)
        print(name, *args.set, {key: round(value, 2) for key, value in found.items() if value})


if __name__ == "__main__":
    null.leave(main)
