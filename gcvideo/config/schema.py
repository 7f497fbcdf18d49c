"""What one run is: typed dataclasses. ``gcvideo.config`` fills them from YAML files and ``key=value`` overrides.

Each ``__post_init__`` rejects values that contradict each other, with a one-line ``ConfigError`` that names the key.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from gcvideo.errors import ConfigError

STAGES = ("res2", "res3", "res4", "res5")
# Blocks of each ResNet stage, res2 to res5 (He et al. 2016, table 1).
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(kw_only=True)
class ContextConfig:
    """Global-context or non-local blocks, and where they go.

    ``gc``, ``snl`` and ``se`` are points of the three-step space of GCNet (section 3.3); ``pool``, ``transform`` and
    ``fusion`` override one step each. ``nl`` is the pairwise block of Wang et al. 2018.
    """

    kind: Literal["none", "gc", "snl", "se", "nl"] = "none"
    # Stage -> list of block indices (from 0), "all", or "every_other" (blocks 1, 3, 5 ...).
    stages: dict[str, Any] = field(default_factory=dict)
    # Where in a residual block; by default after_1x1 (GCNet) for gc, snl, se and after_add (Wang et al.) for nl.
    position: Literal["after_1x1", "after_3x3", "after_add"] | None = None
    # Bottleneck C -> C / reduction; by default 4 (GCNet on Kinetics) for gc, 16 for se, 2 for nl.
    reduction: int | None = None
    pool: Literal["attention", "average"] | None = None
    transform: Literal["bottleneck", "linear", "squeeze"] | None = None
    fusion: Literal["add", "scale", "scale_add"] | None = None
    layer_norm: bool = True
    # The ReLU between the two layers of a bottleneck or squeeze.
    relu: bool = True
    # Biases of the linear layers (the attention mask never has one: it would cancel in the softmax).
    bias: bool = True
    # snl only: transform every position before pooling (equation 2 of GCNet) instead of the pooled vector (equation 3).
    transform_first: bool = False
    # The rest belongs to nl alone.
    instantiation: Literal["gaussian", "embedded_gaussian", "dot_product", "concatenation"] = "embedded_gaussian"
    # Spatial 2 x 2 max-pooling of keys and values: before their convolutions (the released Caffe2 code), after, none.
    subsample: Literal["none", "before", "after"] = "before"
    # Batch norm after the output convolution, its scale starting at zero.
    norm: bool = True
    # Logits of gaussian and embedded_gaussian divided by the square root of their width.
    scale: bool = True

    def __post_init__(self) -> None:
        presets = {"gc": ("attention", "bottleneck", "add"), "snl": ("attention", "linear", "add")}
        presets["se"] = ("average", "squeeze", "scale")
        if self.kind in presets:
            pool, transform, fusion = presets[self.kind]
            self.pool = self.pool or typing.cast(Any, pool)
            self.transform = self.transform or typing.cast(Any, transform)
            self.fusion = self.fusion or typing.cast(Any, fusion)
        elif self.pool or self.transform or self.fusion:
            raise ConfigError(
                f"model.context: pool, transform and fusion belong to the kinds gc, snl and se, not to {self.kind!r}"
            )
        if self.transform_first and (self.pool, self.transform, self.fusion) != ("attention", "linear", "add"):
            raise ConfigError("model.context.transform_first: needs attention pooling, a linear transform, add (snl)")
        if self.kind != "none":
            self.position = self.position or ("after_add" if self.kind == "nl" else "after_1x1")
            self.reduction = self.reduction or {"nl": 2, "se": 16}.get(self.kind, 4)
            _positive("model.context.reduction", self.reduction)
        if self.kind == "none" and self.stages:
            raise ConfigError("model.context: stages are given but kind is 'none': set kind to gc, snl, se or nl")
        if self.kind != "none" and not self.stages:
            raise ConfigError(
                f"model.context: kind {self.kind!r} needs stages, for example {{res3: all, res4: [1, 3, 5]}}"
            )
        for stage, blocks in self.stages.items():
            if stage not in STAGES:
                raise ConfigError(f"model.context.stages: no stage {stage!r}; the stages are {', '.join(STAGES)}")
            indices = isinstance(blocks, list) and all(isinstance(b, int) and b >= 0 for b in blocks)
            if not indices and blocks not in ("all", "every_other"):
                raise ConfigError(
                    f"model.context.stages.{stage}: {blocks!r} is neither a list of block indices nor 'all' nor "
                    "'every_other'"
                )


@dataclass(kw_only=True)
class ModelConfig:
    """The network: an inflated 3D ResNet."""

    # slow: SlowFast's slow pathway; c2d and i3d: the two baselines of Wang et al. 2018.
    arch: Literal["slow", "c2d", "i3d"] = "slow"
    depth: int = 50
    num_classes: int = 400
    # Channels of the stem; 64 in every published network.
    width: int = 64
    # ResNeXt: groups and channels per group of the 3 x 3 convolutions (32 x 4d is groups 32, width_per_group 4).
    groups: int = 1
    width_per_group: int = 64
    # i3d only: which convolution of a bottleneck is inflated in time.
    inflation: Literal["3x1x1", "3x3x3"] = "3x1x1"
    # Temporal kernels of the stem and of each stage's blocks, repeated along it, for example {stem: [5], res3: [3, 1]};
    # by default those of the architecture's paper.
    temporal_kernels: dict[str, list[int]] = field(default_factory=dict)
    # The network sees how each frame differs from the one before it instead of the frames: the RGB difference of TSN
    # (Wang et al. 2016, section 3.2). What stands still vanishes, which helps where motion tells the classes apart and
    # videos are few.
    frame_difference: bool = False
    dropout: float = 0.5
    drop_path: float = 0.0
    # The last batch norm of each residual branch starts at zero (Goyal et al. 2017; SlowFast's recipe).
    zero_init_last_norm: bool = True
    context: ContextConfig = field(default_factory=ContextConfig)
    # A file of weights to start from: a gcvideo checkpoint, a 2D ImageNet network of torchvision or timm (inflated), or
    # another toolkit's checkpoint. The head is left out where the number of classes differs.
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS_PER_STAGE:
            raise ConfigError(f"model.depth: {self.depth} is not one of {', '.join(map(str, BLOCKS_PER_STAGE))}")
        for name in ("num_classes", "width", "groups", "width_per_group"):
            _positive(f"model.{name}", getattr(self, name))
        _fraction("model.dropout", self.dropout)
        _fraction("model.drop_path", self.drop_path)
        if self.depth < 50 and (self.groups, self.width_per_group) != (1, 64):
            raise ConfigError(f"model.groups: ResNeXt needs the bottlenecks of depth 50 and more, not {self.depth}")
        if self.depth >= 50 and self.width * self.width_per_group < 64:
            raise ConfigError(
                f"model.width_per_group: {self.width_per_group} leaves no channels at model.width {self.width}"
            )
        for stage, kernels in self.temporal_kernels.items():
            if stage not in ("stem", *STAGES):
                raise ConfigError(f"model.temporal_kernels: no stage {stage!r}; there are stem, {', '.join(STAGES)}")
            if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
                raise ConfigError(f"model.temporal_kernels.{stage}: {kernels} must be a list of odd numbers")
        for stage, blocks in self.context.stages.items():
            count = BLOCKS_PER_STAGE[self.depth][STAGES.index(stage)]
            if isinstance(blocks, list) and any(index >= count for index in blocks):
                raise ConfigError(
                    f"model.context.stages.{stage}: block {max(blocks)} does not exist; {stage} of depth {self.depth} "
                    f"has blocks 0 to {count - 1}"
                )


@dataclass(kw_only=True)
class SplitConfig:
    """One split: an annotation and the folder that its paths or ids lie in."""

    # Official Kinetics CSV, `path label` list, folder of class folders, index, or folder of tar shards.
    annotation: str | None = None
    # Folder of the videos; by default the annotation's own folder.
    root: str | None = None


@dataclass(kw_only=True)
class AugmentConfig:
    """Augmentation of training clips; every switch is off by default. See gcvideo.data.augment."""

    # How clips are cropped: the short side at a random length and then a random square (`data.short_side`), or a box
    # of random area and aspect ratio (Szegedy et al. 2015), as a fraction of the frame and as width over height.
    crop: Literal["short_side", "inception"] = "short_side"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    # RandAugment (Cubuk et al. 2020): operations a clip, and their magnitude, of 30. Here and below "MViT" means the
    # recipe in PySlowFast's MVIT_B_16x4_CONV.yaml; it takes 4 of magnitude 7.
    rand_augment: int = 0
    rand_magnitude: int = 9
    # Largest change of brightness, contrast, saturation and hue, as in torchvision; customary without RandAugment:
    # 0.4 for the first three.
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    # Chance that a box of 2 to 33 % of the frame is erased (Zhong et al. 2020). MViT: 0.25.
    erase: float = 0.0
    # Parameters of the Beta distributions of mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), 0 for off; one of
    # them is taken for each batch, with probability mix_chance. MViT: 0.8 and 1.0, always.
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_chance: float = 1.0
    # Repeated augmentation (Hoffer et al. 2020): clips cut from each video that is opened. A batch keeps its number of
    # clips and holds fewer videos; an epoch still opens each video once. MViT: 2.
    clips_per_video: int = 1
    # Every class equally often in each epoch (Kang et al. 2020), for small sets with large and small classes.
    class_balanced: bool = False

    def __post_init__(self) -> None:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ConfigError(f"data.augment.crop_area: [{low:g}, {high:g}] must rise within (0, 1]")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ConfigError(f"data.augment.crop_ratio: [{low:g}, {high:g}] must rise and be positive")
        if self.rand_augment < 0 or not 0 <= self.rand_magnitude <= 30:
            raise ConfigError("data.augment: rand_augment must be 0 or more, and rand_magnitude lie in [0, 30]")
        if min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise ConfigError("data.augment.color_jitter: every value must be 0 or more, and the hue at most 0.5")
        for name in ("erase", "mix_chance"):
            _fraction(f"data.augment.{name}", getattr(self, name), closed=True)
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.augment.{name}: must be 0 (off) or more")
        _positive("data.augment.clips_per_video", self.clips_per_video)


@dataclass(kw_only=True)
class DataConfig:
    """Which videos, and how clips are cut out of them."""

    train: SplitConfig = field(default_factory=SplitConfig)
    val: SplitConfig = field(default_factory=SplitConfig)
    # By default the val split.
    test: SplitConfig = field(default_factory=SplitConfig)
    # Text file with one class name a line, in label order. By default the sorted class names of the train split.
    classes: str | None = None
    # A clip is `frames` frames, `stride` frames apart ("8x8" in the papers).
    frames: int = 8
    stride: int = 8
    # How training clips are spaced; see the table in gcvideo.data.sampling, and `test.convention` for tests.
    convention: Literal["pyslowfast", "pyslowfast_offset", "mmaction2"] = "pyslowfast"
    # Count strides at this frame rate, whatever the rate of a video (PySlowFast: 30). By default every video's own.
    target_fps: float | None = None
    crop: int = 224
    # Training: the short side is scaled to a random length in this range, then a random crop is taken.
    short_side: tuple[int, int] = (256, 320)
    flip: float = 0.5
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # Per-channel RGB statistics, for pixels in [0, 1]. These are Kinetics' customary ones (PySlowFast).
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    # A list of videos to leave out from the start: what `gcvideo prepare verify` writes, or `quarantine.jsonl` of an
    # earlier run. In training the next good video takes the place of each, in a test they count as failed.
    quarantine: str | None = None
    # Who decodes; `auto` is decord where it reads a file rightly, else PyAV. torchcodec comes with
    # `pip install "gcvideo[torchcodec]"` and needs FFmpeg's libraries.
    backend: Literal["auto", "decord", "pyav", "torchcodec"] = "auto"
    workers: int = 4
    # Seconds that decoding one video may take before its worker process is ended and the video quarantined.
    video_timeout: float = 60.0
    # GiB that one worker process may allocate; a video that needs more is refused.
    worker_memory: float = 8.0

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "crop", "video_timeout", "worker_memory"):
            _positive(f"data.{name}", getattr(self, name))
        low, high = self.short_side
        if self.augment.crop == "short_side" and not self.crop <= low <= high:
            raise ConfigError(
                f"data.short_side: [{low}, {high}] must rise and start no lower than data.crop ({self.crop})"
            )
        _fraction("data.flip", self.flip, closed=True)
        if min(self.std) <= 0:
            raise ConfigError("data.std: every value must be positive")
        if self.workers < 0:
            raise ConfigError("data.workers: must be 0 (decode in the main process) or more")
        if self.target_fps is not None:
            _positive("data.target_fps", self.target_fps)
            if self.convention == "mmaction2":
                raise ConfigError("data.target_fps: belongs to PySlowFast's conventions; data.convention is mmaction2")


@dataclass(kw_only=True)
class TestConfig:
    """Multi-view testing: `clips` x `crops` views of each video."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    clips: int = 10
    crops: Literal[1, 3, 5] = 3
    short_side: int = 256
    crop: int = 256
    # Where the clips lie: see gcvideo.data.sampling.uniform_clips.
    convention: Literal["pyslowfast", "pyslowfast_offset", "mmaction2"] = "pyslowfast"
    ensemble: Literal["softmax", "logits", "max"] = "softmax"
    # The `fast` protocol: the whole frame once instead of `crops` crops. Cheaper, and not the published protocol: its
    # accuracy is to be reported apart.
    whole_frame: bool = False
    # Views in one forward pass; by default 30 on a GPU, and on a CPU 3, or 1 if they are large.
    views_per_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("clips", "short_side", "crop"):
            _positive(f"test.{name}", getattr(self, name))
        if self.crop > self.short_side:
            raise ConfigError(f"test.crop: {self.crop} does not fit in test.short_side ({self.short_side})")
        if self.views_per_batch is not None:
            _positive("test.views_per_batch", self.views_per_batch)


