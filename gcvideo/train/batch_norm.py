"""Batch norms in training: shared between processes, measured precisely, split into sub-batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo import distributed
from gcvideo.errors import ConfigError
from gcvideo.train.multigrid import SubBatchNorm3d


def share_batch_norms(network: nn.Module, processes: int, device: torch.device) -> nn.Module:
    """Let the batch norms of a number of processes measure their batches together (SyncBN).

    Args:
        network: whose batch norms are replaced; parameters and buffers stay the same tensors.
        processes: in each group that shares its statistics; 1 leaves every process its own, 0 joins all of them.
        device: of the network.

    Raises:
        ConfigError: the processes do not divide into such groups.
    """
    world = distributed.world_size()
    size = processes or world
    if size == 1:
        return network
    if world % size:
        raise ConfigError(f"train.sync_batch_norm: {world} processes do not divide into groups of {size}")
    group, _ = torch.distributed.new_subgroups(group_size=size)
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network, process_group=group)
    for module in network.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = SharedBatchNorm3d  # same parameters and buffers, another forward
            vars(module)["group"] = group
    return network


class SharedBatchNorm3d(nn.BatchNorm3d):
    """What ``nn.SyncBatchNorm`` does, on a CPU, where torch has no kernels for it.

    Every process of ``group`` brings as many clips of the same shape. Parameters, buffers and evaluation are those of
    ``nn.BatchNorm3d``.
    """

    group: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, T, H, W)."""
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        size = torch.distributed.get_world_size(self.group)
        wide = x.float()
        mean = _Sum.apply(wide.mean((0, 2, 3, 4)), self.group) / size  # (C,)
        centred = wide - mean.view(1, -1, 1, 1, 1)
        var = _Sum.apply(centred.square().mean((0, 2, 3, 4)), self.group) / size
        with torch.no_grad():
            count = size * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = (var + self.eps).rsqrt() * self.weight
        return (centred * scale.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes of a group; what depends on it in any of them counts in its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None


def make_precise(network: nn.Module, batches: Iterable[Tensor], count: int) -> None:
    """Measure the statistics of all batch norms anew, over ``count`` batches and with the weights held still.

    The running averages of training lag behind weights that change (Wu and Johnson 2021, "Rethinking 'Batch' in
    BatchNorm", section 3). Every process measures its own batches; the results are pooled, so all end with the same.

    Args:
        network: in any mode, which is restored. Only batch norms measure: dropout and drop-path are off meanwhile, and
            frozen batch norms keep what they have.
        batches: clips (N, C, T, H, W) as the network takes them.
        count: of batches, at least 1.
    """
    from fvcore.nn.precise_bn import update_bn_stats

    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and _is_trained(m)]
    if not norms:
        return
    modes = {module: module.training for module in network.modules()}
    buffers = [(norm.running_mean, norm.running_var) for norm in norms]
    splits = {norm: norm.splits for norm in norms if isinstance(norm, SubBatchNorm3d)}
    network.eval()
    for norm in norms:
        norm.train()
    for norm in splits:
        norm.splits = 1  # of several parts each would overwrite what the one before has measured
    try:
        update_bn_stats(network, batches, count)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, parts in splits.items():
            norm.splits = parts
    for norm, (mean, var) in zip(norms, buffers, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        pooled = distributed.all_reduce(norm.running_mean.clone(), "mean")
        # Variances within and between the processes: E[x^2] - E[x]^2.
        squares = distributed.all_reduce(norm.running_var + norm.running_mean.square(), "mean")
        assert mean is not None
        assert var is not None
        # fvcore put new tensors in place; others hold on to the old ones.
        norm.running_mean, norm.running_var = mean.copy_(pooled), var.copy_(squares - pooled.square())


def _is_trained(norm: nn.Module) -> bool:
    return all(parameter.requires_grad for parameter in norm.parameters())
