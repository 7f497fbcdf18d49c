"""Load a trained network: from a checkpoint or a run folder, with the config of its run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gcvideo.config import RunConfig, config_from_dict, load_config
from gcvideo.device import pick_device, tune
from gcvideo.errors import ConfigError
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.weights import find_checkpoint, restore_model


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network in evaluation mode, and what its checkpoint says about it.

    Attributes:
        model: float32, on ``device``.
        config: of the run, with the user's changes.
        path: of the checkpoint file.
        device: where the model is.
        checkpoint: the other entries of the file: ``classes``, ``epoch``, ``step``, ``fingerprint`` and so on.
    """

    model: nn.Module
    config: RunConfig
    path: Path
    device: torch.device
    checkpoint: dict[str, Any]

    @property
    def classes(self) -> list[str] | None:
        """Class names in label order; None where the checkpoint has none."""
        return self.checkpoint.get("classes")

    @property
    def run_folder(self) -> Path:
        """The run that the checkpoint lies in, else the folder that the config names."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.config.run_dir


def load_trained(
    place: str | Path, *, overrides: Sequence[str] = (), device: torch.device | str | None = None
) -> TrainedNetwork:
    """Build the network of a checkpoint, fill it with the weights and move it to the device.

    Args:
        place: a checkpoint file, or a run folder (``checkpoints/best.pt``, else ``checkpoints/last.pt``).
        overrides: changes to the stored config, as ``key=value``. The first may be a config file instead: its data and
            views replace the stored ones.
        device: ``auto``, ``cpu``, ``cuda`` or a device; by default the one that the config names.

    Raises:
        CheckpointError: the file is missing or damaged, or its weights do not fit its config.
        ConfigError: an override is wrong, or would change the network.
    """
    path = find_checkpoint(place)
    checkpoint = load_checkpoint(path)
    config = _resolve_config(checkpoint["config"], path, overrides)
    if not isinstance(device, torch.device):
        device = pick_device(device or config.device)
    tune(device)
    model = restore_model(checkpoint, config, path)
    rest = {name: value for name, value in checkpoint.items() if name != "model"}
    return TrainedNetwork(model.to(device).eval(), config, path, device, rest)


def _resolve_config(stored: dict[str, Any], path: Path, overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        if override.startswith("model."):
            raise ConfigError(f"override {override!r}: the network comes with the checkpoint and cannot be changed")
    if overrides and "=" not in overrides[0]:
        config = load_config(overrides[0], list(overrides[1:]))
        config.model = config_from_dict(stored, where=str(path)).model
        return config
    return config_from_dict(stored, where=str(path), overrides=list(overrides))
