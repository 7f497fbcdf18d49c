"""Context and non-local blocks against the physical limit, the original code and each other.

No block can be faster than the memory it must touch. The floor of a forward pass is x read, x read again and y written;
the backward pass adds dy read, x and dy read, and dx written: seven passes. Floors are measured as plain PyTorch passes
over tensors of the same bytes, in the same rounds as the blocks. Every ratio is taken within a round, where all
contenders run one after the other, and reported as the median over rounds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gcvideo import console
from gcvideo import device as runtime
from gcvideo.benchmark.blocks_gpu import measure_gpu, show_gpu
from gcvideo.benchmark.peers.blocks import PortedContextBlock, pytorchvideo_non_local
from gcvideo.benchmark.timing import alternate, pick_clock
from gcvideo.device import has_bf16_units
from gcvideo.errors import ConfigError
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.files import write_json
from gcvideo.layers import NonLocalBlock, gc_block
from gcvideo.models import create_model

# Stage -> shape (C, T, H, W) of its features in a ResNet-50 on 8 frames of 224 x 224.
STAGES = {"res3": (512, 8, 28, 28), "res4": (1024, 8, 14, 14), "res5": (2048, 8, 7, 7)}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Figure -> what it is to be on one core with matrix units for bf16 (AMX); figures are described where they are made.
GOALS = {
    "gc.forward.floor": "<= 1.6",
    "gc.forward.floor.worst": "<= 3",
    "gc.train.floor.fp32": "<= 2.3",
    "gc.train.floor.bf16": "<= 3.2",
    "gc.train.port": ">= 4.5",
    "gc.train.peer_nl": ">= 100",
    "gc.train.own_nl": ">= 25",
    "nl.forward.peer": ">= 4",
    "nl.forward.peer.difference": "rounding",
    "nl.memory.exponent": "1",
    "gc.model.overhead": "<= 1.10",
}


@dataclass(frozen=True)
class Case:
    """One shape, memory layout and number format."""

    stage: str
    batch: int
    layout: str
    dtype: str

    def tensor(self, seed: int) -> Tensor:
        """Noise (N, C, T, H, W) laid out as the case says."""
        x = torch.randn(self.batch, *STAGES[self.stage], generator=torch.Generator().manual_seed(seed))
        return x.to(DTYPES[self.dtype]).contiguous(memory_format=LAYOUTS[self.layout])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``gcvideo benchmark blocks``."""
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--batch", type=int, nargs="+", metavar="N", help="clips (default 1 8; on a GPU 8 32)")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="DTYPE")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds that count (default 7)")
    parser.add_argument(
        "--nl-rounds", type=int, default=3, metavar="N", help="for non-local ones (default 3); 0: leave them out"
    )
    parser.add_argument(
        "--model-rounds", type=int, default=5, metavar="N", help="for whole networks; 0: leave them out"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="on a GPU: eager and compiled, beside times on paper"
    )
    parser.add_argument("--json", metavar="FILE", help="write figures, goals and every case")


