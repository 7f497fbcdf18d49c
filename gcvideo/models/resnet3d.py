"""3D ResNets for clips (Slow, C2D, I3D), with context or non-local blocks where the config puts them.

======  =======================================  ================================================================
arch    source                                   temporal kernels (stem; res2 to res5) and temporal stride
======  =======================================  ================================================================
slow    Feichtenhofer et al. 2019, table 1       1; 1, 1, 3, 3; none
c2d     Wang et al. 2018, table 1                1; 1, 1, 1, 1; 2 x 1 x 1 max-pooling after res2
i3d     Wang et al. 2018, section 4.1            5; 3, every other, every other, every other; the same pooling
======  =======================================  ================================================================

Details that the papers leave open follow PySlowFast and pytorchvideo: stride in the 3 x 3 convolution, zero padding
everywhere, stem stride (1, 2, 2). Stem and head are pytorchvideo's.

Keys of the state dict, where i is the block within its stage. Convolutions have no bias; each norm has ``weight``,
``bias``, ``running_mean``, ``running_var``, ``num_batches_tracked``::

    stem.conv.weight  stem.norm.*
    res{2..5}.{i}.branch1_conv.weight  .branch1_norm.*                  shortcut, where it changes shape
    res{2..5}.{i}.branch2.conv_a.weight  .norm_a.*  .conv_b.weight  .norm_b.*
    res{2..5}.{i}.branch2.conv_c.weight  .norm_c.*                      depth 50 and more
    res{2..5}.{i}.context.pool.weight                                   (1, C), attention pooling
    res{2..5}.{i}.context.transform.{add,scale}.fc1.weight  .bias       (C/r, C), (C/r,); bottleneck and squeeze
    res{2..5}.{i}.context.transform.{add,scale}.norm.weight  .bias      (C/r,), bottleneck with layer norm
    res{2..5}.{i}.context.transform.{add,scale}.fc2.weight  .bias       (C, C/r), (C,)
    res{2..5}.{i}.context.transform.{add,scale}.fc.weight  .bias        (C, C), (C,); linear
    res{2..5}.{i}.context.{theta,phi,g}.weight  .bias                   (d, C), (d,); non-local, gaussian has g only
    res{2..5}.{i}.context.concat.weight                                 (1, 2d), concatenation: theta's half first
    res{2..5}.{i}.context.out.weight  .bias  .norm.*                    (C, d), (C,); W_z and its batch norm
    head.proj.weight  .bias                                             (classes, C), (classes,)
"""

import warnings
from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo.config import ContextConfig, ModelConfig, import_object, is_path
from gcvideo.config.model import BLOCKS_PER_STAGE, STAGES
from gcvideo.errors import ConfigError, InputShapeError
from gcvideo.layers import ContextBlock, NonLocalBlock
from gcvideo.models.residual import ResBlock, expansion

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it imports losses that are TorchScript functions
    from pytorchvideo.models.head import create_res_basic_head
    from pytorchvideo.models.stem import create_res_basic_stem

# Temporal kernels of the stem and of the blocks of each stage, repeated along the stage.
TEMPORAL_KERNELS = {
    "slow": {"stem": [1], "res2": [1], "res3": [1], "res4": [3], "res5": [3]},
    "c2d": {"stem": [1], "res2": [1], "res3": [1], "res4": [1], "res5": [1]},
    "i3d": {"stem": [5], "res2": [3], "res3": [3, 1], "res4": [3, 1], "res5": [1, 3]},
}


# Fields of ContextConfig that the blocks take as arguments.
CONTEXT_FIELDS = ("pool", "transform", "fusion", "reduction", "layer_norm", "relu", "bias", "transform_first")
NON_LOCAL_FIELDS = ("instantiation", "reduction", "subsample", "norm", "bias", "scale")


