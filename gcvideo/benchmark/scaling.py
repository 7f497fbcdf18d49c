"""How the cost of one block grows with the length and the size of the clip: GC in a straight line, NL with the square.

Blocks are measured alone, at equal channels and on the same clips, alternating. The exponent b of time ~ P^b, with P
the number of positions T x H x W, is the slope of the least-squares line through the logarithms of the larger clips,
those with at least an eighth of the most positions: small ones cost mostly the same few calls, whatever their size.
On a CPU the time is that of one thread, in CPU seconds: waiting would hit long runs more often than short ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from gcvideo.analysis.complexity import count
from gcvideo.benchmark.timing import alternate, pick_clock, spread
from gcvideo.layers import NonLocalBlock, gc_block

# Name -> builder from channels. The rival is the default non-local block of the configs and, for the law alone, the
# same without sub-sampled keys.
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "GC": gc_block,
    "NL": NonLocalBlock,
    "NL, all keys": lambda channels: NonLocalBlock(channels, subsample="none"),
}
FITTED_SHARE = 1 / 8


def measure_scaling(
    *,
    channels: int,
    shapes: Sequence[tuple[int, int, int]],
    rounds: int,
    device: torch.device,
    on_shape: Callable[[], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Forward time and multiply-adds of each block over clips of growing size.

    Args:
        channels: C of the blocks.
        shapes: (T, H, W) of the features.

    Returns:
        block -> ``points``: a list of {"shape", "positions", "ms" (median and quartiles), "macs"}; ``time_exponent``
        and ``macs_exponent``, None where fewer than two sizes can be fitted.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        points = _measure(channels, shapes, rounds, device, on_shape)
    finally:
        torch.set_num_threads(threads)
    return {
        name: {
            "points": line,
            "time_exponent": fit_exponent([p["positions"] for p in line], [p["ms"]["median"] for p in line]),
            "macs_exponent": fit_exponent([p["positions"] for p in line], [p["macs"] for p in line]),
        }
        for name, line in points.items()
    }


def _measure(
    channels: int,
    shapes: Sequence[tuple[int, int, int]],
    rounds: int,
    device: torch.device,
    on_shape: Callable[[], None] | None,
) -> dict[str, list[dict[str, Any]]]:
    """The points of each block."""
    blocks = {name: make(channels).to(device).eval() for name, make in BLOCKS.items()}
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in blocks}
    for shape in shapes:
        x = torch.randn(1, channels, *shape, device=device).relu()

        def forward(block: nn.Module, x: torch.Tensor = x) -> object:
            with torch.no_grad():
                return block(x)

        actions = {name: lambda block=block, run=forward: run(block) for name, block in blocks.items()}
        seconds = alternate(actions, rounds=rounds, device=device, clock=pick_clock(device))
        for name, block in blocks.items():
            points[name].append(
                {
                    "shape": list(shape),
                    "positions": math.prod(shape),
                    "ms": spread([1000 * second for second in seconds[name]]),
                    "macs": count(block, (1, channels, *shape)).macs,
                }
            )
        if on_shape is not None:
            on_shape()
    return points


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """b of cost ~ size^b, over the sizes of at least ``FITTED_SHARE`` of the largest."""
    size, cost = np.asarray(sizes, float), np.asarray(costs, float)
    kept = size >= FITTED_SHARE * size.max()
    if len(set(size[kept])) < 2:
        return None
    return float(np.polyfit(np.log(size[kept]), np.log(cost[kept]), 1)[0])