def run(args: argparse.Namespace) -> None:
    """Measure everything, print it, and write it."""
    for name, least in {"rounds": 1, "threads": 1, "nl_rounds": 0, "model_rounds": 0}.items():
        if getattr(args, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')}: must be {least} or more")
    batches = args.batch or ([1, 8] if args.device == "cpu" else [8, 32])
    if min(batches) < 1:
        raise ConfigError("--batch: must be 1 or more")
    device = runtime.pick_device(args.device)
    torch.set_num_threads(args.threads)
    runtime.tune(device)
    cases = [
        Case(stage, batch, layout, dtype)
        for stage in args.stages
        for batch in batches
        for layout in args.layouts
        for dtype in args.dtypes
    ]
    measure: Callable[[Case], dict[str, Any]] = (
        partial(measure_gc, rounds=args.rounds)
        if device.type == "cpu"
        else partial(measure_gc_on_gpu, rounds=args.rounds, device=device)
    )
    rows = []
    with console.Progress("blocks", total=len(cases), unit="cases") as progress:
        for case in cases:
            rows.append(measure(case))
            progress.advance()
    if device.type == "cuda":
        finish_on_gpu(rows, args, device)
    else:
        finish_on_cpu(rows, args)


def finish_on_gpu(rows: Sequence[dict[str, Any]], args: argparse.Namespace, device: torch.device) -> None:
    """Show and write the cases; the figures and floors are those of a CPU."""
    show_gpu(rows)
    if args.json:
        settings = {"device": runtime.describe(device, "fp32 and bf16"), "rounds": args.rounds}
        write_json(args.json, {"gpu": rows, "settings": settings, "versions": runtime.versions()})


def finish_on_cpu(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    """Measure the rivals and the whole network, make the figures, show and write."""
    rivals = [
        measure_non_local(Case(stage, 1, "contiguous", dtype), args.nl_rounds)
        for stage in args.stages
        for dtype in args.dtypes
        if args.nl_rounds > 0
    ]
    figures = gc_figures(rows) | non_local_figures(rivals)
    figures |= {"nl.memory.exponent": memory_exponent(), "machine.bf16_speedup": bf16_speedup()}
    if args.model_rounds:
        figures["gc.model.overhead"] = model_overhead(args.model_rounds)
    show(rows, rivals, figures)
    if args.json:
        write_json(
            args.json,
            {
                "figures": figures,
                "goals": GOALS,
                "gc": rows,
                "non_local": rivals,
                "settings": {"threads": args.threads, "rounds": args.rounds},
                "versions": runtime.versions(),
            },
        )


# ---------------------------------------------------------------- measuring


def measure_gc(case: Case, rounds: int) -> dict[str, Any]:
    """The GC block and the ported one, forward and training, as multiples of the floor."""
    ours = randomise(gc_block(STAGES[case.stage][0]))
    port = PortedContextBlock(STAGES[case.stage][0]).copy_from(ours)
    ours, port = ours.to(DTYPES[case.dtype]), port.to(DTYPES[case.dtype])
    x, dy = case.tensor(0), case.tensor(1)
    y, dx = torch.empty_like(x), torch.empty_like(x)

    def floor_forward() -> None:
        x.sum()
        torch.add(x, 1, out=y)

    def floor_train() -> None:
        floor_forward()
        dy.sum()
        torch.add(x, dy, out=dx)

    actions = {
        "floor.forward": floor_forward,
        "ours.forward": _forward(ours, x),
        "port.forward": _forward(port, x),
        "floor.train": floor_train,
        "ours.train": _train(ours, x, dy),
        "port.train": _train(port, x, dy),
    }
    seconds = _time(actions, rounds)
    return {
        **vars(case),
        "ms": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "forward.floor": _ratio(seconds, "ours.forward", "floor.forward"),
        "train.floor": _ratio(seconds, "ours.train", "floor.train"),
        "forward.port": _ratio(seconds, "port.forward", "ours.forward"),
        "train.port": _ratio(seconds, "port.train", "ours.train"),
    }


def measure_gc_on_gpu(case: Case, rounds: int, device: torch.device, **how: Any) -> dict[str, Any]:
    """The GC block in a residual stage, eager and compiled, see ``measure_gpu``."""
    block = randomise(gc_block(STAGES[case.stage][0])).to(device, DTYPES[case.dtype])
    x, dy = (case.tensor(seed).to(device) for seed in (0, 1))
    return {**vars(case), **measure_gpu(block, x, dy, rounds=rounds, **how)}


def measure_non_local(case: Case, rounds: int) -> dict[str, Any]:
    """Our non-local block and pytorchvideo's, neither sub-sampling, beside the GC block."""
    channels = STAGES[case.stage][0]
    gc = randomise(gc_block(channels)).to(DTYPES[case.dtype])
    ours = _lively(NonLocalBlock(channels, subsample="none"))
    peer = pytorchvideo_non_local(ours).to(DTYPES[case.dtype])
    ours = ours.to(DTYPES[case.dtype])
    x, dy = case.tensor(0), case.tensor(1)
    with torch.no_grad():
        expected, actual = peer.eval()(x).float(), ours.eval()(x).float()
    contenders: dict[str, nn.Module] = {"gc": gc, "nl": ours.train(), "peer": peer.train()}
    actions = {f"{name}.forward": _forward(block, x) for name, block in contenders.items()}
    actions |= {f"{name}.train": _train(block, x, dy) for name, block in contenders.items()}
    seconds = _time(actions, rounds)
    return {
        **vars(case),
        "ms": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "nl.forward.peer": _ratio(seconds, "peer.forward", "nl.forward"),
        "gc.train.own_nl": _ratio(seconds, "nl.train", "gc.train"),
        "gc.train.peer_nl": _ratio(seconds, "peer.train", "gc.train"),
        "difference": ((actual - expected).norm() / expected.norm()).item(),
    }


def _lively(block: NonLocalBlock) -> NonLocalBlock:
    """Weights under which attention is neither uniform nor a single peak, and the block adds as much as it is given."""
    for layer in (block.theta, block.phi, block.g, block.out):
        assert layer is not None
        nn.init.kaiming_normal_(layer.weight)
    assert block.norm is not None
    nn.init.ones_(block.norm.weight)
    return block


def memory_exponent(sizes: Sequence[int] = (8, 32)) -> float:
    """How the largest tensor that our non-local block ever makes grows with positions: 1 is linear, 2 is all pairs.

    All tensors that any operator of the forward and the backward pass returns are looked at.
    """
    largest = []
    for size in sizes:
        block = NonLocalBlock(8, subsample="none")
        x = torch.randn(1, 8, 2, size, size, requires_grad=True)
        with _LargestTensor() as watch:
            block(x).sum().backward()
        largest.append(watch.elements)
    return math.log(largest[1] / largest[0]) / math.log((sizes[1] / sizes[0]) ** 2)


class _LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operator returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return result


def model_overhead(rounds: int) -> float:
    """Time of slow_r50 with 13 GC blocks over plain slow_r50: one clip of 8 x 224 x 224, bf16, compiled."""
    x = torch.randn(1, 3, 8, 224, 224).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    models = {
        name: optimize_for_inference(randomise(create_model(name)), precision="bf16", compile=True)
        for name in ("slow_r50", "slow_r50_gc_c345")
    }
    actions = {name: _forward(model, x) for name, model in models.items()}
    seconds = _time(actions, rounds)
    return _ratio(seconds, "slow_r50_gc_c345", "slow_r50")


def bf16_speedup(rounds: int = 5, size: int = 2048) -> float:
    """Time of a matrix product in fp32 over that in bf16, which bounds what bf16 can bring to a non-local block."""
    factors = {name: torch.randn(size, size).to(dtype) for name, dtype in DTYPES.items()}
    return _ratio(_time({name: partial(torch.mm, m, m) for name, m in factors.items()}, rounds), "fp32", "bf16")


def _time(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in each round."""
    device = torch.device("cpu")
    return alternate(actions, rounds=rounds, device=device, clock=pick_clock(device))


def randomise(module: nn.Module, std: float = 0.1) -> Any:
    """Move layers that start at zero away from it, so that no product is trivially zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


def _forward(block: nn.Module, x: Tensor) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            block(x)

    return forward


def _train(block: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    leaf = x.detach().requires_grad_()

    def train() -> None:
        leaf.grad = None
        block.zero_grad(set_to_none=True)
        block(leaf).backward(dy)

    return train


def _ratio(seconds: dict[str, list[float]], numerator: str, denominator: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[numerator], seconds[denominator], strict=True))


# ---------------------------------------------------------------- figures


def gc_figures(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The named figures of the GC block.

    The floors and the port are medians over res3 and res4 at the larger batch, of the worst layout (and, forward, of
    the worse number format). The port runs in the contiguous layout, the one it was written for.
    """
    rows = list(rows)
    batch = max(row["batch"] for row in rows)
    main = [row for row in rows if row["batch"] == batch and row["stage"] in ("res3", "res4")] or rows

    def worst_median(key: str, **fixed: str) -> float | None:
        chosen = [row for row in main if all(row[name] == value for name, value in fixed.items())]
        groups: dict[tuple[str, str], list[float]] = {}
        for row in chosen:
            groups.setdefault((row["layout"], row["dtype"]), []).append(row[key])
        return max((statistics.median(values) for values in groups.values()), default=None)

    figures = {
        "gc.forward.floor": worst_median("forward.floor"),
        "gc.forward.floor.worst": max(row["forward.floor"] for row in rows),
        "gc.train.floor.fp32": worst_median("train.floor", dtype="fp32"),
        "gc.train.floor.bf16": worst_median("train.floor", dtype="bf16"),
        "gc.train.port": worst_median("train.port", dtype="bf16", layout="contiguous"),
        "gc.train.port.fp32": worst_median("train.port", dtype="fp32", layout="contiguous"),
        "gc.train.port.channels_last": worst_median("train.port", dtype="bf16", layout="channels_last"),
    }
    return {name: value for name, value in figures.items() if value is not None}


def non_local_figures(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The named figures of the non-local block: res3, one clip, contiguous (pytorchvideo's block takes nothing else).

    Ratios of training are the smaller of the two number formats.
    """
    rows = [row for row in rows if row["stage"] == "res3"]
    if not rows:
        return {}
    figures = {
        "gc.train.peer_nl": min(row["gc.train.peer_nl"] for row in rows),
        "gc.train.own_nl": min(row["gc.train.own_nl"] for row in rows),
        "nl.forward.peer.difference": max(row["difference"] for row in rows),
    }
    for row in rows:
        figures["nl.forward.peer" if row["dtype"] == "bf16" else "nl.forward.peer.fp32"] = row["nl.forward.peer"]
    return figures


def show(rows: Sequence[dict[str, Any]], rivals: Sequence[dict[str, Any]], figures: dict[str, float]) -> None:
    """Print the cases and the figures with their goals."""
    case = ("stage", "batch", "layout", "dtype")
    ratios = ("forward.floor", "train.floor", "forward.port", "train.port")
    console.table(
        [[row[name] for name in case] + [f"{row[name]:.2f}" for name in ratios] for row in rows],
        columns=[*case, "forward / floor", "train / floor", "port / ours forward", "port / ours train"],
        title="GC block",
    )
    rivalry = ("nl.forward.peer", "gc.train.own_nl", "gc.train.peer_nl")
    console.say()
    if rivals:
        console.table(
            [[row[name] for name in case] + [f"{row[name]:.1f}" for name in rivalry] for row in rivals],
            columns=[*case, "peer NL / our NL forward", "our NL / GC train", "peer NL / GC train"],
            title="Non-local blocks",
        )
        console.say()
    console.table(
        [[name, f"{value:.3g}", GOALS.get(name, "")] for name, value in figures.items()],
        columns=["figure", "measured", "goal"],
    )
    if not has_bf16_units(torch.device("cpu")):
        speedup = figures["machine.bf16_speedup"]
        console.say(
            f"This CPU has no matrix units for bf16, in which products run at {speedup:.2f} times the speed of fp32. "
            "Without them torch's fused attention takes longer in bf16 than plain products do, so that nl.forward.peer "
            "and gc.train.own_nl say little about machines that have them."
        )
