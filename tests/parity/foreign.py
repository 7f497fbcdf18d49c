"""Networks of toolkits that cannot be installed, written down from their public source for the tests alone.

``Spec`` is the network, a naming (``pyslowfast``, ``mmaction2``, ``caffe2``) gives each of its tensors the name that
the toolkit gives it, ``random_state`` fills a state dict of exactly those names and shapes, and ``logits`` computes the
network from such a dict with plain functions. None of it uses gcvideo.

Sources (public repositories): facebookresearch/SlowFast slowfast/models/{stem,resnet,nonlocal,head}_helper.py and
slowfast/utils/c2_model_loading.py; open-mmlab/mmaction2 mmaction/models/backbones/resnet3d.py and heads/i3d_head.py,
open-mmlab/mmcv mmcv/cnn/bricks/{non_local,context_block}.py; facebookresearch/video-nonlocal-net
lib/models/{resnet_video,resnet_helper,nonlocal_helper}.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
BN = ("weight", "bias", "running_mean", "running_var")
# (stage, block, part) -> the name without its last component, or "" for the whole; see each naming.
Naming = Callable[[str, int, str, str], str]


@dataclass
class Spec:
    """A tiny bottleneck network with the temporal kernels of Slow, C2D or I3D."""

    arch: str = "slow"
    width: int = 4
    classes: int = 5
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    non_local: dict[int, list[int]] = field(default_factory=dict)  # stage number -> blocks
    instantiation: str = "softmax"
    subsample: str = "before"

    def temporal(self, stage: int, block: int) -> int:
        """Temporal kernel of the first 1x1x1 convolution of a block (PySlowFast's temporal kernel basis)."""
        basis = {
            "slow": {2: [1], 3: [1], 4: [3], 5: [3]},
            "c2d": {2: [1], 3: [1], 4: [1], 5: [1]},
            "i3d": {2: [3], 3: [3, 1], 4: [3, 1], 5: [1, 3]},
        }[self.arch][stage]
        return basis[block % len(basis)]

    @property
    def stem_temporal(self) -> int:
        return 5 if self.arch == "i3d" else 1


def pyslowfast(stage: int, block: int, part: str, leaf: str) -> str:
    if part == "stem":
        return "s1.pathway0_stem." + ("conv.weight" if leaf == "conv" else f"bn.{leaf}")
    if part == "head":
        return f"head.projection.{leaf}"
    if part.startswith("nl_"):
        name = {"nl_bn": "bn"}.get(part, f"conv_{part[3:]}")
        return f"s{stage}.pathway0_nonlocal{block}.{name}.{leaf}"
    branch = "branch1" if part == "shortcut" else f"branch2.{part}"
    return f"s{stage}.pathway0_res{block}.{branch}" + (".weight" if leaf == "conv" else f"_bn.{leaf}")


def mmaction2(stage: int, block: int, part: str, leaf: str, *, subsampled: bool = True) -> str:
    if part == "stem":
        return "backbone.conv1." + ("conv.weight" if leaf == "conv" else f"bn.{leaf}")
    if part == "head":
        return f"cls_head.fc_cls.{leaf}"
    prefix = f"backbone.layer{stage - 1}.{block}."
    if part.startswith("nl_"):
        # With sub_sample, g and phi become Sequential(ConvModule, MaxPool3d).
        pooled = ".0" if subsampled and part in ("nl_g", "nl_phi") else ""
        own = {"nl_out": "conv_out.conv", "nl_bn": "conv_out.bn", "nl_concat": "concat_project.conv"}
        name = own.get(part, f"{part[3:]}{pooled}.conv")
        return f"{prefix}non_local_block.{name}.{leaf}"
    module = {"shortcut": "downsample", "a": "conv1", "b": "conv2", "c": "conv3"}[part]
    return prefix + module + (".conv.weight" if leaf == "conv" else f".bn.{leaf}")


def caffe2(stage: int, block: int, part: str, leaf: str) -> str:
    bn = {"weight": "bn_s", "bias": "bn_b", "running_mean": "bn_rm", "running_var": "bn_riv"}
    if part == "stem":
        return "conv1_w" if leaf == "conv" else f"res_conv1_{bn[leaf]}"
    if part == "head":
        return f"pred_{leaf[0]}"
    if part.startswith("nl_"):
        prefix = f"nonlocal_conv{stage}_{block}_"
        return prefix + (bn[leaf] if part == "nl_bn" else f"{part[3:]}_{leaf[0]}")
    branch = "branch1" if part == "shortcut" else f"branch2{part}"
    return f"res{stage}_{block}_{branch}_" + ("w" if leaf == "conv" else bn[leaf])


def random_state(spec: Spec, name: Naming, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> State:
    """A state dict in a toolkit's names, every tensor random (variances positive)."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def fill(key: str, *shape: int) -> None:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        state[key] = torch.randn(shape, generator=generator, dtype=dtype) / fan_in**0.5

    def norm(stage: int, block: int, part: str, channels: int) -> None:
        for leaf in BN:
            low, high = (-0.2, 0.2) if leaf in ("bias", "running_mean") else (0.5, 1.5)
            values = torch.rand(channels, generator=generator, dtype=dtype) * (high - low) + low
            state[name(stage, block, part, leaf)] = values

    fill(name(1, 0, "stem", "conv"), spec.width, 3, spec.stem_temporal, 7, 7)
    norm(1, 0, "stem", spec.width)
    channels = spec.width
    for stage, count in enumerate(spec.blocks, start=2):
        inner = spec.width * 2 ** (stage - 2)
        for block in range(count):
            if block == 0:
                fill(name(stage, block, "shortcut", "conv"), inner * 4, channels, 1, 1, 1)
                norm(stage, block, "shortcut", inner * 4)
            fill(name(stage, block, "a", "conv"), inner, channels, spec.temporal(stage, block), 1, 1)
            fill(name(stage, block, "b", "conv"), inner, inner, 1, 3, 3)
            fill(name(stage, block, "c", "conv"), inner * 4, inner, 1, 1, 1)
            for part, width in (("a", inner), ("b", inner), ("c", inner * 4)):
                norm(stage, block, part, width)
            channels = inner * 4
            if block in spec.non_local.get(stage, []):
                for part in ("nl_g",) if spec.instantiation == "gaussian" else ("nl_theta", "nl_phi", "nl_g"):
                    fill(name(stage, block, part, "weight"), channels // 2, channels, 1, 1, 1)
                    fill(name(stage, block, part, "bias"), channels // 2)
                if spec.instantiation == "concatenation":
                    fill(name(stage, block, "nl_concat", "weight"), 1, channels, 1, 1)  # a 2D convolution in mmcv
                fill(name(stage, block, "nl_out", "weight"), channels, channels // 2, 1, 1, 1)
                fill(name(stage, block, "nl_out", "bias"), channels)
                norm(stage, block, "nl_bn", channels)
    fill(name(0, 0, "head", "weight"), spec.classes, channels)
    fill(name(0, 0, "head", "bias"), spec.classes)
    return state


def logits(state: State, spec: Spec, name: Naming, x: Tensor) -> Tensor:
    """Logits (N, classes) of clips (N, 3, T, H, W)."""

    def conv(x: Tensor, stage: int, block: int, part: str, stride: int = 1) -> Tensor:
        weight = state[name(stage, block, part, "conv")]
        padding = tuple(size // 2 for size in weight.shape[2:])
        return norm(F.conv3d(x, weight, stride=(1, stride, stride), padding=padding), stage, block, part)

    def norm(x: Tensor, stage: int, block: int, part: str) -> Tensor:
        weight, bias, mean, var = (state[name(stage, block, part, leaf)] for leaf in BN)
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def point(x: Tensor, stage: int, block: int, part: str) -> Tensor:
        return F.conv3d(x, state[name(stage, block, part, "weight")], state[name(stage, block, part, "bias")])

    def non_local(x: Tensor, stage: int, block: int) -> Tensor:
        def pool(y: Tensor) -> Tensor:
            return F.max_pool3d(y, (1, 2, 2))

        embedded = spec.instantiation != "gaussian"
        small = pool(x) if spec.subsample == "before" else x
        theta = (point(x, stage, block, "nl_theta") if embedded else x).flatten(2)
        phi = point(small, stage, block, "nl_phi") if embedded else small
        g = point(small, stage, block, "nl_g")
        if spec.subsample == "after":
            phi, g = pool(phi), pool(g)
        phi, g = phi.flatten(2), g.flatten(2)
        if spec.instantiation == "concatenation":
            queries, keys = theta.shape[2], phi.shape[2]
            pairs = torch.cat(
                (theta[..., None].expand(-1, -1, -1, keys), phi[:, :, None].expand(-1, -1, queries, -1)), dim=1
            )
            affinity = F.conv2d(pairs, state[name(stage, block, "nl_concat", "weight")]).relu().squeeze(1) / keys
        else:
            affinity = theta.transpose(1, 2) @ phi  # (N, P, Q)
        if spec.instantiation == "softmax":
            affinity = (affinity * theta.shape[1] ** -0.5).softmax(dim=-1)
        elif spec.instantiation in ("softmax_unscaled", "gaussian"):
            affinity = affinity.softmax(dim=-1)
        elif spec.instantiation == "dot_product":
            affinity = affinity / affinity.shape[-1]
        y = (affinity @ g.transpose(1, 2)).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return x + norm(point(y, stage, block, "nl_out"), stage, block, "nl_bn")

    x = F.max_pool3d(conv(x, 1, 0, "stem", stride=2).relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage, count in enumerate(spec.blocks, start=2):
        for block in range(count):
            stride = 2 if block == 0 and stage > 2 else 1
            identity = conv(x, stage, block, "shortcut", stride) if block == 0 else x
            y = conv(x, stage, block, "a").relu()
            y = conv(y, stage, block, "b", stride).relu()
            x = (identity + conv(y, stage, block, "c")).relu()
            if block in spec.non_local.get(stage, []):
                x = non_local(x, stage, block)
        if stage == 2 and spec.arch != "slow":
            x = F.max_pool3d(x, (2, 1, 1))
    return F.linear(x.mean((2, 3, 4)), state[name(0, 0, "head", "weight")], state[name(0, 0, "head", "bias")])


def randomize_norms(model: torch.nn.Module, *, seed: int = 0) -> torch.nn.Module:
    """Random scales, biases and statistics for every batch norm; a fresh one would hide mistakes. Returns the model."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.2, 0.2),
                ("running_mean", -0.2, 0.2),
                ("running_var", 0.5, 1.5),
            ):
                getattr(module, name).data.uniform_(low, high, generator=generator)
    return model


class MmcvContextBlock(torch.nn.Module):
    """ContextBlock of open-mmlab/mmcv mmcv/cnn/bricks/context_block.py, its 2D form with its names and shapes."""

    def __init__(self, channels: int, ratio: float, fusion: tuple[str, ...], pooling: str = "att") -> None:
        super().__init__()
        planes = int(channels * ratio)
        nn = torch.nn
        if pooling == "att":
            self.conv_mask = nn.Conv2d(channels, 1, 1)
        for name in ("add", "mul"):
            layers = nn.Sequential(
                nn.Conv2d(channels, planes, 1), nn.LayerNorm([planes, 1, 1]), nn.ReLU(), nn.Conv2d(planes, channels, 1)
            )
            self.add_module(f"channel_{name}_conv", layers if f"channel_{name}" in fusion else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if hasattr(self, "conv_mask"):
            mask = self.conv_mask(x).flatten(2).softmax(-1)  # (N, 1, HW)
            context = (x.flatten(2) * mask).sum(2)[:, :, None, None]
        else:
            context = x.mean((2, 3), keepdim=True)
        if self.channel_mul_conv is not None:
            x = x * self.channel_mul_conv(context).sigmoid()
        return x if self.channel_add_conv is None else x + self.channel_add_conv(context)


class MmcvNonLocal2d(torch.nn.Module):
    """NonLocal2d of open-mmlab/mmcv mmcv/cnn/bricks/non_local.py without a norm, its names shortened."""

    def __init__(self, channels: int, mode: str, *, sub_sample: bool) -> None:
        super().__init__()
        self.mode, inner = mode, channels // 2
        self.pool = torch.nn.MaxPool2d(2) if sub_sample else torch.nn.Identity()
        for name in ("g",) if mode == "gaussian" else ("g", "theta", "phi"):
            self.add_module(name, torch.nn.Conv2d(channels, inner, 1))
        self.out = torch.nn.Conv2d(inner, channels, 1)
        if mode == "concatenation":
            self.concat_project = torch.nn.Conv2d(2 * inner, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        embedded = self.mode != "gaussian"
        theta = (self.theta(x) if embedded else x).flatten(2)  # (N, C, HW)
        phi = self.pool(self.phi(x) if embedded else x).flatten(2)  # (N, C, K)
        g = self.pool(self.g(x)).flatten(2).transpose(1, 2)  # (N, K, C)
        if self.mode == "concatenation":
            queries, keys = theta.shape[2], phi.shape[2]
            pairs = torch.cat([theta.unsqueeze(3).repeat(1, 1, 1, keys), phi.unsqueeze(2).repeat(1, 1, queries, 1)], 1)
            weight = self.concat_project(pairs).relu().squeeze(1) / keys
        else:
            weight = theta.transpose(1, 2) @ phi
            if self.mode == "dot_product":
                weight = weight / weight.shape[-1]
            else:
                weight = (weight / (theta.shape[1] ** 0.5 if embedded else 1)).softmax(-1)
        return x + self.out((weight @ g).transpose(1, 2).unflatten(2, x.shape[2:]))
