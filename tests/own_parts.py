"""Own parts that configs of tests name by dotted path: a block, and a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gcvideo.config import ModelConfig


class CBAM(nn.Module):
    """Channel and spatial gates (Woo et al. 2018) over (N, C, T, H, W)."""

    def __init__(self, channels: int, *, reduction: int = 16, kernel: int = 3) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.channel_gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial_gate = nn.Conv3d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm3d(1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.channel_gate(x.mean((2, 3, 4))) + self.channel_gate(x.amax((2, 3, 4)))  # (N, C)
        x = x * gate.sigmoid()[:, :, None, None, None]
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)  # (N, 2, T, H, W)
        return x * self.norm(self.spatial_gate(pooled)).sigmoid()


class TinyNet(nn.Module):
    """Two convolutions and a head; batch norm after the ReLU, so that nothing may be folded."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, 3, stride=(1, 4, 4), padding=1)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.norm1(self.conv1(x).relu())).relu()
        return self.head(x.mean((2, 3, 4)))


def tiny_net(config: ModelConfig) -> TinyNet:
    """Backbone of ``model.arch=tests.own_parts:tiny_net``."""
    return TinyNet(config.options.get("width", 4), config.num_classes)


def no_network(config: ModelConfig) -> str:
    """A builder that returns no network."""
    return "network"
