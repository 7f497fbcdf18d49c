"""Residual blocks of a 3D ResNet."""

from pytorchvideo.layers.drop_path import DropPath
from torch import Tensor, nn

from gcvideo.config import ModelConfig


class ResBlock(nn.Module):
    """Residual block, with an optional context block at one of three positions.

    ::

        x -> conv_a -> conv_b -[after_3x3]-> conv_c -[after_1x1]-> + -> ReLU -[after_add]-> y
          \\------------------- (projection) ---------------------/

    GCNet inserts after the last 1 x 1 convolution, before the sum; Wang et al. 2018 after the sum.

    Args:
        in_channels: channels of the input.
        planes: width of the stage, from which its inner and output channels follow.
        config: depth, groups, width per group and inflation.
        temporal_kernel: of this block.
        stride: in height and width.
        drop_path: probability that a sample skips the branch in training (Huang et al. 2016).
    """

    def __init__(
        self, in_channels: int, planes: int, *, config: ModelConfig, temporal_kernel: int, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        self.branch2 = ResidualBranch(
            in_channels, planes, config=config, temporal_kernel=temporal_kernel, stride=stride
        )
        self.channels = self.branch2.channels
        project = in_channels != self.channels or stride != 1
        self.branch1_conv = _conv(in_channels, self.channels, (1, 1, 1), stride) if project else None
        self.branch1_norm = nn.BatchNorm3d(self.channels) if project else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.activation = nn.ReLU(inplace=True)
        self.context: nn.Module | None = None
        self.position = "after_1x1"

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, T, H, W) -> (N, channels, T, H / stride, W / stride)."""
        shortcut = x
        if self.branch1_conv is not None and self.branch1_norm is not None:
            shortcut = self.branch1_norm(self.branch1_conv(x))
        x = self.branch2(x, self.context if self.position == "after_3x3" else None)
        if self.context is not None and self.position == "after_1x1":
            x = self.context(x)
        x = self.activation(self.drop_path(x) + shortcut)
        if self.context is not None and self.position == "after_add":
            x = self.context(x)
        return x


class ResidualBranch(nn.Module):
    """Residual branch: two or three convolutions (a, b, c), each with batch norm, and ReLU between them.

    ===============  =================================================================================
    depth            convolutions, with T the temporal kernel
    ===============  =================================================================================
    18 and 34        a: T x 3 x 3 with the stride; b: 1 x 3 x 3
    50 and more      a: T x 1 x 1; b: 1 x 3 x 3 with the stride and the groups; c: 1 x 1 x 1. With inflation
                     "3x3x3" an I3D inflates b in time instead of a
    ===============  =================================================================================
    """

    def __init__(self, in_channels: int, planes: int, *, config: ModelConfig, temporal_kernel: int, stride: int):
        super().__init__()
        self.channels = planes * expansion(config.depth)
        self.hidden = planes * config.width_per_group // 64 * config.groups  # ResNeXt: Xie et al. 2017
        if config.depth < 50:
            convs = [_conv(in_channels, planes, (temporal_kernel, 3, 3), stride), _conv(planes, planes, (1, 3, 3))]
        else:
            in_b = config.arch == "i3d" and config.inflation == "3x3x3"
            kernel_a, kernel_b = (1, temporal_kernel) if in_b else (temporal_kernel, 1)
            convs = [
                _conv(in_channels, self.hidden, (kernel_a, 1, 1)),
                _conv(self.hidden, self.hidden, (kernel_b, 3, 3), stride, config.groups),
                _conv(self.hidden, self.channels, (1, 1, 1)),
            ]
        for name, conv in zip("abc", convs, strict=False):
            self.add_module(f"conv_{name}", conv)
            self.add_module(f"norm_{name}", nn.BatchNorm3d(conv.out_channels))
            if conv is not convs[-1]:
                self.add_module(f"act_{name}", nn.ReLU(inplace=True))

    def forward(self, x: Tensor, inner: nn.Module | None = None) -> Tensor:
        """Apply the branch, with ``inner`` on the (N, hidden, T, H, W) features before the last convolution."""
        *layers, last_conv, last_norm = self.children()
        for layer in layers:
            x = layer(x)
        if inner is not None:
            x = inner(x)
        return last_norm(last_conv(x))


def expansion(depth: int) -> int:
    """Ratio of a residual block's output channels to its planes."""
    return 4 if depth >= 50 else 1


def _conv(
    in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1, groups: int = 1
) -> nn.Conv3d:
    """Convolution without bias, zero-padded to keep the shape, striding in space alone."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(in_channels, out_channels, kernel, (1, stride, stride), padding, groups=groups, bias=False)
