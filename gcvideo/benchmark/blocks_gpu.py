"""The GC block on a GPU, eager and through ``torch.compile``, beside what its passes over memory cost on paper.

The block is measured as a residual stage uses it, y = ReLU(GC(x) + shortcut), because fusing these is where compiling
pays. Time on paper is passes x bytes of x / bandwidth, a pass being one tensor of the size of x read or written:

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

Launches, which weigh on small clips, are left out on paper and are in what is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo import console
from gcvideo.benchmark.timing import alternate
from gcvideo.layers import ContextBlock

PASSES = {"forward": {"eager": 9, "compiled": 5}, "train": {"eager": 9 + 10, "compiled": 5 + 8}}
PAPER_BANDWIDTH = 3.0e12  # bytes a second, of an H100 with HBM3: 90 % of its data sheet's 3.35 TB/s
CALLS = 20  # in one timing, so that waiting for the device weighs little


class ResidualBlock(nn.Module):
    """y = ReLU(GC(x) + shortcut)."""

    def __init__(self, block: ContextBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """(N, C, T, H, W) twice -> the same shape."""
        return torch.relu(self.block(x) + shortcut)


def measure_gpu(
    block: ContextBlock, x: Tensor, dy: Tensor, *, rounds: int, backend: str = "inductor", calls: int = CALLS
) -> dict[str, Any]:
    """Microseconds of one call, measured and on paper.

    Args:
        block: in the number format of x, on its device, with weights that are not zero.
        x: (N, C, T, H, W); the shortcut has its shape and layout.
        dy: gradient of y, like x.
        backend: of ``torch.compile``.
        calls: in each timing.

    Returns:
        "us" and "paper_us": "forward" and "train" -> "eager" and "compiled" -> microseconds; "compiled_speedup":
        "forward" and "train" -> eager over compiled, of the same round; "bandwidth": bytes a second of ``x.clone()``.
    """
    torch.compiler.reset()  # its limit of compilations counts those of other cases too
    shortcut = torch.randn_like(x)
    eager = ResidualBlock(block)
    compiled: Any = torch.compile(eager, backend=backend, fullgraph=True)
    forms: dict[str, nn.Module] = {"eager": eager, "compiled": compiled}
    actions = {("forward", name): _repeat(_forward(form, x, shortcut), calls) for name, form in forms.items()}
    actions |= {("train", name): _repeat(_train(form, x, shortcut, dy), calls) for name, form in forms.items()}
    named = {"/".join(key): action for key, action in actions.items()}
    seconds = alternate({**named, "clone": _repeat(lambda: x.clone(), calls)}, rounds=rounds, device=x.device, warmup=2)
    size = x.numel() * x.element_size()
    us = {name: 1e6 * statistics.median(values) / calls for name, values in seconds.items()}
    return {
        "us": {what: {form: us[f"{what}/{form}"] for form in forms} for what in PASSES},
        "paper_us": {
            what: {form: 1e6 * count * size / PAPER_BANDWIDTH for form, count in counts.items()}
            for what, counts in PASSES.items()
        },
        "compiled_speedup": {
            what: statistics.median(
                a / b for a, b in zip(seconds[f"{what}/eager"], seconds[f"{what}/compiled"], strict=True)
            )
            for what in PASSES
        },
        "bandwidth": 2 * size / (us["clone"] / 1e6),
    }


def _repeat(action: Callable[[], object], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            action()

    return run


def _forward(block: nn.Module, x: Tensor, shortcut: Tensor) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            block(x, shortcut)

    return forward


def _train(block: nn.Module, x: Tensor, shortcut: Tensor, dy: Tensor) -> Callable[[], None]:
    # The shortcut's gradient is that of the sum, handed on as it is; only a leaf would have it copied.
    leaf = x.detach().requires_grad_()

    def train() -> None:
        leaf.grad = None
        block.zero_grad(set_to_none=True)
        block(leaf, shortcut).backward(dy)

    return train


def show_gpu(rows: Sequence[dict[str, Any]]) -> None:
    """Measured microseconds beside those on paper."""
    case = ("stage", "batch", "layout", "dtype")
    cells = []
    for row in rows:
        times = [
            f"{row['us'][what][form]:.0f} / {row['paper_us'][what][form]:.0f}"
            for what, forms in PASSES.items()
            for form in forms
        ]
        cells.append([*(row[name] for name in case), *times, f"{row['bandwidth'] / 1e12:.2f}"])
    titles = [f"{what}, {form}" for what, forms in PASSES.items() for form in forms]
    console.table(
        cells,
        columns=[*case, *titles, "copy, TB/s"],
        title=f"ReLU(GC(x) + shortcut), us: measured / on paper at {PAPER_BANDWIDTH / 1e12:.1f} TB/s",
    )
