"""The optimizer, and the learning rate as a pure function of the time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gcvideo.config import OptimConfig
from gcvideo.errors import ConfigError


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that are not frozen."""
    groups = parameter_groups(model.named_parameters(), optim)
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, fused=optim.fused)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=optim.fused)


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig) -> list[dict[str, Any]]:
    """Weights, which decay, and the rest: scales, shifts and biases, all of which have one dimension.

    Without ``optim.decay_norm_and_bias`` the rest does not decay (He et al. 2019, "Bag of tricks", section 3.1).
    """
    trained = [parameter for _, parameter in parameters if parameter.requires_grad]
    if optim.decay_norm_and_bias:
        return [{"params": trained, "weight_decay": optim.weight_decay}]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    rest = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": optim.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(optim: OptimConfig, *, epoch: float, epochs: float, batch_size: int) -> float:
    """The learning rate at a time of training.

    The warm-up rises in a straight line from ``warmup_start_lr`` to the value that the schedule has where the warm-up
    ends, as in PySlowFast's ``lr_policy.get_lr_at_epoch``.

    Args:
        epoch: time in epochs, with fractions: the learning rate changes at every step.
        epochs: length of the training.
        batch_size: clips a step; with ``lr_for_batch`` the rate grows in proportion to it (Goyal et al. 2017).
    """
    peak = peak_rate(optim, batch_size=batch_size)
    if epoch >= optim.warmup_epochs:
        return peak * schedule(optim, epoch / epochs, epoch)
    reached = peak * schedule(optim, optim.warmup_epochs / epochs, optim.warmup_epochs)
    return optim.warmup_start_lr + (reached - optim.warmup_start_lr) * epoch / optim.warmup_epochs


def peak_rate(optim: OptimConfig, *, batch_size: int) -> float:
    """The learning rate that the schedule starts from, for so many clips a step."""
    return optim.lr if optim.lr_for_batch is None else optim.lr * batch_size / optim.lr_for_batch


def check_warm_up(optim: OptimConfig, *, batch_size: int) -> None:
    """Where a training starts, not where a config is read: what was trained before can still be tested.

    Raises:
        ConfigError: the warm-up would start above the rate that it leads to.
    """
    peak = peak_rate(optim, batch_size=batch_size)
    if optim.warmup_epochs > 0 and optim.warmup_start_lr > peak:
        scaled = "" if optim.lr_for_batch is None else " after its scaling by optim.lr_for_batch"
        raise ConfigError(
            f"optim.warmup_start_lr: {optim.warmup_start_lr:g} is above optim.lr ({peak:g}{scaled}), so the warm-up "
            f"would fall; set it lower, for example optim.warmup_start_lr={peak / 10:g}, or optim.warmup_epochs=0"
        )


def schedule(optim: OptimConfig, progress: float, epoch: float) -> float:
    """The share of the peak learning rate that is left after a share of the training.

    ``cosine`` is the half period of Loshchilov and Hutter 2017 without restarts; ``linear`` falls to zero in a
    straight line; ``step`` multiplies by ``gamma`` at every milestone passed.
    """
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if optim.schedule == "linear":
        return 1 - progress
    if optim.schedule == "step":
        return optim.gamma ** sum(epoch >= milestone for milestone in optim.milestones)
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of parameters the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
