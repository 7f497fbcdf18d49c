"""Batch norms in training: shared between processes, measured precisely, split into sub-batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gcvideo import distributed
from gcvideo.errors import ConfigError


def share_batch_norms(network: nn.Module, processes: int, device: torch.device) -> nn.Module:
    """Let the batch norms of a number of processes measure their batches together (SyncBN).

    Args:
        network: whose batch norms are replaced.
        processes: in each group that shares its statistics; 1 leaves every process its own, 0 joins all of them.
        device: of the network.

    Raises:
        ConfigError: the processes do not divide into such groups, or there is no GPU, which torch needs for this.
    """
    world = distributed.world_size()
    size = processes or world
    if size == 1 or world == 1:
        return network
    if world % size:
        raise ConfigError(f"train.sync_batch_norm: {world} processes do not divide into groups of {size}")
    if device.type != "cuda":
        raise ConfigError("train.sync_batch_norm: torch shares batch norms between GPUs only; set it to 1 on a CPU")
    group, _ = torch.distributed.new_subgroups(group_size=size)
    return nn.SyncBatchNorm.convert_sync_batchnorm(network, process_group=group)


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
    network.eval()
    for norm in norms:
        norm.train()
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
        # fvcore put new tensors in place; others hold on to the old ones.
        norm.running_mean, norm.running_var = mean.copy_(pooled), var.copy_(squares - pooled.square())


def _is_trained(norm: nn.Module) -> bool:
    return all(parameter.requires_grad for parameter in norm.parameters())
