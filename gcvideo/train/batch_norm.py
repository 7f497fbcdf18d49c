"""Batch norms in training: synchronized between processes, measured precisely, or split into sub-batches."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gcvideo import distributed
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
    if world % size or device.type == "cpu":
        raise ConfigError(
            f"train.sync_batch_norm: needs GPUs in groups of {size}; here are {world} processes on {device.type}"
        )
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

    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and all(p.requires_grad for p in module.parameters())
    ]
    modes = {module: module.training for module in network.modules()}
    buffers = [(norm.get_buffer("running_mean"), norm.get_buffer("running_var")) for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
    split_batch_norms(network, 1)  # with several parts, each would overwrite the statistics of the one before
    update_bn_stats(network, batches, count)
    for module, mode in modes.items():
        module.training = mode
    for norm, (mean, var) in zip(norms, buffers, strict=True):
        own_mean, own_var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        pooled = distributed.all_reduce(own_mean.clone(), "mean")
        # Variances within and between the processes: E[x^2] - E[x]^2.
        squares = distributed.all_reduce(own_var + own_mean.square(), "mean")
        # fvcore put new tensors in place; the original ones are referenced elsewhere.
        norm.running_mean, norm.running_var = mean.copy_(pooled), var.copy_(squares - pooled.square())
