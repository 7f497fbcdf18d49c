"""Batch norms in training: synchronized between processes, measured precisely, or split into sub-batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gcvideo import distributed
from gcvideo.device import input_sizes
from gcvideo.errors import ConfigError


def synchronize_batch_norms(network: nn.Module, processes: int, device: torch.device) -> nn.Module:
    """Let groups of processes compute batch norm statistics over all their clips (``nn.SyncBatchNorm``).

    Args:
        network: whose batch norms are replaced; parameters and buffers stay the same tensors.
        processes: in each group that shares its statistics; 1: each process its own, 0: all processes together.
        device: of the network.

    Raises:
        ConfigError: the processes do not divide into such groups, or they compute on CPUs, for which torch has no
            synchronized batch norm.
    """
    world = distributed.world_size()
    size = processes or world
    if size == 1:
        return network
    if world % size:
        raise ConfigError(f"train.sync_batch_norm: {world} processes do not divide into groups of {size}")
    if device.type == "cpu":
        raise ConfigError("train.sync_batch_norm: needs GPUs, as nn.SyncBatchNorm does; set it to 1 on CPUs")
    group, _ = torch.distributed.new_subgroups(group_size=size)
    return nn.SyncBatchNorm.convert_sync_batchnorm(network, process_group=group)


class SubBatchNorm3d(nn.BatchNorm3d):
    """Batch norm over equal parts of a batch, each normalised as if it were a batch of its own.

    Parameters, buffers and evaluation are those of ``nn.BatchNorm3d``. ``splits`` is the number of parts.
    """

    splits = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, T, H, W); in training N must be a multiple of ``splits``."""
        if not self.training or self.splits == 1:
            return super().forward(x)
        return torch.cat([super(SubBatchNorm3d, self).forward(part) for part in x.chunk(self.splits)])


def split_batch_norms(network: nn.Module, splits: int) -> None:
    """Make every batch norm normalise so many parts of each batch separately."""
    for module in network.modules():
        if splits > 1 and type(module) is nn.BatchNorm3d:
            module.__class__ = SubBatchNorm3d  # same parameters and buffers, another forward
        if isinstance(module, SubBatchNorm3d):
            module.splits = splits


def require_batch_statistics(network: nn.Module, *, clips: int, frames: int, crop: int) -> None:
    """Check that every batch norm sees more than one value per channel, without which it has no variance.

    Args:
        network: takes clips (N, 3, T, H, W); it is not changed.
        clips: N of the smallest batch.
        frames: T of the smallest clip.
        crop: H and W of the smallest clip.

    Raises:
        ConfigError: a batch norm would see a single value.
    """
    for name, module, (_, _, *size) in input_sizes(network, (1, 3, frames, crop, crop)):
        if isinstance(module, nn.BatchNorm3d) and clips * math.prod(size) == 1:
            raise ConfigError(
                f"train.batch_size: batch norm {name} would see one value per channel of {clips} clip of {frames} x "
                f"{crop} x {crop} and cannot be trained; give more clips per process and micro-batch, or larger clips "
                "(data.frames, data.crop)"
            )


def measure_batch_norms(network: nn.Module, batches: Iterable[Tensor], count: int) -> None:
    """Precise batch norm: compute the statistics of all batch norms again, with fixed weights.

    The running averages of training lag behind weights that change (Wu and Johnson 2021, "Rethinking 'Batch' in
    BatchNorm", section 3). Every process measures its own batches; the results are pooled, so all processes end with
    the same statistics.

    Args:
        network: in any mode, which is restored. Dropout and drop-path are off meanwhile, and frozen batch norms keep
            their statistics. Batch norms no longer split their batches.
        batches: clips (N, C, T, H, W) as the network takes them.
        count: number of batches to use, at least 1.
    """
    from fvcore.nn.precise_bn import update_bn_stats

    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and _is_trained(m)]
    if not norms:
        return
    modes = {module: module.training for module in network.modules()}
    buffers = [(norm.running_mean, norm.running_var) for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
    split_batch_norms(network, 1)  # with several parts, each would overwrite the statistics of the one before
    try:
        update_bn_stats(network, batches, count)
    finally:
        for module, mode in modes.items():
            module.training = mode
    for norm, (mean, var) in zip(norms, buffers, strict=True):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        pooled = distributed.all_reduce(norm.running_mean.clone(), "mean")
        # Variances within and between the processes: E[x^2] - E[x]^2.
        squares = distributed.all_reduce(norm.running_var + norm.running_mean.square(), "mean")
        assert mean is not None
        assert var is not None
        # fvcore put new tensors in place; the original ones are referenced elsewhere.
        norm.running_mean, norm.running_var = mean.copy_(pooled), var.copy_(squares - pooled.square())


def _is_trained(norm: nn.Module) -> bool:
    return all(parameter.requires_grad for parameter in norm.parameters())
