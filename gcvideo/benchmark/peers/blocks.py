"""What our blocks are measured against: the original 2D code ported line by line, and pytorchvideo's non-local."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo.layers import ContextBlock, NonLocalBlock


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
        """Take the weights of our block."""
        pool: Any = block.pool
        transform: Any = block.transform["add"]
        pairs = [(self.conv_mask.weight, pool.weight)]
        convs: Any = self.channel_add_conv
        for i, layer in ((0, transform.fc1), (1, transform.norm), (3, transform.fc2)):
            pairs += [(convs[i].weight, layer.weight), (convs[i].bias, layer.bias)]
        with torch.no_grad():
            for mine, ours in pairs:
                mine.copy_(ours.reshape(mine.shape))
        return self


def pytorchvideo_non_local(block: NonLocalBlock) -> Any:
    """pytorchvideo's block, without sub-sampling, with the weights of ours (embedded Gaussian)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from pytorchvideo.layers.nonlocal_net import create_nonlocal

    peer: Any = create_nonlocal(dim_in=block.out.out_features, dim_inner=block.inner, instantiation="softmax")
    with torch.no_grad():
        for name in ("theta", "phi", "g", "out"):
            theirs, ours = getattr(peer, f"conv_{name}"), getattr(block, name)
            theirs.weight.copy_(ours.weight.reshape(theirs.weight.shape))
            theirs.bias.copy_(ours.bias)
    assert block.norm is not None
    peer.norm.load_state_dict(block.norm.state_dict())
    return peer
