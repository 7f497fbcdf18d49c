"""Benchmark of context and non-local blocks: against memory bandwidth, the original code, and each other.

Measured: milliseconds of a forward pass and of forward and backward pass ("train") of one block. Ratios are medians of
times of the same round (see ``timing.py``).

On a CPU the bound is the memory that a block must touch. A forward pass reads x twice and writes y; the backward pass
reads dy, x and dy, and writes dx: seven passes. These floors are plain PyTorch passes over tensors of the same bytes,
measured in the same rounds. On a CPU without matrix units for bf16 (``machine.bf16_speedup`` near or below 1) torch's
fused attention takes longer in bf16 than plain products do; nl.forward.peer and gc.train.own_nl then say little about
CPUs that have them.

On a GPU the block is measured as a residual stage uses it, y = ReLU(GC(x) + shortcut), eager and through
``torch.compile``, because fusing these is where compiling pays. The bound is the time on paper, passes x bytes of x /
bandwidth, where a pass reads or writes one tensor of the size of x:

============  =======  ==========================================================================================
form          passes   what they are
============  =======  ==========================================================================================
forward
  eager       9        x three times and y once in the block; sum with the shortcut 3; ReLU 2
  compiled    5        x twice to pool; x and shortcut read and y written in one kernel
backward
  eager       10       ReLU 3; sum of its gradient 1; x twice; gradient read and written twice
  compiled    8        ReLU 3; sum of its gradient 1; x twice; gradient read and dx written
============  =======  ==========================================================================================

The time on paper leaves out kernel launches, which weigh on small clips; the measured one has them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo import console
from gcvideo.benchmark import harness
from gcvideo.benchmark.peers.blocks import PortedContextBlock, pytorchvideo_non_local
from gcvideo.benchmark.timing import CPU, time_contenders
from gcvideo.benchmark.workloads import block_forward, block_training, forward_pass, random_clips, without_zeros
from gcvideo.config import RunConfig
from gcvideo.layers import NonLocalBlock, gc_block
from gcvideo.models import model_config

# Stage -> shape (C, T, H, W) of its features in a ResNet-50 on 8 frames of 224 x 224.
STAGES = {"res3": (512, 8, 28, 28), "res4": (1024, 8, 14, 14), "res5": (2048, 8, 7, 7)}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Name of a ratio -> (over, under).
GC_RATIOS = {
    "forward.floor": ("ours.forward", "floor.forward"),
    "train.floor": ("ours.train", "floor.train"),
    "forward.port": ("port.forward", "ours.forward"),
    "train.port": ("port.train", "ours.train"),
}
NON_LOCAL_RATIOS = {
    "nl.forward.peer": ("peer.forward", "nl.forward"),
    "gc.train.own_nl": ("nl.train", "gc.train"),
    "gc.train.peer_nl": ("peer.train", "gc.train"),
}
GPU_RATIOS = {what: (f"{what}.eager", f"{what}.compiled") for what in ("forward", "train")}
PASSES = {"forward": {"eager": 9, "compiled": 5}, "train": {"eager": 9 + 10, "compiled": 5 + 8}}
PAPER_BANDWIDTH = 3.0e12  # bytes a second, of an H100 with HBM3: 90 % of its data sheet's 3.35 TB/s
GPU_CALLS = 20  # in one timing, so that waiting for the device weighs little


@dataclass(frozen=True)
class Case:
    """One shape, memory layout and dtype."""

    stage: str
    batch: int
    layout: str
    dtype: str

    def tensor(self, seed: int) -> Tensor:
        """Noise (N, C, T, H, W) of the case's layout and dtype."""
        x = torch.randn(self.batch, *STAGES[self.stage], generator=torch.Generator().manual_seed(seed))
        return x.to(DTYPES[self.dtype]).contiguous(memory_format=LAYOUTS[self.layout])

    def gc_block(self) -> Any:
        """The block of the case, with weights that are not zero, in float32."""
        return without_zeros(gc_block(STAGES[self.stage][0]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``gcvideo benchmark blocks``."""
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", help="clips (default 1 8; on a GPU 8 32)")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="DTYPE")
    parser.add_argument(
        "--nl-rounds", type=int, default=3, metavar="N", help="of non-local blocks (default 3); 0: leave them out"
    )
    parser.add_argument(
        "--model-rounds", type=int, default=5, metavar="N", help="of whole networks (default 5); 0: leave them out"
    )
    harness.add_options(parser, rounds=7, threads=1, device="cpu")


def run(args: argparse.Namespace) -> None:
    """Measure, print tables, and write the results."""
    device, _, machine = harness.set_up(args)
    batches = args.batch or ([1, 8] if device.type == "cpu" else [8, 32])
    cases = [Case(*case) for case in product(args.stages, batches, args.layouts, args.dtypes)]
    results: dict[str, Any] = {"machine": machine}
    if device.type == "cuda":
        results["gpu"] = measure_all(cases, partial(measure_gc_on_gpu, rounds=args.rounds, device=device))
        title = f"ReLU(GC(x) + shortcut), us: measured / on paper at {PAPER_BANDWIDTH / 1e12:.1f} TB/s"
        harness.finish(args, results, {title: [gpu_row(row) for row in results["gpu"]]})
        return
    results["gc"] = measure_all(cases, partial(measure_gc, rounds=args.rounds))
    few = [Case(stage, 1, "contiguous", dtype) for stage in args.stages for dtype in args.dtypes if args.nl_rounds]
    results["non_local"] = measure_all(few, partial(measure_non_local, rounds=args.nl_rounds))
    results["figures"] = gc_ratios(results["gc"]) | non_local_ratios(results["non_local"])
    results["figures"]["machine.bf16_speedup"] = bf16_speedup()
    if args.model_rounds:
        results["figures"]["gc.model.overhead"] = model_overhead(args.model_rounds)
    tables = {"GC block": ("gc", GC_RATIOS), "Non-local blocks": ("non_local", NON_LOCAL_RATIOS)}
    harness.finish(
        args,
        results,
        {title: [ratio_row(row, named) for row in results[key]] for title, (key, named) in tables.items()},
    )


def measure_all(cases: Sequence[Case], measure: Callable[[Case], dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured of each case, behind its shape, layout and dtype."""
    rows = []
    with console.Progress("blocks", total=len(cases), unit="cases") as progress:
        for case in cases:
            rows.append({**vars(case), **measure(case)})
            progress.advance()
    return rows


def ratio_row(row: Mapping[str, Any], ratios: Mapping[str, tuple[str, str]]) -> dict[str, object]:
    """Columns of a table: the case, and which time is divided by which."""
    shown = {" / ".join(pair): f"{row[name]:.2f}" for name, pair in ratios.items()}
    return {key: row[key] for key in Case.__annotations__} | shown


def gpu_row(row: Mapping[str, Any]) -> dict[str, object]:
    """Columns of a table: the case, and microseconds measured beside those on paper."""
    shown: dict[str, object] = {key: row[key] for key in Case.__annotations__}
    for what, forms in row["us"].items():
        shown |= {f"{what}, {form}": f"{us:.0f} / {row['paper_us'][what][form]:.0f}" for form, us in forms.items()}
    return {**shown, "copy, TB/s": f"{row['bandwidth'] / 1e12:.2f}"}


def measure_gc(case: Case, *, rounds: int) -> dict[str, Any]:
    """The GC block and the ported one on a CPU, forward and training, as multiples of the floor."""
    ours = case.gc_block()
    port = PortedContextBlock(STAGES[case.stage][0]).copy_from(ours).to(DTYPES[case.dtype])
    ours = ours.to(DTYPES[case.dtype])
    x, dy = case.tensor(0), case.tensor(1)
    y, dx = torch.empty_like(x), torch.empty_like(x)

    def floor_forward() -> None:
        x.sum()
        torch.add(x, 1, out=y)

    def floor_train() -> None:
        floor_forward()
        dy.sum()
        torch.add(x, dy, out=dx)

    contenders = {"floor.forward": floor_forward, "floor.train": floor_train}
    contenders |= both_ways({"ours": ours, "port": port}, x, dy=dy)
    times = time_contenders(contenders, rounds=rounds)
    return {"ms": times.milliseconds(), **times.ratios(GC_RATIOS)}


def both_ways(blocks: Mapping[str, nn.Module], *inputs: Tensor, dy: Tensor, form: str = "{}.{}") -> dict[str, Any]:
    """Contenders of the forward pass and of training of each block."""
    forward = {form.format(name, "forward"): block_forward(block, *inputs) for name, block in blocks.items()}
    return forward | {
        form.format(name, "train"): block_training(block, *inputs, dy=dy) for name, block in blocks.items()
    }


class ResidualBlock(nn.Module):
    """y = ReLU(GC(x) + shortcut)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """(N, C, T, H, W) twice -> the same shape."""
        return torch.relu(self.block(x) + shortcut)


def measure_gc_on_gpu(
    case: Case, *, rounds: int, device: torch.device, backend: str = "inductor", calls: int = GPU_CALLS
) -> dict[str, Any]:
    """The GC block in a residual stage, eager and compiled, measured and on paper.

    Args:
        backend: of ``torch.compile``.
        calls: in each timing.

    Returns:
        "us" and "paper_us": "forward" and "train" -> "eager" and "compiled" -> microseconds; "compiled_speedup":
        "forward" and "train" -> eager over compiled, of the same round; "bandwidth": bytes a second of ``x.clone()``.
    """
    torch.compiler.reset()  # its limit of compilations counts those of other cases too
    eager = ResidualBlock(case.gc_block().to(device, DTYPES[case.dtype]))
    compiled: Any = torch.compile(eager, backend=backend, fullgraph=True)
    x, dy, shortcut = (case.tensor(seed).to(device) for seed in range(3))
    contenders = both_ways({"eager": eager, "compiled": compiled}, x, shortcut, dy=dy, form="{1}.{0}")
    contenders["clone"] = x.clone
    times = time_contenders(contenders, rounds=rounds, device=device, warmup=2, calls=calls)
    ms, size = times.milliseconds(), x.numel() * x.element_size()
    return {
        "us": {what: {form: 1000 * ms[f"{what}.{form}"] for form in forms} for what, forms in PASSES.items()},
        "paper_us": {
            what: {form: 1e6 * count * size / PAPER_BANDWIDTH for form, count in forms.items()}
            for what, forms in PASSES.items()
        },
        "compiled_speedup": times.ratios(GPU_RATIOS),
        "bandwidth": 2 * size / (ms["clone"] / 1000),
    }


def measure_non_local(case: Case, *, rounds: int) -> dict[str, Any]:
    """gcvideo's non-local block and pytorchvideo's, neither sub-sampling, beside the GC block; and their difference."""
    ours = NonLocalBlock(STAGES[case.stage][0], subsample="none")
    # Weights under which attention is neither uniform nor a single peak, and the block adds as much as its input.
    for layer in (ours.theta, ours.phi, ours.g, ours.out):
        assert layer is not None
        nn.init.kaiming_normal_(layer.weight)
    assert ours.norm is not None
    nn.init.ones_(ours.norm.weight)
    blocks = {"gc": case.gc_block(), "nl": ours, "peer": pytorchvideo_non_local(ours)}
    blocks = {name: block.to(DTYPES[case.dtype]).eval() for name, block in blocks.items()}
    x, dy = case.tensor(0), case.tensor(1)
    with torch.no_grad():
        expected, actual = blocks["peer"](x).float(), blocks["nl"](x).float()
    contenders = both_ways({name: block.train() for name, block in blocks.items()}, x, dy=dy)
    times = time_contenders(contenders, rounds=rounds)
    difference = ((actual - expected).norm() / expected.norm()).item()
    return {"ms": times.milliseconds(), **times.ratios(NON_LOCAL_RATIOS), "difference": difference}


def model_overhead(rounds: int) -> float:
    """Time of slow_r50 with 13 GC blocks over plain slow_r50: one clip of 8 x 224 x 224, bf16, compiled."""
    clips = random_clips((1, 3, 8, 224, 224))
    names = ("slow_r50_gc_c345", "slow_r50")
    how: dict[str, Any] = {"device": CPU, "precision": "bf16", "compile": True}
    networks = {name: forward_pass(RunConfig(model=model_config(name)), clips, **how) for name in names}
    return time_contenders(networks, rounds=rounds).ratio(*names)


def bf16_speedup(rounds: int = 5, size: int = 2048) -> float:
    """Time of a matrix product in fp32 over that in bf16, which bounds what bf16 can bring to a non-local block."""
    factors = {name: torch.randn(size, size).to(dtype) for name, dtype in DTYPES.items()}
    products = {name: partial(torch.mm, factor, factor) for name, factor in factors.items()}
    return time_contenders(products, rounds=rounds).ratio("fp32", "bf16")


def gc_ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The named ratios of the GC block.

    The floors and the port are medians over res3 and res4 at the larger batch, of the worst layout (and, forward, of
    the worse dtype). The port runs in the contiguous layout, for which it was written.
    """
    batch = max(row["batch"] for row in rows)
    main = [row for row in rows if row["batch"] == batch and row["stage"] in ("res3", "res4")] or rows

    def worst_median(key: str, **fixed: str) -> float | None:
        groups = defaultdict(list)
        for row in main:
            if fixed.items() <= row.items():
                groups[row["layout"], row["dtype"]].append(row[key])
        return max(map(median, groups.values()), default=None)

    ratios = {
        "gc.forward.floor": worst_median("forward.floor"),
        "gc.forward.floor.worst": max(row["forward.floor"] for row in rows),
        "gc.train.floor.fp32": worst_median("train.floor", dtype="fp32"),
        "gc.train.floor.bf16": worst_median("train.floor", dtype="bf16"),
        "gc.train.port": worst_median("train.port", dtype="bf16", layout="contiguous"),
        "gc.train.port.fp32": worst_median("train.port", dtype="fp32", layout="contiguous"),
        "gc.train.port.channels_last": worst_median("train.port", dtype="bf16", layout="channels_last"),
    }
    return {name: value for name, value in ratios.items() if value is not None}


def non_local_ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The named ratios of the non-local block: res3, one clip, contiguous (pytorchvideo's block takes nothing else).

    Ratios of training are those of the dtype with the smaller one.
    """
    rows = [row for row in rows if row["stage"] == "res3"]
    if not rows:
        return {}
    ratios = {name: min(row[name] for row in rows) for name in ("gc.train.peer_nl", "gc.train.own_nl")}
    ratios["nl.forward.peer.difference"] = max(row["difference"] for row in rows)
    for row in rows:
        ratios["nl.forward.peer" if row["dtype"] == "bf16" else "nl.forward.peer.fp32"] = row["nl.forward.peer"]
    return ratios
