"""Benchmark of a training step: gcvideo's beside pytorchvideo's, and each context block beside none.

Measured: milliseconds from a batch of uint8 clips to updated weights: scale and normalise, forward, loss, backward, SGD
with momentum. gcvideo's is the trainer's own step with its automatic choice of precision and memory layout;
pytorchvideo's is plain float32. Ratios are medians of times of the same round (see ``harness.py``): a ratio below 1 is
a step that takes less time. Bound: the speed of a large matrix product on the same device, of which each network's
share is given; on a GPU also for the largest batch that fits into memory (--up-to).
"""

import argparse
from typing import Any

import torch

from gcvideo import device as runtime
from gcvideo.benchmark import harness, peers
from gcvideo.benchmark.complexity import count_config
from gcvideo.benchmark.workloads import NETWORKS, cuda_peak, random_clips, training_step
from gcvideo.config import RunConfig
from gcvideo.models import model_config

WARM_UP = 3  # rounds in which a CPU's heap still grows; its page faults can double the time of a step


def run(args: argparse.Namespace) -> None:
    """Measure, print tables, and write the results."""
    device, precision, machine = harness.set_up(args)
    configs = {name: RunConfig(model=model_config(NETWORKS[name])) for name in args.contenders if name != peers.NAME}
    how: dict[str, Any] = {"device": device, "precision": args.precision, "compile": args.compile}
    shape = (3, args.frames, args.crop, args.crop)
    clips = random_clips((args.batch, *shape))
    steps = {
        name: peers.training_step(clips, device) if name == peers.NAME else training_step(configs[name], clips, **how)
        for name in args.contenders
    }
    times = harness.time_contenders(steps, rounds=args.rounds, device=device, warmup=WARM_UP, title="train")
    took, peak = times.milliseconds(), matmul_peak(device, precision)
    networks = {name: {"batch": args.batch, "ms": ms} for name, ms in took.items()}
    if device.type == "cuda":
        for name, step in steps.items():
            networks[name]["memory_gib"] = cuda_peak(step) / 2**30
    limits = {}
    if args.up_to:
        steps.clear()  # so that their networks leave room
        for name, config in configs.items():
            limits[name] = at_the_limit(config, shape, most=args.up_to, rounds=args.rounds, **how)
    for name, row in [*networks.items(), *limits.items()]:
        row["clips_per_second"] = 1000 * row["batch"] / row["ms"]
        if name in configs:
            row["share_of_matmul"] = matmul_share(configs[name], shape, row["clips_per_second"], peak)
    results = {"figures": times.ratios("train"), "milliseconds": took, "networks": networks, "limit": limits}
    tables = {
        f"training steps on {machine}": [{"network": name, **row} for name, row in networks.items()],
        f"largest batches that fit, up to {args.up_to}": [{"network": name, **row} for name, row in limits.items()],
    }
    harness.finish(args, {**results, "matmul_per_second": peak, "machine": machine}, tables)


def matmul_peak(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product, two for each multiply-add: the most that a step could reach."""
    size, calls = (8192, 20) if device.type == "cuda" else (1024, 5)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    times = harness.time_contenders({"product": lambda: a @ a}, rounds=3, device=device, calls=calls)
    return 2000 * size**3 / times.milliseconds()["product"]


def matmul_share(config: RunConfig, shape: tuple[int, ...], clips_per_second: float, peak: float) -> float:
    """How much of that speed the training of a network reaches.

    A step counts as three forward passes (the backward pass computes two products for each of the forward pass) of two
    operations a multiply-add.

    Args:
        shape: (3, T, H, W) of a clip.
    """
    return 6 * count_config(config.model, (1, *shape)).macs * clips_per_second / peak


def at_the_limit(
    config: RunConfig, shape: tuple[int, ...], *, most: int, rounds: int, device: torch.device, **how: Any
) -> dict[str, Any]:
    """The largest batch of 1, 2, 4, 8 and so on clips that fits into memory, with its time and peak memory.

    Args:
        shape: (3, T, H, W) of a clip.
        most: clips to try.
        rounds: of the timing.
        device: to compute on.
        how: precision and compile, as for ``training_step``.
    """
    found: dict[str, Any] = {}
    for size in (2**k for k in range(most.bit_length())):
        step = None  # frees the memory of the smaller batch
        try:
            step = training_step(config, random_clips((size, *shape)), device=device, **how)
            ms = harness.time_contenders({"step": step}, rounds=rounds, device=device).milliseconds()["step"]
        except RuntimeError as error:
            if not runtime.out_of_memory(error):
                raise
            break
        found = {"batch": size, "ms": ms, "memory_gib": runtime.memory_peak(device) / 2**30}
    return found