def build_model(config: ModelConfig) -> nn.Module:
    """Network of a config, with fresh weights; ``gcvideo.weights`` loads ``config.weights``.

    Returns:
        a ``ResNet3d``, or what the builder of an own backbone returns (``config.arch`` is ``module:name``): a module
        from (N, 3, T, H, W) to logits (N, config.num_classes).

    Raises:
        ConfigError: the dotted path of an own backbone or block names no such part.
    """
    if not is_path(config.arch):
        return ResNet3d(config)
    model = import_object(config.arch, key="model.arch")(config)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.arch: {config.arch} returns a {type(model).__name__}; return an nn.Module")
    return model


def last_feature_layer(model: nn.Module) -> nn.Module:
    """Layer of the last feature map (N, C, T', H', W'), for Grad-CAM.

    It is the module that the network's attribute ``cam_layer`` names (``res5`` of a ``ResNet3d``), by default its last
    ``nn.Conv3d``.

    Raises:
        ConfigError: the network has no such layer.
    """
    if name := getattr(model, "cam_layer", None):
        return model.get_submodule(name)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv3d)]
    if not convolutions:
        raise ConfigError("model.arch: set the attribute cam_layer of the network to the name of a layer for Grad-CAM")
    return convolutions[-1]


class ResNet3d(nn.Module):
    """3D ResNet: stem, four stages of residual blocks, head.

    Weights are drawn for the plain network first and for its context blocks last, so that one seed gives one backbone
    with any blocks added, and no global initialisation touches the zeros that make a fresh block harmless.

    Args:
        config: architecture, depth, width, number of classes and placement of blocks.
    """

    cam_layer = "res5"
    LAYERS = ("stem", *STAGES)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kernel = _temporal_kernels(config, "stem")[0]
        self.stem = create_res_basic_stem(
            in_channels=3,
            out_channels=config.width,
            conv_kernel_size=(kernel, 7, 7),
            conv_stride=(1, 2, 2),
            conv_padding=(kernel // 2, 3, 3),
        )
        widths = [config.width * expansion(config.depth) * 2**i for i in range(len(STAGES))]
        self.res2 = _make_stage(config, "res2", config.width)
        # C2D and I3D halve the number of frames after res2 (Wang et al. 2018, table 1).
        self.pool2 = nn.Identity() if config.arch == "slow" else nn.MaxPool3d((2, 1, 1))
        self.res3 = _make_stage(config, "res3", widths[0])
        self.res4 = _make_stage(config, "res4", widths[1])
        self.res5 = _make_stage(config, "res5", widths[2])
        self.head = create_res_basic_head(
            in_features=widths[3],
            out_features=config.num_classes,
            pool=nn.AdaptiveAvgPool3d,
            output_size=1,
            dropout_rate=config.dropout,
        )
        self._draw_weights()
        self._place_blocks(config.context)

    def forward(self, x: Tensor) -> Tensor:
        """Classify clips.

        Args:
            x: (N, 3, T, H, W), normalised. Any H and W from 32 up; T a multiple of 2 for C2D and I3D.

        Returns:
            logits (N, num_classes): the class scores averaged over all positions, so that any crop can be tested.

        Raises:
            InputShapeError: the strides do not allow such a clip.
        """
        return self.head(self.features(x))

    def features(self, x: Tensor, layer: str = "res5") -> Tensor:
        """Feature map of one of ``LAYERS``; the layers behind it are not computed.

        By default the one that the head pools: (N, C, T', H / 32, W / 32), T' = T for Slow and T / 2 for C2D and I3D.
        """
        self.check_input(x)
        if self.config.frame_difference:
            x = frame_difference(x)
        for name in ("stem", "res2", "pool2", "res3", "res4", "res5"):
            x = self.get_submodule(name)(x)
            if name == layer:
                break
        return x

    def check_input(self, x: Tensor) -> None:
        """Check the shape of clips against the strides; raises ``InputShapeError`` with the reason."""
        shape = tuple(x.shape)
        if len(shape) != 5 or shape[1] != 3:
            raise InputShapeError(f"clips must have shape (N, 3, T, H, W), not {shape}")
        frames, height, width = shape[2:]
        if height < 32 or width < 32:
            raise InputShapeError(
                f"clips of {height} x {width} pixels are too small: the network divides height and width by 32"
            )
        if self.config.arch != "slow" and frames % 2:
            raise InputShapeError(
                f"{self.config.arch} pools pairs of frames after res2, so clips need an even number of frames, "
                f"not {frames}"
            )

    def _draw_weights(self) -> None:
        """He initialisation by fan-out for convolutions and N(0, 0.01) for the head, as in SlowFast.

        The last batch norm of each residual branch starts at zero if the config says so (Goyal et al. 2017, 5.1).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.head.proj.weight, std=0.01)
        nn.init.zeros_(self.head.proj.bias)
        for _, block in self.blocks() if self.config.zero_init_last_norm else ():
            *_, weight, _ = block.branch2.parameters()  # weight and bias of the last batch norm
            nn.init.zeros_(weight)

    def blocks(self) -> Iterator[tuple[str, ResBlock]]:
        """Residual blocks from first to last, by name ("res2.0", ...)."""
        for stage in STAGES:
            for i, block in enumerate(self.get_submodule(stage).children()):
                yield f"{stage}.{i}", cast(ResBlock, block)

    def _place_blocks(self, context: ContextConfig) -> None:
        for name, block in self.blocks():
            stage, index = name.split(".")
            where = context.stages.get(stage, [])
            if where == "all" or (int(index) % 2 == 1 if where == "every_other" else int(index) in where):
                assert context.position is not None
                channels = block.branch2.hidden if context.position == "after_3x3" else block.channels
                block.context = make_block(channels, context)
                block.position = context.position


def _make_stage(config: ModelConfig, stage: str, in_channels: int) -> nn.Sequential:
    """Stage of residual blocks; all stages but the first halve height and width."""
    index = STAGES.index(stage)
    depths = BLOCKS_PER_STAGE[config.depth]
    planes = config.width * 2**index
    kernels = _temporal_kernels(config, stage)
    blocks = []
    for i in range(depths[index]):
        # Drop-path rates grow linearly from 0 at the first block of all (Huang et al. 2016, section 3).
        depth = (sum(depths[:index]) + i) / (sum(depths) - 1)
        blocks.append(
            ResBlock(
                in_channels if i == 0 else planes * expansion(config.depth),
                planes,
                config=config,
                temporal_kernel=kernels[i % len(kernels)],
                stride=2 if i == 0 and index > 0 else 1,
                drop_path=config.drop_path * depth,
            )
        )
    return nn.Sequential(*blocks)


def _temporal_kernels(config: ModelConfig, stage: str) -> list[int]:
    return config.temporal_kernels.get(stage) or TEMPORAL_KERNELS[config.arch][stage]


def frame_difference(x: Tensor) -> Tensor:
    """RGB difference (N, C, T, H, W): each frame minus the one before it; zeros for the first, which has none.

    That of TSN (Wang et al. 2016, section 3.2), with as many frames as before.
    """
    return F.pad(x[:, :, 1:] - x[:, :, :-1], (0, 0, 0, 0, 1, 0))


def make_block(channels: int, config: ContextConfig) -> nn.Module:
    """Context block of a config, for features of ``channels`` channels.

    Raises:
        ConfigError: the dotted path of an own block names no ``nn.Module``, or the block refuses its options.
    """
    if is_path(config.kind):
        block = import_object(config.kind, key="model.context.kind")
        if not (isinstance(block, type) and issubclass(block, nn.Module)):
            raise ConfigError(f"model.context.kind: {config.kind} is no subclass of nn.Module")
        try:
            return block(channels, **config.options)
        except TypeError as error:
            raise ConfigError(f"model.context.options: {config.kind} refuses them: {error}") from error
    block, names = (NonLocalBlock, NON_LOCAL_FIELDS) if config.kind == "nl" else (ContextBlock, CONTEXT_FIELDS)
    return block(channels, **{name: getattr(config, name) for name in names})
