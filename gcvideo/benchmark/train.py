"""What a training step costs: ours beside pytorchvideo's network, and each context block beside none.

Every round takes one step of every contender, in a new order, so that whatever else the machine does hits all of them
alike; a figure is the median of the rounds' ratios. A step is what a trainer does with a batch of uint8 clips: scale
and normalise, forward, loss, backward, SGD with momentum. Ours is the trainer's own step with its automatic choice of
precision and memory layout; pytorchvideo's is plain float32. Both run with the allocator settings of our trainer.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo import console
from gcvideo import device as runtime
from gcvideo.analysis.complexity import count_config
from gcvideo.benchmark.timing import STEADY_LR, wait_for
from gcvideo.config import RunConfig, load_config
from gcvideo.data.loader import ClipBatch
from gcvideo.device import pick_precision
from gcvideo.errors import ConfigError
from gcvideo.files import write_json
from gcvideo.train.step import Learner

# Contender -> shipped config.
OURS = {
    "plain": "kinetics400/slow_r50_8x8.yaml",
    "gc": "kinetics400/slow_r50_gc_c345_8x8.yaml",
    "se": "kinetics400/slow_r50_se_c345_8x8.yaml",
    "nl": "kinetics400/slow_r50_nl5_8x8.yaml",
}
THEIRS = "pytorchvideo"
# Ratios that `figures` holds: name -> (numerator, denominator).
FIGURES = {
    "train_step.pytorchvideo": ("plain", THEIRS),
    "train_step.gc_overhead": ("gc", "plain"),
    "train_step.se_overhead": ("se", "plain"),
    "train_step.nl_overhead": ("nl", "plain"),
}

# Rounds that do not count: until then a CPU's heap grows, and its page faults can double the time of a step.
WARM_UP = 3

Step = Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``gcvideo benchmark train``."""
    contenders = [THEIRS, *OURS]
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=[THEIRS, "plain", "gc"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="steps of each contender (default 7)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="clips a step (default 1)")
    parser.add_argument("--frames", type=int, default=8, metavar="T", help="frames a clip (default 8)")
    parser.add_argument("--crop", type=int, default=224, metavar="S", help="height and width (default 224)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; by default torch's choice")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of ours")
    parser.add_argument("--compile", action="store_true", help="compile ours with torch.compile")
    parser.add_argument(
        "--up-to", type=int, metavar="N", help="also find the largest batch of up to N clips that fits, and its speed"
    )
    parser.add_argument("--json", metavar="FILE", help="write figures, milliseconds and settings")


def run(args: argparse.Namespace) -> int | None:
    """Measure, print a table, and write the figures."""
    for name in ("rounds", "batch", "frames", "crop", "up_to"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be 1 or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = runtime.pick_device(args.device)
    runtime.tune(device)
    batch = random_batch(args.batch, args.frames, args.crop, device)
    steps: dict[str, Step] = {}
    configs: dict[str, RunConfig] = {}
    for name in args.contenders:
        if name == THEIRS:
            steps[name] = their_step(batch, device)
        else:
            configs[name] = our_config(name, args)
            steps[name] = our_step(configs[name], batch, device)
    seconds, memory = measure(steps, rounds=args.rounds, device=device)
    results = summarise(seconds, memory, args, device)
    peak = results["matmul_per_second"] = matmul_peak(device, pick_precision(args.precision, device))
    rates = {name: 1000 * args.batch / results["milliseconds"][name] for name in configs}
    results["share_of_matmul"] = {name: matmul_share(configs[name], rate, peak) for name, rate in rates.items()}
    results["limit"] = {}
    if args.up_to:
        steps.clear()  # their networks make room
        for name, config in configs.items():
            found = at_the_limit(config, most=args.up_to, steps=args.rounds, device=device)
            share = matmul_share(config, found["clips_per_second"], peak)
            results["limit"][name] = {**found, "share_of_matmul": share}
    show(results)
    if args.json:
        write_json(args.json, results)
    return None


def random_batch(clips: int, frames: int, crop: int, device: torch.device, *, classes: int = 400) -> ClipBatch:
    """Noise, the same for all: uint8 clips (N, 3, T, H, W) on the device, labels below ``classes``."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (clips, 3, frames, crop, crop), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (clips,), generator=generator)
    return ClipBatch(pixels.to(device), labels.to(device), torch.arange(clips), [])


def our_config(name: str, args: argparse.Namespace) -> RunConfig:
    """A shipped config at the size that is measured."""
    size = [f"data.frames={args.frames}", f"data.crop={args.crop}", f"data.short_side=[{args.crop},{args.crop}]"]
    how = [f"train.batch_size={args.batch}", f"train.precision={args.precision}", f"train.compile={args.compile}"]
    return load_config(OURS[name], [*size, *how])


def our_step(config: RunConfig, batch: ClipBatch, device: torch.device) -> Step:
    """The trainer's own step."""
    learner = Learner(config, device)
    learner.train()

    def step() -> None:
        learner.step(iter([batch]), number=0, lr=STEADY_LR)

    return step


def their_step(batch: ClipBatch, device: torch.device) -> Step:
    """pytorchvideo's slow_r50, as its ``create_resnet`` makes it, in float32 and with torch's default SGD."""
    from pytorchvideo.models.resnet import create_resnet

    frames, crop = batch.clips.shape[2], batch.clips.shape[-1]
    network: nn.Module = create_resnet(
        model_depth=50,
        stem_conv_kernel_size=(1, 7, 7),
        head_pool_kernel_size=(frames, -(-crop // 32), -(-crop // 32)),
    )
    network = network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=STEADY_LR, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step() -> None:
        clips: Tensor = (batch.clips.float() / 255 - 0.45) / 0.225
        optimizer.zero_grad()
        F.cross_entropy(network(clips), batch.labels).backward()
        optimizer.step()

    return step


def measure(
    steps: dict[str, Step], *, rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each contender in each round, after ``WARM_UP`` rounds, and GPU memory in bytes."""
    rng = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    memory: dict[str, int] = {}
    with console.Progress("train steps", total=(rounds + WARM_UP) * len(steps), unit="steps") as progress:
        for number in range(rounds + WARM_UP):
            for name in rng.sample(list(steps), len(steps)):
                wait_for(device)
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                began = time.perf_counter()
                steps[name]()
                wait_for(device)
                if device.type == "cuda":
                    memory[name] = torch.cuda.max_memory_allocated()
                if number >= WARM_UP:
                    seconds[name].append(time.perf_counter() - began)
                progress.advance(1, now=name)
    return seconds, memory


def summarise(
    seconds: dict[str, list[float]], memory: dict[str, int], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Medians and the medians of paired ratios."""
    figures = {
        name: statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))
        for name, (over, under) in FIGURES.items()
        if over in seconds and under in seconds
    }
    return {
        "figures": figures,
        "milliseconds": {name: 1000 * statistics.median(times) for name, times in seconds.items()},
        "fastest_milliseconds": {name: 1000 * min(times) for name, times in seconds.items()},
        "memory_bytes": memory,
        "settings": {
            "device": runtime.describe(device, pick_precision(args.precision, device)),
            "batch": args.batch,
            "frames": args.frames,
            "crop": args.crop,
            "rounds": args.rounds,
            "up_to": args.up_to,
            "compile": args.compile,
            "versions": runtime.versions(),
        },
    }


def matmul_peak(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product, two for each multiply-add: the most that a step could reach."""
    size, repeats = (8192, 20) if device.type == "cuda" else (1024, 5)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    wait_for(device)
    began = time.perf_counter()
    for _ in range(repeats):
        a @ a
    wait_for(device)
    return repeats * 2 * size**3 / (time.perf_counter() - began)


def matmul_share(config: RunConfig, clips_per_second: float, peak: float) -> float:
    """How much of that speed a network's training reaches.

    A step is counted as three forward passes (the backward pass computes two products for each of the forward pass's
    one) of two operations a multiply-add.
    """
    size = (1, 3, config.data.frames, config.data.crop, config.data.crop)
    return 6 * count_config(config.model, size).macs * clips_per_second / peak


def at_the_limit(config: RunConfig, *, most: int, steps: int, device: torch.device) -> dict[str, Any]:
    """The largest batch that fits into memory, up to ``most`` clips, and how fast it is."""
    learner = Learner(config, device)
    learner.train()
    size = largest_batch(lambda clips: _fits(learner, clips), most=most)
    batch = noise_for(learner, size)
    learner.step(iter([batch]), number=0, lr=STEADY_LR)
    wait_for(device)
    began = time.perf_counter()
    for number in range(steps):
        learner.step(iter([batch]), number=number, lr=STEADY_LR)
    wait_for(device)
    rate = steps * size / (time.perf_counter() - began)
    return {"batch": size, "clips_per_second": rate, "memory_bytes": runtime.memory_peak(device)}


def largest_batch(fits: Callable[[int], bool], *, most: int) -> int:
    """The largest batch that ``fits``, to within an eighth of it and no larger than ``most``; 1 is taken to fit."""
    size = 1
    while 2 * size <= most and fits(2 * size):
        size *= 2
    part, end = max(size // 8, 1), min(2 * size - 1, most)
    while size + part <= end and fits(size + part):
        size += part
    return size


def noise_for(learner: Learner, clips: int) -> ClipBatch:
    """A random batch that the network takes."""
    data, classes = learner.config.data, learner.config.model.num_classes
    return random_batch(clips, data.frames, data.crop, learner.device, classes=classes)


def _fits(learner: Learner, clips: int) -> bool:
    """Whether a step of so many clips fits into memory: it is tried."""
    try:
        if learner.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        learner.step(iter([noise_for(learner, clips)]), number=0, lr=STEADY_LR)
        wait_for(learner.device)
    except torch.OutOfMemoryError:
        learner.optimizer.zero_grad(set_to_none=True)
        return False
    return True


def show(results: dict[str, Any]) -> None:
    """Print what was found."""
    batch, memory = results["settings"]["batch"], results["memory_bytes"]
    shares = results["share_of_matmul"]
    rows = [
        [name, round(ms, 1), round(results["fastest_milliseconds"][name], 1), round(1000 * batch / ms, 2)]
        + [f"{100 * shares[name]:.1f}" if name in shares else "–"]
        + ([round(memory[name] / 2**30, 2)] if memory else [])
        for name, ms in results["milliseconds"].items()
    ]
    columns = ["network", "ms a step", "fastest", "clips/s", "% of a matrix product", *(["GiB"] if memory else [])]
    console.table(rows, columns=columns, title=f"{results['settings']['device']}, {batch} clips a step")
    console.say()
    console.table([[name, round(v, 3)] for name, v in results["figures"].items()], columns=["figure", "ratio"])
    if results["limit"]:
        console.say()
        rows = []
        for name, row in results["limit"].items():
            rate, gibibytes = round(row["clips_per_second"], 2), round(row["memory_bytes"] / 2**30, 2)
            rows.append([name, row["batch"], rate, f"{100 * row['share_of_matmul']:.1f}", gibibytes])
        columns = ["network", "clips a step", "clips/s", "% of a matrix product", "GiB"]
        console.table(rows, columns=columns, title=f"largest batches that fit, up to {results['settings']['up_to']}")
