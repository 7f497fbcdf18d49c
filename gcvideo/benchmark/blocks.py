"""Benchmark of context and non-local blocks: against memory bandwidth, the original code, and each other.

Measured: milliseconds of a forward pass and of forward and backward pass ("train") of one block. Ratios are medians of
times of the same round (see ``harness.py``). "port" is the 2D code of GCNet turned into 3D line by line, "peer" is
pytorchvideo's non-local block, "compiled" (on a GPU) is gcvideo's block through ``torch.compile``.

The bound is the memory that a block must touch. A forward pass reads x twice and writes y; the backward pass reads dy,
x and dy, and writes dx: seven passes. These floors are plain PyTorch passes over tensors of the same bytes, measured in
the same rounds.

For ``gcvideo benchmark compare`` also how the cost of a block grows with the clip, see ``measure_scaling``.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gcvideo.benchmark.complexity import count
from gcvideo.benchmark.harness import Contender, finish, set_up, time_contenders
from gcvideo.benchmark.peers import PortedContextBlock, pytorchvideo_non_local
from gcvideo.benchmark.workloads import block_training, forward_pass, random_clips, without_zeros
from gcvideo.capture import CudaGraphs
from gcvideo.config import RunConfig
from gcvideo.device import has_streams
from gcvideo.layers import NonLocalBlock, gc_block
from gcvideo.models import model_config

# Stage -> shape (C, T, H, W) of its features in a ResNet-50 on 8 frames of 224 x 224.
STAGES = {"res3": (512, 8, 28, 28), "res4": (1024, 8, 14, 14), "res5": (2048, 8, 7, 7)}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Name -> builder from channels: the default non-local block of the configs, and one without sub-sampled keys, which
# shows the quadratic law more clearly.
SCALED: dict[str, Callable[[int], nn.Module]] = {
    "GC": gc_block,
    "NL": NonLocalBlock,
    "NL, all keys": lambda channels: NonLocalBlock(channels, subsample="none"),
}


class Case(NamedTuple):
    """One shape, memory layout and dtype."""

    stage: str
    batch: int
    layout: str
    dtype: str


def run(args: argparse.Namespace) -> None:
    """Measure, print tables, and write the results."""
    device, _, machine = set_up(args)
    batches = args.batch or ([1, 8] if device.type == "cpu" else [8, 32])
    cases = [Case(*case) for case in product(STAGES, batches, LAYOUTS, DTYPES)]
    few = [Case(*case) for case in product(STAGES, [1], ["contiguous"], DTYPES) if args.nl_rounds]
    backend = "inductor" if device.type == "cuda" else None
    gc = [measure(case, gc_blocks, rounds=args.rounds, device=device, backend=backend) for case in cases]
    non_local = [measure(case, non_local_blocks, rounds=args.nl_rounds, device=device) for case in few]
    ratios = named_ratios(gc, non_local)
    if args.model_rounds:
        ratios["gc.model.overhead"] = model_overhead(args.model_rounds, device)
    title = "GC over floor, port over GC, GC over compiled, peer over NL, NL over GC (own_nl), peer over GC (peer_nl)"
    rows = [{key: value for key, value in row.items() if key != "ms"} for row in [*gc, *non_local]]
    results = {"figures": ratios, "gc": gc, "non_local": non_local, "machine": machine}
    finish(args, results, {title: rows})


def gc_blocks(channels: int) -> dict[str, nn.Module]:
    """The GC block and the ported one with the same weights."""
    ours = without_zeros(gc_block(channels))
    return {"ours": ours, "port": PortedContextBlock(channels).copy_from(ours)}


def non_local_blocks(channels: int) -> dict[str, nn.Module]:
    """gcvideo's non-local block and pytorchvideo's with the same weights, neither sub-sampling, and the GC block."""
    nl = without_zeros(NonLocalBlock(channels, subsample="none"))
    for layer in nl.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)  # so that attention is neither uniform nor a single peak
    return {"ours": without_zeros(gc_block(channels)), "nl": nl, "peer": pytorchvideo_non_local(nl)}


def measure(
    case: Case,
    make: Callable[[int], dict[str, nn.Module]],
    *,
    rounds: int,
    device: torch.device,
    backend: str | None = None,
) -> dict[str, Any]:
    """Blocks and the floors, forward and training: the case, the ratios, and under "ms" milliseconds by contender.

    Args:
        make: the blocks by name, from channels.
        backend: of ``torch.compile``, for gcvideo's GC block compiled as one more contender; None: without it.
    """
    shape, layout, dtype = (case.batch, *STAGES[case.stage]), LAYOUTS[case.layout], DTYPES[case.dtype]
    blocks: dict[str, Any] = {name: block.to(device, dtype) for name, block in make(shape[1]).items()}
    if backend:
        torch.compiler.reset()  # its limit of compilations counts those of other cases too
        blocks["compiled"] = torch.compile(blocks["ours"], backend=backend, fullgraph=True)
    x, dy = (torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout) for _ in range(2))
    y, dx, leaf = torch.empty_like(x), torch.empty_like(x), x.detach().requires_grad_()

    def floor_forward() -> None:
        x.sum()
        torch.add(x, 1, out=y)

    def floor_train() -> None:
        floor_forward()
        dy.sum()
        torch.add(x, dy, out=dx)

    contenders: dict[str, Contender] = {"floor.forward": floor_forward, "floor.train": floor_train}
    for name, block in blocks.items():
        contenders[f"{name}.forward"] = partial(torch.no_grad()(block), x)
        contenders[f"{name}.train"] = partial(block_training, block, leaf, dy)
    if has_streams(device):  # as graphs, so that the host's time is not what is measured
        contenders = {name: as_graph(contender) for name, contender in contenders.items()}
    calls = 20 if has_streams(device) else 1  # in one timing, so that waiting for the device weighs little
    times = time_contenders(contenders, rounds=rounds, device=device, calls=calls, title=" ".join(map(str, case)))
    return {**case._asdict(), "ms": times.milliseconds(), **times.ratios("blocks")}


def as_graph(work: Contender) -> Contender:
    """Work on a GPU that is recorded in its third call, and from then on launched as a whole."""
    return partial(CudaGraphs(lambda _: work(), warm_up=2, recover=lambda: None), ())


def model_overhead(rounds: int, device: torch.device) -> float:
    """Time of slow_r50 with 13 GC blocks over plain slow_r50: one clip of 8 x 224 x 224, bf16, compiled."""
    networks = {}
    for name in ("slow_r50_gc_c345", "slow_r50"):
        config, clips = RunConfig(model=model_config(name)), random_clips((1, 3, 8, 224, 224))
        networks[name] = forward_pass(config, clips, device=device, precision="bf16", compile=True)
    return time_contenders(networks, rounds=rounds, device=device, title="networks").ratio(*networks)


def named_ratios(gc: Sequence[dict[str, Any]], non_local: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The named ratios of the blocks.

    GC: the floors and the port are medians over res3 and res4 at the larger batch, of the worst layout (and, forward,
    of the worse dtype). The port runs in the contiguous layout, for which it was written.

    Non-local: res3, one clip, contiguous (pytorchvideo's block takes nothing else). Ratios of training are those of the
    dtype with the smaller one.

    Args:
        gc: rows of ``measure`` with the GC block.
        non_local: rows of ``measure`` with the non-local block; perhaps none.
    """
    batch = max(row["batch"] for row in gc)
    main = [row for row in gc if row["batch"] == batch and row["stage"] in ("res3", "res4")]

    def worst_median(key: str, **fixed: str) -> float:
        groups = defaultdict(list)
        for row in main:
            if fixed.items() <= row.items():
                groups[row["layout"], row["dtype"]].append(row[key])
        return max(map(median, groups.values()))

    ratios = {
        "gc.forward.floor": worst_median("forward.floor"),
        "gc.forward.floor.worst": max(row["forward.floor"] for row in gc),
        **{f"gc.train.floor.{dtype}": worst_median("train.floor", dtype=dtype) for dtype in DTYPES},
        "gc.train.port": worst_median("train.port", dtype="bf16", layout="contiguous"),
    }
    if res3 := {row["dtype"]: row for row in non_local if row["stage"] == "res3"}:
        for name in ("gc.train.peer_nl", "gc.train.own_nl"):
            ratios[name] = min(row[name] for row in res3.values())
        ratios["nl.forward.peer"] = res3["bf16"]["nl.forward.peer"]
    return ratios


