"""Workloads to time: random clips, forward passes and training steps of networks and of single blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gcvideo.benchmark.timing import Contender
from gcvideo.config import RunConfig
from gcvideo.data.crops import normalize
from gcvideo.data.loader import ClipBatch
from gcvideo.device import pick_precision
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.models import build_model
from gcvideo.train.step import Learner

# Learning rate of steps that are timed: so low that no network overfits the one batch, and the gradients of the last
# step have the size of those of the first.
STEADY_LR = 1e-6
M = TypeVar("M", bound=nn.Module)


def random_clips(shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Noise: uint8 of ``shape`` (N, 3, T, H, W), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, tuple(shape), dtype=torch.uint8, generator=generator).to(device)


def forward_pass(
    config: RunConfig, clips: Tensor, *, device: torch.device, precision: str, compile: bool = False
) -> Contender:
    """One forward pass as a test runs it, from uint8 clips to logits, with fresh weights.

    Args:
        config: its network and normalisation.
        clips: uint8 (N, 3, T, H, W).
        precision: "fp32", "bf16" (weights and activations), or "auto".
        compile: with ``torch.compile``.
    """
    network = without_zeros(build_model(config.model)).to(device)
    model = optimize_for_inference(network, precision=pick_precision(precision, device), compile=compile)
    dtype = next(model.parameters()).dtype
    clips = clips.to(device)

    @torch.no_grad()
    def forward() -> Tensor:
        return model(normalize(clips, mean=config.data.mean, std=config.data.std, dtype=dtype))

    return forward


def training_step(
    config: RunConfig, clips: Tensor, *, device: torch.device, precision: str, compile: bool = False
) -> Contender:
    """One step of the trainer itself, from uint8 clips to updated weights, with fresh weights.

    Args:
        config: what to train, and how; batch size, frames and crop follow the clips.
        clips: uint8 (N, 3, T, H, W).
        precision: "fp32", "bf16" (under autocast), or "auto".
        compile: with ``torch.compile``.
    """
    changes: dict[str, Any] = {"batch_size": len(clips), "accumulate": 1, "precision": precision, "compile": compile}
    data = replace(config.data, frames=clips.shape[2], crop=clips.shape[-1])
    model = replace(config.model, weights=None)
    learner = Learner(replace(config, data=data, train=replace(config.train, **changes), model=model), device)
    learner.train()
    labels = labels_for(clips, classes=model.num_classes).to(device)
    batch = ClipBatch(clips.to(device), labels, torch.arange(len(clips)), [])
    return lambda: learner.step(iter([batch]), number=0, lr=STEADY_LR)


def labels_for(clips: Tensor, *, classes: int) -> Tensor:
    """int64 (N,): the classes in turn."""
    return torch.arange(len(clips)) % classes


def without_zeros(module: M, *, std: float = 0.1) -> M:
    """Give layers that start at zero random weights, in place, so that no product is trivially zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


def block_forward(block: nn.Module, *inputs: Tensor) -> Contender:
    """One forward pass of a block without gradients."""

    @torch.no_grad()
    def forward() -> Tensor:
        return block(*inputs)

    return forward


def block_training(block: nn.Module, x: Tensor, *others: Tensor, dy: Tensor) -> Contender:
    """Forward and backward pass of a block.

    Args:
        x: first input, with a gradient; ``others`` have none.
        dy: gradient of the output.
    """
    leaf = x.detach().requires_grad_()

    def train() -> None:
        leaf.grad = None
        block.zero_grad(set_to_none=True)
        block(leaf, *others).backward(dy)

    return train
