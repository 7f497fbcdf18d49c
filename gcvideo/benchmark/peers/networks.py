"""Other toolkits' networks and blocks: GCNet's block, pytorchvideo's non-local block and its Slow-R50 in use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo.benchmark.peers.loaders import MEAN, STD, all_views, per_view_video
from gcvideo.benchmark.timing import Contender
from gcvideo.benchmark.workloads import STEADY_LR
from gcvideo.config import TestConfig
from gcvideo.layers import ContextBlock, NonLocalBlock


def slow_r50(frames: int, crop: int) -> nn.Module:
    """The network of pytorchvideo's ``create_resnet``; its head pools a fixed number of positions.

    Args:
        frames: T of the clips.
        crop: H and W of the clips.
    """
    from pytorchvideo.models.resnet import create_resnet

    side = -(-crop // 32)
    network: nn.Module = create_resnet(
        model_depth=50, stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(frames, side, side)
    )
    return network


def training_step(clips: Tensor, device: torch.device) -> Contender:
    """One step in float32 with torch's default SGD, from uint8 clips (N, 3, T, H, W) to updated weights."""
    clips = clips.to(device)
    labels = torch.arange(len(clips), device=device) % 400
    network = slow_r50(clips.shape[2], clips.shape[-1]).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=STEADY_LR, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network((clips.float() / 255 - MEAN) / STD), labels).backward()
        optimizer.step()

    return step


@torch.no_grad()
def classify_video(network: nn.Module, video: str, device: torch.device, test: TestConfig) -> np.ndarray:
    """Mean softmax (K,) of a video's views, with one decode and one forward pass a view."""
    views = per_view_video(all_views(video, test))
    scores = [network(view[None].to(device)).softmax(dim=1)[0] for view in views]
    return torch.stack(scores).mean(dim=0).cpu().numpy()


class PortedContextBlock(nn.Module):
    """The GC block of xvjiarui/GCNet with every 2D layer turned into its 3D counterpart and nothing else changed."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = channels // reduction
        self.conv_mask = nn.Conv3d(channels, 1, kernel_size=1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv3d(channels, hidden, kernel_size=1),
            nn.LayerNorm([hidden, 1, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv3d(hidden, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> the same shape."""
        n, c = x.shape[:2]
        values = x.reshape(n, c, -1).unsqueeze(1)  # (N, 1, C, P)
        mask = self.conv_mask(x).reshape(n, 1, -1).softmax(2).unsqueeze(-1)  # (N, 1, P, 1)
        context = (values @ mask).reshape(n, c, 1, 1, 1)
        return x + self.channel_add_conv(context)

    def copy_from(self, block: ContextBlock) -> PortedContextBlock:
        """Take the weights of gcvideo's block; the bias of the mask, which softmax removes, stays."""
        copy_weights([w for name, w in self.named_parameters() if name != "conv_mask.bias"], list(block.parameters()))
        return self


def pytorchvideo_non_local(block: NonLocalBlock) -> nn.Module:
    """pytorchvideo's block, without sub-sampling, with the weights of ours (embedded Gaussian)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from pytorchvideo.layers.nonlocal_net import create_nonlocal

    peer: nn.Module = create_nonlocal(dim_in=block.out.out_features, dim_inner=block.inner, instantiation="softmax")
    names = ("conv_theta", "conv_phi", "conv_g", "conv_out", "norm")  # in the order of gcvideo's block
    copy_weights([weight for name in names for weight in getattr(peer, name).parameters()], list(block.parameters()))
    return peer


def copy_weights(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> None:
    """Copy weights in order; linear layers and 1 x 1 x 1 convolutions differ in the number of axes only."""
    with torch.no_grad():
        for target, source in zip(theirs, ours, strict=True):
            target.copy_(source.reshape(target.shape))
