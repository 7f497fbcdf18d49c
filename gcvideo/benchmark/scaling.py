"""Scaling of one block with the length and the size of the clip: GC grows linearly, NL with the square.

Measured: milliseconds of a forward pass of one block alone, at equal channels and on the same clips, alternating; on a
CPU the CPU time of one thread. The exponent b of time ~ P^b, with P = T x H x W positions, is the slope of the
least-squares line through the logarithms of the larger clips, those with at least an eighth of the most positions:
small clips mostly cost the same few calls. Bound: 1 for GC and 2 for NL, from their multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from gcvideo import console
from gcvideo.analysis.complexity import count
from gcvideo.benchmark.timing import quartiles, time_contenders
from gcvideo.benchmark.workloads import block_forward
from gcvideo.layers import NonLocalBlock, gc_block

# Name -> builder from channels: the default non-local block of the configs, and one without sub-sampled keys, which
# shows the quadratic law more clearly.
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "GC": gc_block,
    "NL": NonLocalBlock,
    "NL, all keys": lambda channels: NonLocalBlock(channels, subsample="none"),
}
FITTED_SHARE = 1 / 8


def measure_scaling(
    *, channels: int, shapes: Sequence[tuple[int, int, int]], rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Forward time and multiply-adds of each block over clips of growing size.

    Args:
        channels: C of the blocks.
        shapes: (T, H, W) of the features.
        rounds: that count, for each shape.
        device: to compute on.

    Returns:
        block -> ``points``: a list of {"shape", "positions", "ms" (median and quartiles), "macs"}; ``time_exponent``
        and ``macs_exponent``, None where fewer than two sizes can be fitted.
    """
    blocks = {name: make(channels).to(device).eval() for name, make in BLOCKS.items()}
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in blocks}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with console.Progress("block scaling", total=len(shapes), unit="sizes") as progress:
        for shape in shapes:
            x = torch.randn(1, channels, *shape, device=device).relu()
            contenders = {name: block_forward(block, x) for name, block in blocks.items()}
            for name, seconds in time_contenders(contenders, rounds=rounds, device=device).seconds.items():
                points[name].append(
                    {
                        "shape": list(shape),
                        "positions": math.prod(shape),
                        "ms": quartiles([1000 * second for second in seconds]),
                        "macs": count(blocks[name], (1, channels, *shape)).macs,
                    }
                )
            progress.advance()
    torch.set_num_threads(threads)
    return {
        name: {
            "points": line,
            "time_exponent": fit_exponent([p["positions"] for p in line], [p["ms"]["median"] for p in line]),
            "macs_exponent": fit_exponent([p["positions"] for p in line], [p["macs"] for p in line]),
        }
        for name, line in points.items()
    }


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """b of cost ~ size^b, over the sizes of at least ``FITTED_SHARE`` of the largest; None for fewer than two sizes."""
    size, cost = np.asarray(sizes, float), np.asarray(costs, float)
    kept = size >= FITTED_SHARE * size.max()
    if len(set(size[kept])) < 2:
        return None
    return float(np.polyfit(np.log(size[kept]), np.log(cost[kept]), 1)[0])
