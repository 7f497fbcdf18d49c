"""Benchmark of a training step: gcvideo's beside pytorchvideo's, and each context block beside none.

Measured: milliseconds from a batch of uint8 clips to updated weights: scale and normalise, forward, loss, backward, SGD
with momentum. gcvideo's is the trainer's own step with its automatic choice of precision and memory layout;
pytorchvideo's is plain float32. Ratios are medians of times of the same round (see ``timing.py``): a ratio below 1 is a
step that takes less time. Bound: the speed of a large matrix product on the same device, of which each network's share
is given; on a GPU also for the largest batch that fits into memory (--up-to).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from gcvideo import device as runtime
from gcvideo.analysis.complexity import count_config
from gcvideo.benchmark import harness
from gcvideo.benchmark.memory import cuda_peak
from gcvideo.benchmark.peers import networks as peers
from gcvideo.benchmark.timing import time_contenders
from gcvideo.benchmark.workloads import random_clips, training_step
from gcvideo.config import RunConfig, load_config

# Contender -> shipped config.
OURS = {
    "plain": "kinetics400/slow_r50_8x8.yaml",
    "gc": "kinetics400/slow_r50_gc_c345_8x8.yaml",
    "se": "kinetics400/slow_r50_se_c345_8x8.yaml",
    "nl": "kinetics400/slow_r50_nl5_8x8.yaml",
}
THEIRS = "pytorchvideo"
# Name of a ratio -> (over, under).
RATIOS = {
    "train_step.pytorchvideo": ("plain", THEIRS),
    "train_step.gc_overhead": ("gc", "plain"),
    "train_step.se_overhead": ("se", "plain"),
    "train_step.nl_overhead": ("nl", "plain"),
}
WARM_UP = 3  # rounds in which a CPU's heap still grows; its page faults can double the time of a step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``gcvideo benchmark train``."""
    contenders = [THEIRS, *OURS]
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=[THEIRS, "plain", "gc"], metavar="NAME")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="clips a step (default 1)")
    parser.add_argument("--frames", type=int, default=8, metavar="T", help="frames a clip (default 8)")
    parser.add_argument("--crop", type=int, default=224, metavar="S", help="height and width (default 224)")
    parser.add_argument("--compile", action="store_true", help="compile gcvideo's networks with torch.compile")
    parser.add_argument(
        "--up-to", type=int, metavar="N", help="also find the largest batch of up to N clips that fits, and its speed"
    )
    harness.add_options(parser, rounds=7)
    harness.add_precision_option(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print tables, and write the results."""
    device, precision, machine = harness.set_up(args)
    configs = {name: load_config(OURS[name]) for name in args.contenders if name != THEIRS}
    how: dict[str, Any] = {"device": device, "precision": args.precision, "compile": args.compile}
    shape = (3, args.frames, args.crop, args.crop)
    clips = random_clips((args.batch, *shape))
    steps = {
        name: peers.training_step(clips, device) if name == THEIRS else training_step(configs[name], clips, **how)
        for name in args.contenders
    }
    times = time_contenders(steps, rounds=args.rounds, device=device, warmup=WARM_UP, title="train")
    took, peak = times.milliseconds(), matmul_peak(device, precision)
    memory = {name: cuda_peak(step) for name, step in steps.items()} if device.type == "cuda" else {}
    rates = {name: 1000 * args.batch / ms for name, ms in took.items()}
    fastest = {name: 1000 * min(values) for name, values in times.seconds.items()}
    shares = {name: matmul_share(config, shape, rates[name], peak) for name, config in configs.items()}
    limits = {}
    if args.up_to:
        steps.clear()  # so that their networks leave room
        for name, config in configs.items():
            limits[name] = at_the_limit(config, shape, most=args.up_to, rounds=args.rounds, peak=peak, **how)
    results = {
        "figures": times.ratios(RATIOS),
        "milliseconds": took,
        "fastest_milliseconds": fastest,
        "memory_bytes": memory,
        "matmul_per_second": peak,
        "share_of_matmul": shares,
        "limit": limits,
        "machine": machine,
    }
    rows = []
    for name in args.contenders:
        row = {"network": name, "ms a step": f"{took[name]:.1f}", "fastest": f"{fastest[name]:.1f}"}
        rows.append(row | _speed(rates[name], shares.get(name), memory.get(name)))
    largest = [
        {"network": name, "clips a step": row["batch"]}
        | _speed(row["clips_per_second"], row["share_of_matmul"], row["memory_bytes"])
        for name, row in limits.items()
    ]
    title = f"{machine}, {args.batch} clips a step"
    harness.finish(args, results, {title: rows, f"largest batches that fit, up to {args.up_to}": largest})


def _speed(clips_per_second: float, share: float | None, memory: int | None) -> dict[str, str]:
    """Columns of a table."""
    row = {"clips/s": f"{clips_per_second:.2f}"}
    if share is not None:
        row["% of a matrix product"] = f"{100 * share:.1f}"
    if memory is not None:
        row["GiB"] = f"{memory / 2**30:.2f}"
    return row


def matmul_peak(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product, two for each multiply-add: the most that a step could reach."""
    size, calls = (8192, 20) if device.type == "cuda" else (1024, 5)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    times = time_contenders({"product": lambda: a @ a}, rounds=3, device=device, calls=calls)
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
    config: RunConfig, shape: tuple[int, ...], *, most: int, rounds: int, peak: float, device: torch.device, **how: Any
) -> dict[str, Any]:
    """The largest batch that fits into memory, up to ``most`` clips, with its speed and peak memory.

    Args:
        shape: (3, T, H, W) of a clip.
        peak: of ``matmul_peak``.
        how: precision and compile, as for ``training_step``.
    """

    def fits(clips: int) -> bool:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            step = training_step(config, random_clips((clips, *shape)), device=device, **how)
            step()
            step()  # optimizer state and activations are there at once only now
        except torch.OutOfMemoryError:
            return False
        return True

    size = largest_batch(fits, most=most)
    step = training_step(config, random_clips((size, *shape)), device=device, **how)
    rate = 1000 * size / time_contenders({"step": step}, rounds=rounds, device=device).milliseconds()["step"]
    share = matmul_share(config, shape, rate, peak)
    memory = runtime.memory_peak(device)
    return {"batch": size, "clips_per_second": rate, "share_of_matmul": share, "memory_bytes": memory}


def largest_batch(fits: Callable[[int], bool], *, most: int) -> int:
    """The largest batch that ``fits``, to within an eighth of it and no larger than ``most``; 1 is taken to fit."""
    size = 1
    while 2 * size <= most and fits(2 * size):
        size *= 2
    part, end = max(size // 8, 1), min(2 * size - 1, most)
    while size + part <= end and fits(size + part):
        size += part
    return size
