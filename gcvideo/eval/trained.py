"""Load a trained network: from a checkpoint or a run folder, with the config of its run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gcvideo.config import RunConfig, config_from_dict, load_config
from gcvideo.device import pick_device, pick_precision, tune
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.eval.metrics import DEFAULT_THRESHOLD
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.predict.exported import SUFFIXES, ExportedNetwork, open_exported
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.weights import find_checkpoint, read_published, restore_model


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network in evaluation mode, and what its checkpoint says about it.

    Attributes:
        model: float32, on ``device``; or that of an exported file, as it was written.
        config: of the run, with the user's changes.
        path: of the checkpoint or exported file.
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
    def thresholds(self) -> list[float] | None:
        """Scores (K,) above which a class is a label of a video, where ``model.multi_label`` gives several."""
        known = self.checkpoint.get("thresholds") or self.checkpoint.get("details", {}).get("thresholds")
        known = known or [DEFAULT_THRESHOLD] * self.config.model.num_classes
        return known if self.config.model.multi_label else None

    @property
    def run_folder(self) -> Path:
        """The run that the checkpoint lies in, else the folder that the config names."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.config.run_dir

    def for_inference(self, *, precision: str, compile: bool = False) -> tuple[nn.Module, str]:
        """The network optimized for inference, and its precision; an exported one runs as it was written.

        Args:
            precision: ``auto``, ``fp32`` or ``bf16``.
            compile: see ``optimize_for_inference``.

        Raises:
            ConfigError: an exported network would have to be changed.
        """
        if isinstance(self.model, ExportedNetwork):
            written = self.model.about["precision"]
            if compile or precision not in ("auto", written):
                change = "compiled" if compile else f"run in {precision}"
                raise ConfigError(f"{self.path}: was exported in {written} and cannot be {change}; take the checkpoint")
            return self.model, written
        chosen = pick_precision(precision, self.device)
        return optimize_for_inference(self.model, precision=chosen, compile=compile), chosen


def load_trained(
    place: str | Path,
    *,
    overrides: Sequence[str] = (),
    device: torch.device | str | None = None,
    engine: str | None = None,
) -> TrainedNetwork:
    """Build the network of a checkpoint, fill it with the weights and move it to the device.

    Args:
        place: a checkpoint file, a run folder (``checkpoints/best.pt``, else ``checkpoints/last.pt``), the folder of a
            published network, or ``hf:org/name``.
        overrides: changes to the stored config, as ``key=value``. The first may be a config file instead: its data and
            views replace the stored ones.
        device: ``auto``, ``cpu``, ``cuda``, ``mps`` or a device; by default the one that the config names.
        engine: what runs an exported ONNX file, ``onnxruntime`` or ``openvino``; None refuses exported files, for
            callers that look inside the network.

    Raises:
        CheckpointError: the file is missing or damaged, or its weights do not fit its config.
        ConfigError: an override is wrong, or would change the network.
    """
    path = find_checkpoint(place)
    if path.suffix in SUFFIXES:
        return _load_exported(path, overrides, device, engine)
    checkpoint = read_published(path, place) if path.suffix == ".safetensors" else load_checkpoint(path)
    config = _resolve_config(checkpoint["config"], path, overrides)
    if not isinstance(device, torch.device):
        device = pick_device(device or config.device)
    tune(device)
    model = restore_model(checkpoint, config, path)
    rest = {name: value for name, value in checkpoint.items() if name != "model"}
    return TrainedNetwork(model.to(device).eval(), config, path, device, rest)


def _load_exported(
    path: Path, overrides: Sequence[str], device: torch.device | str | None, engine: str | None
) -> TrainedNetwork:
    if engine is None:
        raise CheckpointError(f"{path}: is an exported file, which shows no layers; give the checkpoint it was made of")
    settings = [override.removeprefix("device=") for override in overrides if override.startswith("device=")]
    model = open_exported(path, device=device or (settings or ["auto"])[-1], engine=engine).eval()
    stored = {"name": path.name, **{section: model.about[section] for section in ("model", "data", "test")}}
    config = _resolve_config(stored, path, overrides)
    rest = {key: model.about.get(key) for key in ("classes", "thresholds")}
    return TrainedNetwork(model, config, path, model.place.device, rest)


def _resolve_config(stored: dict[str, Any], path: Path, overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        if override.startswith("model."):
            raise ConfigError(f"override {override!r}: the network comes with the checkpoint and cannot be changed")
    if overrides and "=" not in overrides[0]:
        config = load_config(overrides[0], list(overrides[1:]))
        config.model = config_from_dict(stored, where=str(path)).model
        return config
    return config_from_dict(stored, where=str(path), overrides=list(overrides))
