"""Where a network looks: the attention of its context blocks and Grad-CAM, as maps over time and space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo.errors import ConfigError
from gcvideo.layers.trace import record_attention


def attention_maps(
    model: nn.Module, clips: Tensor, *, query: tuple[float, float, float] = (0.5, 0.5, 0.5)
) -> dict[str, Tensor]:
    """What each context or non-local block attends to.

    A block that pools by attention has one map, shared by all queries (GCNet, section 3.1). A non-local block has one
    for each query position; ``query`` chooses it. Blocks that pool by average attend to nothing and are left out.

    Args:
        model: not compiled.
        clips: (N, 3, T, H, W), as the model takes them.
        query: of non-local blocks, as fractions of time, height and width: (0.5, 0.5, 0.5) is the middle of the clip.

    Returns:
        block name -> (N, T', H', W') float32 at the block's own resolution; in order of execution. Softmax attention
        sums to 1 over all positions. The dot product's is as it is, and may be negative.
    """
    if not all(0 <= fraction <= 1 for fraction in query):
        raise ConfigError(f"a query is a place in the clip, three fractions in [0, 1], not {query}")
    with torch.no_grad(), record_attention(model) as traces:
        model(clips)
    maps = {}
    for name, trace in traces.items():
        if trace.attention is not None:
            attention = trace.attention.float()  # (N, 1 or queries, T', H', W')
            maps[name] = attention[:, 0 if attention.shape[1] == 1 else _position(query, trace.input.shape[2:])]
    return maps


def _position(query: Sequence[float], size: Sequence[int]) -> int:
    """Index of a query among T * H * W positions, row by row."""
    t, h, w = (min(int(fraction * length), length - 1) for fraction, length in zip(query, size, strict=True))
    return (t * size[1] + h) * size[2] + w


def grad_cam(model: nn.Module, clips: Tensor, target: int | Tensor, *, layer: nn.Module) -> Tensor:
    """Which positions speak for a class: Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) over time and space.

    A channel's weight is the gradient of the class's logit, averaged over T, H and W; the map is the positive part of
    the weighted sum of the channels.

    Args:
        model: in evaluation mode.
        clips: (N, 3, T, H, W).
        target: class of all clips, or of each (N,).
        layer: whose output (N, C, T', H', W') is looked at, usually the last stage, ``model.res5``.

    Returns:
        (N, T', H', W') float32, at least 0, in the units of logit x activation.
    """
    with torch.enable_grad(), _output_of(layer) as outputs:
        # Grad-CAM needs no gradient of the weights: a leaf for the input alone starts the graph.
        logits = model(clips.detach().requires_grad_())
        chosen = torch.as_tensor(target, device=logits.device).expand(len(clips))
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), outputs[-1])
    weights = gradient.float().mean(dim=(2, 3, 4), keepdim=True)  # (N, C, 1, 1, 1)
    return (weights * outputs[-1].detach().float()).sum(dim=1).relu()


@contextmanager
def _output_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def resize_maps(maps: Tensor, size: tuple[int, int, int], *, scale: Literal["max", "none"] = "max") -> Tensor:
    """Maps (N, T', H', W') brought to the clip's (T, H, W) by trilinear interpolation.

    Args:
        scale: ``max`` stretches each to [0, 1], its lowest value to 0 and its highest to 1; a constant map becomes 0.
    """
    resized = F.interpolate(maps[:, None].float(), size=size, mode="trilinear", align_corners=False)[:, 0]
    if scale == "none":
        return resized
    low, high = resized.amin(dim=(1, 2, 3), keepdim=True), resized.amax(dim=(1, 2, 3), keepdim=True)
    return (resized - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
