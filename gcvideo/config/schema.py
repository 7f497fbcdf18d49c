"""Config of a run, ``RunConfig``, and of its training, ``optim.*`` and ``train.*``.

Typed dataclasses, as the sections in ``model`` and ``data`` are. The docstring's ``Attributes:`` section documents each
field and is also its help (``gcvideo train --help-config``). Each ``__post_init__`` rejects values that contradict each
other, with a one-line ``ConfigError`` that names the key. ``gcvideo.config.load`` fills them from YAML files and
``key=value`` overrides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from gcvideo.config.checks import check_kind, check_ranges
from gcvideo.config.data import DataConfig, TestConfig
from gcvideo.config.model import ModelConfig
from gcvideo.errors import ConfigError


@dataclass(kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule.

    Attributes:
        optimizer: sgd, adamw, or a dotted path to a ``torch.optim.Optimizer`` class of your own ("my_optim:Lion").
        lr: highest learning rate, for ``train.batch_size`` clips per step over all processes.
        lr_for_batch: batch size that ``lr`` was chosen for: the rate used is lr x train.batch_size / lr_for_batch (the
            linear scaling rule of Goyal et al. 2017). Default: ``lr`` is used as it is.
        momentum: momentum of SGD, in [0, 1).
        nesterov: Nesterov momentum of SGD.
        weight_decay: weight decay (L2 penalty), 0 or more.
        decay_norm_and_bias: apply weight decay to batch norms, layer norms and biases too.
        schedule: learning rate over time: cosine, linear, step or constant.
        warmup_epochs: epochs of linear warm-up.
        warmup_start_lr: learning rate at the start of the warm-up; the highest rate where that is lower.
        milestones: step schedule: epochs at which the learning rate is multiplied by ``gamma``.
        gamma: step schedule: factor at each milestone.
        clip_grad_norm: largest L2 norm of all gradients together; 0: no clipping.
        fused: update all parameters in one kernel: measured 3.5 times faster than a loop over the parameters.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    lr_for_batch: int | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_start_lr: float = 0.01
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    clip_grad_norm: float = 0.0
    fused: bool = True

    def __post_init__(self) -> None:
        check_kind("optim.optimizer", self.optimizer, ("sgd", "adamw"))
        check_ranges("optim", self)
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("optim.schedule: 'step' needs optim.milestones, the epochs at which the rate falls")
        if self.nesterov and self.momentum <= 0 and self.optimizer == "sgd":
            raise ConfigError("optim.nesterov: needs optim.momentum above 0")


@dataclass(kw_only=True)
class TrainConfig:
    """Training loop.

    Attributes:
        epochs: passes over the training videos; fractions are allowed.
        batch_size: clips per step, over all processes and accumulation steps together.
        accumulate: micro-batches whose gradients are summed before a step.
        precision: auto (bfloat16 where the device has matrix units for it, else float32), fp32 or bf16.
        channels_last: memory layout: channels_last_3d (true) or contiguous (false). Default: channels_last_3d for bf16
            and on CPUs, the faster layout where it was measured. See gcvideo.device.
        compile: compile the network with torch.compile.
        cuda_graph: record the training step as a CUDA graph, which the host launches as a whole. Default: where network
            and loss are gcvideo's; true: also with your own; false: never.
        loss: dotted path to a loss of your own ("my_loss:Focal"): called with logits (N, K) and labels (N,), or (N, K)
            where clips are mixed, it returns a scalar; a class is instantiated first. Default: cross entropy.
        label_smoothing: label smoothing of cross entropy, in [0, 1).
        class_weights: weights of the classes in cross entropy: none, or balanced: N / (K n) for a class with n of the
            N training videos, K being the classes that occur (King and Zeng 2001), so that all classes count alike and
            the mean weight of a video is 1.
        focal: exponent gamma of the focal loss -(1 - p)^gamma log p of the true class (Lin et al. 2017), which counts
            what is already learned less; 2 is usual, 0 is cross entropy.
        freeze: parts of the network that are not trained: stem, res2 ... head, or backbone for all but the head.
        freeze_epochs: epochs after which the parts in ``freeze`` are trained too; 0: never. With freeze=[backbone] the
            head is trained first, then all.
        ema: decay of the exponential moving average of the weights, which is validated and tested, for example 0.9999
            (Polyak averaging as in Tan and Le 2019); 0: none.
        precise_bn: batches over which batch norm statistics are computed again before each validation (PySlowFast:
            200); 0: none.
        sync_batch_norm: processes whose batch norms share statistics; 1: each its own (PySlowFast), 0: all together.
        multigrid: multigrid training (Wu et al. 2020): none, or long (smaller clips in larger batches in the first
            phases). The learning-rate schedule and ``train.epochs`` are taken as they are; PySlowFast trains 1.5 times
            as many epochs with it. The short cycle (short, both) is not offered: such configs can be tested only.
        multigrid_cycles: long cycles before the last phase of multigrid training.
        static_graph: tell DistributedDataParallel that every step uses the same layers, which saves it a search.
        val_every: epochs between validations; 0: only at the end.
        val_clips: clips per validation video, one crop each.
        early_stop: validations without a better video top-1 after which the training stops; the best checkpoint is what
            ``gcvideo test`` takes. 0: none. With the cosine and linear schedules the learning rate is then still high.
        log_every: steps between log lines.
        wandb: project of Weights & Biases that receives the metrics too; needs ``pip install "gcvideo[wandb]"``.
        checkpoint_every: steps between checkpoints, besides the end of each epoch; 0: none.
        checkpoint_minutes: minutes between checkpoints; 0: none.
        keep_checkpoints: number of latest checkpoints to keep, besides the best.
    """

    epochs: float = 196
    batch_size: int = 64
    accumulate: int = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool | None = None
    compile: bool = False
    cuda_graph: bool | None = None
    loss: str | None = None
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    focal: float = 0.0
    freeze: list[str] = field(default_factory=list)
    freeze_epochs: int = 0
    ema: float = 0.0
    precise_bn: int = 0
    sync_batch_norm: int = 1
    multigrid: Literal["none", "long", "short", "both"] = "none"
    multigrid_cycles: int = 3
    static_graph: bool = False
    val_every: int = 1
    val_clips: int = 1
    early_stop: int = 0
    log_every: int = 10
    wandb: str | None = None
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        check_ranges("train", self)
        if self.multigrid != "none" and self.sync_batch_norm != 1:
            raise ConfigError("train.multigrid: splits batch norms, so train.sync_batch_norm must stay 1")
        if self.early_stop and not self.val_every:
            raise ConfigError("train.early_stop: counts validations, so train.val_every must be above 0")
        if self.freeze_epochs and not self.freeze:
            raise ConfigError("train.freeze_epochs: needs train.freeze, the parts that are frozen for so long")
        for key, off in (("label_smoothing", 0.0), ("focal", 0.0), ("class_weights", "none")):
            if self.loss is not None and getattr(self, key) != off:
                raise ConfigError(f"train.{key}: belongs to cross entropy; set it to {off} with a loss of your own")
        if self.static_graph and self.accumulate > 1:
            raise ConfigError("train.static_graph: does not work with train.accumulate above 1")


@dataclass(kw_only=True)
class RunConfig:
    """Run: everything that its results depend on. The resolved copy is written beside every result.

    Attributes:
        name: name of the run. Default: that of the config file.
        output: folder of runs; the run folder is ``output``/``name``.
        seed: seed of all random numbers, 0 or more.
        device: auto (the GPU if there is one), cpu, cuda (NVIDIA's GPUs) or mps (Apple's).
        model: network: an inflated 3D ResNet, or an own backbone.
        data: videos, clip sampling, crops and decoding.
        test: multi-view test: ``clips`` x ``crops`` views of each video.
        optim: optimizer and learning-rate schedule.
        train: training loop, validation, logs and checkpoints.
    """

    name: str = MISSING
    output: str = "runs"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    test: TestConfig = field(default_factory=TestConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name in (".", ".."):
            raise ConfigError(f"name: {self.name!r} cannot name a run folder")
        check_ranges("", self)
        if self.data.augment.class_balanced and self.train.class_weights != "none":
            raise ConfigError("train.class_weights: data.augment.class_balanced balances the classes already; use one")
        if self.optim.warmup_epochs >= self.train.epochs:
            warmup, epochs = self.optim.warmup_epochs, self.train.epochs
            raise ConfigError(f"optim.warmup_epochs: {warmup:g} leaves nothing of train.epochs={epochs:g}; lower it")

        odd = {"data.augment.class_balanced": self.data.augment.class_balanced, "train.focal": self.train.focal}
        odd |= {"train.class_weights": self.train.class_weights != "none"}
        for key in (key for key, on in odd.items() if on and self.model.multi_label):
            raise ConfigError(f"{key}: is for one label a video, so leave it unset with model.multi_label=true")

    @property
    def run_dir(self) -> Path:
        """Run folder: holds everything the run writes."""
        return Path(self.output).expanduser() / self.name
