"""Config of the network: ``model.*`` and ``model.context.*``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gcvideo.config.checks import check_kind, check_ranges, is_path
from gcvideo.errors import ConfigError

STAGES = ("res2", "res3", "res4", "res5")
# Blocks of each ResNet stage, res2 to res5 (He et al. 2016, table 1).
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Pool, transform and fusion of the kinds that lie in the three-step space of GCNet.
PRESETS: dict[str, tuple[Any, Any, Any]] = {
    "gc": ("attention", "bottleneck", "add"),
    "snl": ("attention", "linear", "add"),
    "se": ("average", "squeeze", "scale"),
}


@dataclass(kw_only=True)
class ContextConfig:
    """Global context, non-local or own blocks, and their places in the network.

    Attributes:
        kind: none, gc (global context), snl (simplified non-local), se (squeeze and excitation), nl (non-local, Wang et
            al. 2018), or the dotted path of an own block ``module:name``, called as ``name(channels, **options)`` at
            each place; its ``forward`` takes (N, C, T, H, W) and returns the same shape. gc, snl and se are points of
            the three-step space of GCNet (section 3.3): ``pool``, ``transform`` and ``fusion`` change one step each.
        options: keyword arguments of an own block; for dotted paths only.
        stages: places, as stage (res2 to res5) -> list of block indices (from 0), "all", or "every_other" (blocks 1, 3,
            5 ...), for example ``{res3: all, res4: [1, 3, 5]}``.
        position: place within a residual block: after_1x1, after_3x3 or after_add. Default: after_1x1 (GCNet), for nl
            after_add (Wang et al. 2018).
        reduction: ratio r of the bottleneck C -> C / r, at least 1. Default: 4 for gc (GCNet on Kinetics), 16 for se,
            2 for nl.
        pool: attention (softmax-weighted sum over positions) or average. Default: that of the kind.
        transform: bottleneck, linear or squeeze (a bottleneck without layer norm). Default: that of the kind.
        fusion: add, scale or scale_add. Default: that of the kind.
        layer_norm: layer norm inside the bottleneck.
        relu: ReLU between the two layers of a bottleneck or squeeze.
        bias: biases of the linear layers. The attention mask never has one: it would cancel in the softmax.
        transform_first: snl only: transform every position before pooling (equation 2 of GCNet) instead of the pooled
            vector (equation 3).
        instantiation: nl only: gaussian, embedded_gaussian, dot_product or concatenation.
        subsample: nl only: 2 x 2 spatial max-pooling of keys and values, before their convolutions (the released
            Caffe2 code), after them, or none.
        norm: nl only: batch norm after the output convolution, its scale starting at zero.
        scale: nl only: divide the logits of gaussian and embedded_gaussian by the square root of their width.
    """

    kind: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    position: Literal["after_1x1", "after_3x3", "after_add"] | None = None
    reduction: int | None = None
    pool: Literal["attention", "average"] | None = None
    transform: Literal["bottleneck", "linear", "squeeze"] | None = None
    fusion: Literal["add", "scale", "scale_add"] | None = None
    layer_norm: bool = True
    relu: bool = True
    bias: bool = True
    transform_first: bool = False
    instantiation: Literal["gaussian", "embedded_gaussian", "dot_product", "concatenation"] = "embedded_gaussian"
    subsample: Literal["none", "before", "after"] = "before"
    norm: bool = True
    scale: bool = True

    def __post_init__(self) -> None:
        check_kind("model.context.kind", self.kind, ("none", *PRESETS, "nl"))
        check_ranges("model.context", self)
        if self.kind not in PRESETS and (self.pool or self.transform or self.fusion):
            raise ConfigError(f"model.context: pool, transform and fusion are for gc, snl and se, not {self.kind!r}")
        pool, transform, fusion = PRESETS.get(self.kind, (None, None, None))
        self.pool, self.transform, self.fusion = self.pool or pool, self.transform or transform, self.fusion or fusion
        if self.kind != "none":
            self.position = self.position or ("after_add" if self.kind == "nl" else "after_1x1")
            if self.reduction is None and not is_path(self.kind):
                self.reduction = {"nl": 2, "se": 16}.get(self.kind, 4)
        if self.transform_first and (self.pool, self.transform, self.fusion) != PRESETS["snl"]:
            raise ConfigError("model.context.transform_first: needs attention pooling, a linear transform, add (snl)")
        if self.options and not is_path(self.kind):
            raise ConfigError(f"model.context.options: only for an own block module:name, not for kind {self.kind!r}")
        if (self.kind == "none") != (not self.stages):
            raise ConfigError(f"model.context: kind {self.kind!r} does not go with stages {self.stages}; set both")


@dataclass(kw_only=True)
class ModelConfig:
    """Network: an inflated 3D ResNet, or an own backbone.

    Attributes:
        arch: slow (SlowFast's slow pathway), c2d or i3d (the two baselines of Wang et al. 2018), or the dotted path
            ``module:name`` of a builder of an own backbone, called as ``name(config)`` with this section. It returns a
            module that takes (N, 3, T, H, W) and returns logits (N, num_classes).
        options: free-form values for the builder of an own backbone, which reads ``config.options``.
        depth: layers of the ResNet: 18, 34, 50, 101 or 152.
        num_classes: number of classes: width of the output.
        multi_label: videos have several labels or none: scores are sigmoids and not a softmax, the loss is binary cross
            entropy, and mean average precision decides which checkpoint is best.
        width: channels of the stem; 64 in every published network.
        groups: ResNeXt: groups of the 3 x 3 convolutions (32 x 4d is groups 32, width_per_group 4).
        width_per_group: ResNeXt: channels per group at width 64.
        inflation: i3d only: which convolution of a bottleneck is inflated in time: 3x1x1 (the first 1 x 1) or 3x3x3
            (the 3 x 3).
        temporal_kernels: temporal kernel sizes (odd) of the stem and of each stage's blocks, repeated along the stage,
            for example ``{stem: [5], res3: [3, 1]}``. Default: those of the architecture's paper.
        frame_difference: the input is the difference of each frame and the one before it: the RGB difference of TSN
            (Wang et al. 2016, section 3.2). Static background vanishes, which helps where motion tells the classes
            apart and videos are few.
        dropout: dropout probability before the last layer, in [0, 1).
        drop_path: probability, in [0, 1), that the last residual block is skipped in training; grows linearly from 0 at
            the first block (stochastic depth, Huang et al. 2016).
        zero_init_last_norm: start the last batch norm of each residual branch at zero (Goyal et al. 2017; SlowFast's
            recipe).
        context: global context, non-local or own blocks, and their places in the network.
        weights: initial weights: motion (those of docs/motion.md, from procedural motion), a gcvideo checkpoint or run
            folder, a 2D ImageNet network of torchvision or timm (inflated), or another toolkit's checkpoint. Rows of
            the head are kept for classes of the same name; a head for another number of unnamed classes starts fresh.
    """

    arch: str = "slow"
    options: dict[str, Any] = field(default_factory=dict)
    depth: int = 50
    num_classes: int = 400
    multi_label: bool = False
    width: int = 64
    groups: int = 1
    width_per_group: int = 64
    inflation: Literal["3x1x1", "3x3x3"] = "3x1x1"
    temporal_kernels: dict[str, list[int]] = field(default_factory=dict)
    frame_difference: bool = False
    dropout: float = 0.5
    drop_path: float = 0.0
    zero_init_last_norm: bool = True
    context: ContextConfig = field(default_factory=ContextConfig)
    weights: str | None = None

    def __post_init__(self) -> None:
        check_kind("model.arch", self.arch, ("slow", "c2d", "i3d"))
        check_ranges("model", self)
        if is_path(self.arch):
            return  # the rest describes ResNets; an own builder checks what it uses
        if self.options:
            raise ConfigError(f"model.options: only for an own backbone module:name, not for arch {self.arch!r}")
        if self.depth not in BLOCKS_PER_STAGE:
            raise ConfigError(f"model.depth: {self.depth} is not one of {', '.join(map(str, BLOCKS_PER_STAGE))}")
        if self.depth < 50 and (self.groups, self.width_per_group) != (1, 64):
            raise ConfigError(f"model.groups: ResNeXt needs the bottlenecks of depth 50 and more, not {self.depth}")
        if self.depth >= 50 and self.width * self.width_per_group < 64:
            raise ConfigError(f"model.width_per_group: {self.width_per_group} is too few at model.width {self.width}")
        for stage, kernels in self.temporal_kernels.items():
            if stage not in ("stem", *STAGES):
                raise ConfigError(f"model.temporal_kernels: no stage {stage!r}; there are stem, {', '.join(STAGES)}")
            if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
                raise ConfigError(f"model.temporal_kernels.{stage}: {kernels} must be a list of odd numbers")
        for stage, blocks in self.context.stages.items():
            if stage not in STAGES:
                raise ConfigError(f"model.context.stages: no stage {stage!r}; the stages are {', '.join(STAGES)}")
            count = BLOCKS_PER_STAGE[self.depth][STAGES.index(stage)]
            indices = isinstance(blocks, list) and all(index in range(count) for index in blocks)
            if not indices and blocks not in ("all", "every_other"):
                raise ConfigError(
                    f"model.context.stages.{stage}: {blocks!r} is not all, every_other or a list of 0 to {count - 1}"
                )
