"""Config of a run: ``RunConfig``, its sections in ``model``, ``data`` and ``train``.

Typed dataclasses. The docstring's ``Attributes:`` section documents each field and is also its help
(``gcvideo train --help-config``). Each ``__post_init__`` rejects values that contradict each other, with a one-line
``ConfigError`` that names the key. ``gcvideo.config.load`` fills them from YAML files and ``key=value`` overrides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from gcvideo.config.checks import check_ranges
from gcvideo.config.data import DataConfig, TestConfig
from gcvideo.config.model import ModelConfig
from gcvideo.config.train import OptimConfig, TrainConfig
from gcvideo.errors import ConfigError


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
            raise ConfigError(f"optim.warmup_epochs: leaves nothing of train.epochs ({self.train.epochs:g})")

        odd = {"data.augment.class_balanced": self.data.augment.class_balanced, "train.focal": self.train.focal}
        odd |= {"train.class_weights": self.train.class_weights != "none"}
        for key in (key for key, on in odd.items() if on and self.model.multi_label):
            raise ConfigError(f"{key}: is for one label a video, so leave it unset with model.multi_label=true")

    @property
    def run_dir(self) -> Path:
        """Run folder: holds everything the run writes."""
        return Path(self.output).expanduser() / self.name
