"""Optimizer, its parameter groups and state, frozen parts, and the learning rate as a function of time."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from gcvideo.config import OptimConfig, import_object
from gcvideo.errors import ConfigError

ALL_BUT_HEAD = "backbone"


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD, AdamW, or the optimizer of a dotted path, over the parameters that are not frozen.

    A class ``my_optim:Lion`` is called as ``Lion(groups, lr=optim.lr)``; the groups hold ``weight_decay``.
    """
    groups = parameter_groups((p for p in model.parameters() if p.requires_grad), optim)
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, fused=optim.fused)
    if optim.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=optim.fused)
    own: torch.optim.Optimizer = import_object(optim.optimizer, key="optim.optimizer")(groups, lr=optim.lr)
    return own


def parameter_groups(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups: weights, which decay, and scales, shifts and biases, all of which have one dimension.

    Without ``optim.decay_norm_and_bias`` the latter do not decay (He et al. 2019, "Bag of tricks", section 3.1).
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        groups[parameter.ndim > 1 or optim.decay_norm_and_bias].append(parameter)
    return [{"params": group, "weight_decay": decays * optim.weight_decay} for decays, group in groups.items() if group]


def learning_rate(optim: OptimConfig, *, epoch: float, epochs: float, batch_size: int) -> float:
    """Learning rate at a time of training, without the factor of multigrid training.

    The warm-up rises in a straight line from ``warmup_start_lr`` to the value that the schedule has where the warm-up
    ends, as in PySlowFast's ``lr_policy.get_lr_at_epoch``.

    Args:
        epoch: time in epochs, with fractions: the learning rate changes at every step.
        epochs: length of the training.
        batch_size: clips a step; with ``lr_for_batch`` the rate grows in proportion to it (Goyal et al. 2017).
    """
    peak = optim.lr if optim.lr_for_batch is None else optim.lr * batch_size / optim.lr_for_batch
    if epoch >= optim.warmup_epochs:
        return peak * schedule(optim, epoch / epochs, epoch)
    reached = peak * schedule(optim, optim.warmup_epochs / epochs, optim.warmup_epochs)
    start = min(optim.warmup_start_lr, peak)
    return start + (reached - start) * epoch / optim.warmup_epochs


def schedule(optim: OptimConfig, progress: float, epoch: float) -> float:
    """Factor on the highest learning rate after a share of the training.

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


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer, with its buffers in the memory layout of the parameters, which fused kernels rely on.

    Weight decay, momentum and other settings stay those of ``optimizer``.

    Raises:
        ValueError: the state belongs to an optimizer of other parameters.
    """
    groups = zip(optimizer.param_groups, state["param_groups"], strict=True)
    kept = [{**group, "params": before["params"]} for group, before in groups]
    optimizer.load_state_dict({**state, "param_groups": kept})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Exclude parts of a network from training.

    Args:
        network: a 3D ResNet.
        names: its modules ("stem", "res2", "res3.0"), or "backbone" for everything but the head.

    Raises:
        ConfigError: there is no such part, or no parameter is left to train.
    """
    for part in frozen_parts(network, names):
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("train.freeze: leaves no parameter to train; keep at least the head")


def frozen_parts(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules that ``freeze`` excludes.

    After ``network.train()`` they are to be put back into evaluation: their batch norms then keep their statistics and
    their drop-path is off.
    """
    children, modules = dict(network.named_children()), dict(network.named_modules())
    parts = []
    for name in names:
        if name == ALL_BUT_HEAD:
            parts += [child for child_name, child in children.items() if child_name != "head"]
        elif name in modules and name:
            parts.append(modules[name])
        else:
            raise ConfigError(
                f"train.freeze: no part {name!r}; there are {ALL_BUT_HEAD} (all but the head), {', '.join(children)}"
            )
    return parts