@dataclass(kw_only=True)
class OptimConfig:
    """SGD and its learning rate over time."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    # For `train.batch_size` clips a step, whatever the number of processes.
    lr: float = 0.1
    # The batch size that `lr` was chosen for: the rate used is lr x train.batch_size / lr_for_batch (the linear scaling
    # rule of Goyal et al. 2017). By default `lr` is taken as it is.
    lr_for_batch: int | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    # Whether batch norms, layer norms and biases are decayed too.
    decay_norm_and_bias: bool = True
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    # No higher than `lr`: a warm-up rises.
    warmup_start_lr: float = 0.01
    # The step schedule multiplies the learning rate by `gamma` at each of these epochs.
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    # Largest L2 norm of all gradients together; 0 leaves them alone.
    clip_grad_norm: float = 0.0
    # One kernel for the whole update: measured 3.5 times faster than a loop over the parameters.
    fused: bool = True

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"optim.lr: must be positive, not {self.lr}")
        for name in ("weight_decay", "warmup_epochs", "warmup_start_lr", "clip_grad_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name}: must not be negative, is {getattr(self, name)}")
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("optim.schedule: 'step' needs optim.milestones, the epochs at which the rate falls")
        _fraction("optim.momentum", self.momentum)
        if self.nesterov and self.momentum <= 0 and self.optimizer == "sgd":
            raise ConfigError("optim.nesterov: needs optim.momentum above 0")
        if self.lr_for_batch is not None:
            _positive("optim.lr_for_batch", self.lr_for_batch)


@dataclass(kw_only=True)
class TrainConfig:
    """The loop."""

    epochs: float = 196
    # Clips a step over all processes and accumulation steps together.
    batch_size: int = 64
    # Micro-batches whose gradients are summed before a step.
    accumulate: int = 1
    # auto: bfloat16 where the device has matrix units for it, else float32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # Memory layout: channels_last_3d (true) or contiguous (false); by default the former for bf16 and on CPUs, the
    # faster choice where we have measured. See gcvideo.device.
    channels_last: bool | None = None
    compile: bool = False
    label_smoothing: float = 0.0
    # Parts of the network that are not trained: stem, res2 ... head, or backbone for all but the head.
    freeze: list[str] = field(default_factory=list)
    # Decay of the averaged weights that are validated and tested with, for example 0.9999 (Polyak averaging as in
    # Tan and Le 2019); 0: none.
    ema: float = 0.0
    # Batches over which batch norms are measured anew before each validation (PySlowFast: 200); 0: not at all.
    precise_bn: int = 0
    # Processes whose batch norms measure their batches together; 1: each its own (PySlowFast), 0: all together.
    sync_batch_norm: int = 1
    # Multigrid training (Wu et al. 2020): small clips in large batches at first (long), or from step to step (short).
    # See gcvideo.train.multigrid. The learning-rate schedule and train.epochs are taken as they are; PySlowFast
    # trains 1.5 times as many epochs with it.
    multigrid: Literal["none", "long", "short", "both"] = "none"
    multigrid_cycles: int = 3  # long cycles before the last phase
    # Tells DistributedDataParallel that every step uses the same layers, which saves it looking.
    static_graph: bool = False
    val_every: int = 1  # epochs; 0: only at the end
    val_clips: int = 1  # clips of each video that validation looks at, one crop each
    log_every: int = 10  # steps
    # A project of Weights & Biases that gets the figures too; needs `pip install "gcvideo[wandb]"`.
    wandb: str | None = None
    checkpoint_every: int = 0  # steps, besides the end of each epoch; 0: never
    checkpoint_minutes: float = 10.0  # and after so many minutes; 0: never
    keep_checkpoints: int = 2  # the latest, besides the best

    def __post_init__(self) -> None:
        if self.epochs <= 0:
            raise ConfigError(f"train.epochs: must be positive, not {self.epochs}")
        for name in ("batch_size", "accumulate", "val_clips", "log_every", "keep_checkpoints"):
            _positive(f"train.{name}", getattr(self, name))
        for name in ("val_every", "checkpoint_every", "checkpoint_minutes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}: must be 0 or more")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"train.batch_size: {self.batch_size} does not divide into {self.accumulate} accumulation steps"
            )
        _fraction("train.label_smoothing", self.label_smoothing)
        _fraction("train.ema", self.ema)
        for name in ("precise_bn", "sync_batch_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}: must be 0 or more")
        _positive("train.multigrid_cycles", self.multigrid_cycles)
        if self.multigrid != "none" and self.sync_batch_norm != 1:
            raise ConfigError("train.multigrid: splits batch norms, so train.sync_batch_norm must stay 1")
        if self.static_graph and self.accumulate > 1:
            raise ConfigError("train.static_graph: does not go together with train.accumulate above 1")


@dataclass(kw_only=True)
class RunConfig:
    """Everything a run depends on. The resolved copy is written beside every result."""

    name: str = MISSING
    # The run folder is `output`/`name`.
    output: str = "runs"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    test: TestConfig = field(default_factory=TestConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in (".", ".."):
            raise ConfigError(f"name: {self.name!r} cannot name a run folder")
        _finite("", self)
        if self.seed < 0:
            raise ConfigError(f"seed: must be 0 or more, is {self.seed}")
        if self.optim.warmup_epochs >= self.train.epochs:
            raise ConfigError(
                f"optim.warmup_epochs: {self.optim.warmup_epochs:g} leaves nothing of train.epochs "
                f"({self.train.epochs:g})"
            )

    @property
    def run_dir(self) -> Path:
        """Folder that holds everything the run leaves."""
        return Path(self.output).expanduser() / self.name


def _positive(key: str, value: float) -> None:
    if value <= 0:
        raise ConfigError(f"{key}: must be positive, not {value}")


def _finite(key: str, value: Any) -> None:
    """Every number in a section, of which comparisons would let NaN pass."""
    if dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            _finite(f"{key}.{entry.name}".lstrip("."), getattr(value, entry.name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            _finite(key, part)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: must be a finite number, is {value}")


def _fraction(key: str, value: float, *, closed: bool = False) -> None:
    if not (0 <= value < 1 or (closed and value == 1)):
        raise ConfigError(f"{key}: must lie in [0, 1{']' if closed else ')'}, is {value}")
