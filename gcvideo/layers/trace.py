"""Attention of blocks, recorded in the forward pass that computes their output."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn


class BlockTrace(NamedTuple):
    """Trace of one forward pass through a context or non-local block.

    Attributes:
        input: x (N, C, T, H, W).
        attention: weights over the positions attended to. (N, 1, T, H, W) for attention pooling, one map for all
            queries; (N, T * H * W, T, H', W') for the non-local block, a map for each query; None for average pooling.
        context: the gathered features. (N, C) pooled; (N, d, T, H, W) in a non-local block.
        output: the term that is fused with x. (N, C), the gate itself where the fusion only scales; (N, C, T, H, W)
            in a non-local block.
    """

    input: Tensor
    attention: Tensor | None
    context: Tensor
    output: Tensor


class TracedBlock(nn.Module):
    """Base class of blocks whose ``forward(x, return_attention=True)`` returns ``(y, BlockTrace)`` instead of y.

    An own block that is one has its attention shown and analysed as well.
    """


def check_choice(name: str, choice: str, known: Collection[str]) -> None:
    """Refuse an unknown choice of a block's argument with a ``ValueError``."""
    if choice not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {choice!r}")


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, BlockTrace]]:
    """Traces of every context and non-local block, collected while the model runs as usual.

    Usage::

        with record_attention(model) as traces:
            logits = model(clips)
        traces["res4.1.context"].attention

    Args:
        model: any module with such blocks inside; it must not be compiled.

    Yields:
        block name -> trace of its latest forward pass, in the order of execution.
    """
    traces: dict[str, BlockTrace] = {}
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, TracedBlock)}

    def forward(name: str, block: TracedBlock, x: Tensor) -> Tensor:
        y, traces[name] = type(block).forward(block, x, return_attention=True)
        return y

    for name, block in blocks.items():
        block.forward = partial(forward, name, block)
    try:
        yield traces
    finally:
        for block in blocks.values():
            del block.forward
