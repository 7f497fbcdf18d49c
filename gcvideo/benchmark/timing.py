"""Time of networks side by side: forward passes and training steps, alternating in one process.

On a busy machine absolute times drift from minute to minute, so that every round runs all candidates one after the
other, each round beginning with another one, and ratios are taken within a round before their median is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcvideo.config import RunConfig
from gcvideo.data.crops import normalize
from gcvideo.data.loader import ClipBatch
from gcvideo.device import pick_precision
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.models import build_model
from gcvideo.train.step import Learner

Action = Callable[[], object]
# Learning rate of steps that are timed: so low that one batch is never learnt by heart, and the gradients of the last
# step are numbers like those of the first.
STEADY_LR = 1e-6


def alternate(
    actions: Mapping[str, Action],
    *,
    rounds: int,
    device: torch.device,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    on_run: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds that each action takes in each of ``rounds`` rounds, after ``warmup`` rounds that do not count.

    Args:
        clock: see ``pick_clock``.
    """
    names = list(actions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wait_for(device)
            began = clock()
            actions[name]()
            wait_for(device)
            if number >= warmup:
                seconds[name].append(clock() - began)
            if on_run is not None:
                on_run()
    return seconds


def pick_clock(device: torch.device) -> Callable[[], float]:
    """For one thread on a CPU its CPU time, which other work on the machine disturbs little; else the wall's."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was told; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = np.quantile(np.asarray(values), (0.25, 0.5, 0.75))
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}


def compare_times(seconds: Mapping[str, Sequence[float]], *, clips: int) -> dict[str, dict[str, Any]]:
    """Times of each candidate, and their ratio to the first one.

    Args:
        seconds: from ``alternate``.
        clips: that one run works on.

    Returns:
        name -> ``ms_per_clip`` and ``ratio`` (of the same round), each {"median", "q1", "q3"}.
    """
    reference = np.asarray(next(iter(seconds.values())))
    return {
        name: {
            "ms_per_clip": spread([1000 * second / clips for second in values]),
            "ratio": spread((np.asarray(values) / reference).tolist()),
        }
        for name, values in seconds.items()
    }


def forward_action(config: RunConfig, clips: Tensor, *, device: torch.device, precision: str) -> Action:
    """One forward pass as a test runs it, from uint8 clips to logits: ``optimize_for_inference``, not compiled.

    Args:
        config: its network, with fresh weights.
        clips: uint8 (N, 3, T, H, W).
        precision: "fp32", "bf16" (weights and activations), or "auto".
    """
    model = optimize_for_inference(build_model(config.model).to(device), precision=pick_precision(precision, device))
    dtype = next(model.parameters()).dtype
    clips = clips.to(device)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(normalize(clips, mean=config.data.mean, std=config.data.std, dtype=dtype))

    return forward


def train_action(config: RunConfig, clips: Tensor, *, device: torch.device, precision: str) -> Action:
    """One step of the trainer itself, from uint8 clips to updated weights, with fresh weights and random labels.

    Args:
        config: what to train, and how; batch size, frames and crop follow the clips.
        clips: uint8 (N, 3, T, H, W).
        precision: "fp32", "bf16" (under autocast), or "auto".
    """
    train = replace(config.train, batch_size=len(clips), accumulate=1, precision=precision, compile=False)  # type: ignore[arg-type]
    data = replace(config.data, frames=clips.shape[2], crop=clips.shape[-1])
    learner = Learner(replace(config, data=data, train=train, model=replace(config.model, weights=None)), device)
    learner.train()
    labels = torch.arange(len(clips), device=device) % config.model.num_classes
    batch = ClipBatch(clips.to(device), labels, torch.arange(len(clips)), [])

    def step() -> None:
        learner.step(iter([batch]), number=0, lr=STEADY_LR)

    return step