def measure_scaling(
    *, channels: int, shapes: Sequence[tuple[int, int, int]], rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Forward time and multiply-adds of single blocks over clips of growing size: GC is linear, NL quadratic.

    Blocks have equal channels and see the same clips, alternating; on a CPU one thread computes. The exponent b of cost
    ~ P^b, with P = T x H x W positions, is the slope of the least-squares line through the logarithms of the larger
    clips, those with at least an eighth of the most positions: small clips mostly cost the same few calls. Bound: 1 for
    GC and 2 for NL, from their multiply-adds.

    Args:
        channels: C of the blocks.
        shapes: (T, H, W) of the features.
        rounds: that count, for each shape.
        device: to compute on.

    Returns:
        block -> ``points``: a list of {"shape", "positions", "ms" (median and quartiles), "macs"}; ``time_exponent``
        and ``macs_exponent``.
    """
    blocks = {name: make(channels).to(device).eval() for name, make in SCALED.items()}
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in blocks}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for shape in shapes:
        x = torch.randn(1, channels, *shape, device=device).relu()
        contenders = {name: partial(torch.no_grad()(block), x) for name, block in blocks.items()}
        times = time_contenders(contenders, rounds=rounds, device=device, title=f"blocks on {shape}").per_clip(1)
        for name, block in blocks.items():
            point = {"shape": list(shape), "positions": math.prod(shape), "macs": count(block, x.shape).macs}
            points[name].append({**point, "ms": times[name]["ms_per_clip"]})
    torch.set_num_threads(threads)
    return {
        name: {
            "points": line,
            "time_exponent": fit_exponent([p["positions"] for p in line], [p["ms"]["median"] for p in line]),
            "macs_exponent": fit_exponent([p["positions"] for p in line], [p["macs"] for p in line]),
        }
        for name, line in points.items()
    }


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost ~ size^b, over the sizes of at least an eighth of the largest."""
    size, cost = np.asarray(sizes, float), np.asarray(costs, float)
    kept = size >= size.max() / 8
    return float(np.polyfit(np.log(size[kept]), np.log(cost[kept]), 1)[0])
