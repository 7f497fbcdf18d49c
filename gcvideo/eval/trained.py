"""Trained network: load it from a checkpoint or a run folder, and test it on the videos of a split."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gcvideo import console, distributed
from gcvideo.config import RunConfig, TestConfig, config_from_dict, config_to_dict, load_config
from gcvideo.data.dataset import ViewDataset
from gcvideo.data.loader import eval_loader
from gcvideo.data.records import Failure, RecordTable
from gcvideo.data.splits import load_split
from gcvideo.device import describe, pick_device, pick_precision, tune, versions
from gcvideo.errors import CheckpointError, ConfigError, DataError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.metrics import DEFAULT_THRESHOLD
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.eval.scoring import details
from gcvideo.files import Journal, hash_file, write_json
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


def run_test(
    network: TrainedNetwork, *, output: Path, compile: bool = False, restart: bool = False
) -> tuple[dict[str, Any], Predictions]:
    """Test on the config's test split and write ``results.json`` and ``predictions.npz`` into ``output``.

    An interrupted test resumes: the scores of finished videos are kept beside the results, in
    ``predictions.npz.partial``, until these are written. The whole-frame protocol writes ``results_fast.json`` and
    ``predictions_fast.npz``, so that its metrics never replace those of the published protocol.

    Args:
        compile: compile the network first.
        restart: discard the finished videos of an interrupted test.

    Returns:
        The content of ``results.json``, and the predictions, on every process.

    Raises:
        CheckpointError: the network's scores of some video are not finite. Nothing is written.
    """
    began = time.monotonic()
    config = network.config
    model, precision = network.for_inference(precision=config.train.precision, compile=compile)
    console.say(f"{network.path} on {describe(network.device, precision)}")
    records = test_records(config, network.classes)
    checkpoint = {"path": str(network.path), "sha256": hash_file(network.path)}
    suffix = "_fast" if config.test.whole_frame else ""
    key = journal_key(config, records, checkpoint["sha256"], precision)
    journal = Journal(output / f"predictions{suffix}.npz.partial", key, rank=distributed.rank())
    if restart and distributed.is_main():
        journal.remove()
    predictions = _score_records(model, records, config, journal=journal)
    if non_finite := predictions.count_non_finite():
        raise CheckpointError(
            f"{network.path}: scores of {non_finite} videos are not finite; test another checkpoint of the run"
        )
    predictions.paths = [records[index].path for index in predictions.indices]
    predictions.classes = list(records.classes or network.classes or ())
    predictions.failures += [Failure(id_, "", "is listed but not among the files") for id_ in records.missing]
    state = network.checkpoint
    results = {
        "protocol": protocol(config.test),
        **predictions.summary(),
        **details(predictions, thresholds=network.thresholds),
        "views_per_video": int(predictions.views.max(initial=0)),
        "annotation": records.source,
        "fingerprint": records.fingerprint,
        "train_fingerprint": state.get("fingerprint"),
        "checkpoint": {**checkpoint, "epoch": state.get("epoch"), "step": state.get("step")},
        "precision": precision,
        "processes": distributed.world_size(),
        "seconds": round(time.monotonic() - began, 2),
        "versions": versions(),
        "config": config_to_dict(config),
    }
    if distributed.is_main():
        kept = ("protocol", "annotation", "fingerprint", "checkpoint", "precision")
        predictions.info = {name: results[name] for name in kept} | {"thresholds": results.get("thresholds")}
        predictions.save(output / f"predictions{suffix}.npz")
        path = output / f"results{suffix}.json"
        training = json.loads(path.read_text()).get("training") if path.exists() else None
        write_json(path, {**results, "training": training} if training else results)
        journal.remove()  # all processes have scored their share
    return results, predictions


def _score_records(model: nn.Module, records: RecordTable, config: RunConfig, *, journal: Journal) -> Predictions:
    """Score the videos that the journal does not have yet, and return the predictions of all."""
    dataset = ViewDataset(records, data=config.data, test=config.test)
    finished = [VideoScores.from_row(row) for row in distributed.broadcast_object(journal.rows())]
    finished = [video for video in finished if not dataset.quarantine.is_bad(video.index, 0)]
    if finished:
        console.say(f"resuming: {len(finished)} of {len(records)} videos were finished by an interrupted test")
    rank, world, done = distributed.rank(), distributed.world_size(), [video.index for video in finished]
    loader = eval_loader(dataset, rank=rank, world_size=world, workers=config.data.worker_count, skip=done)
    share = math.ceil((len(records) - len(finished)) / world)
    with console.Progress("test", total=share, unit="videos") as progress:

        def note(video: VideoScores | Failure) -> None:
            progress.advance()
            if isinstance(video, VideoScores):
                journal.add(str(video.index), video.to_row())

        return evaluate(
            model,
            loader,
            test=config.test,
            data=config.data,
            multi_label=config.model.multi_label,
            finished=finished if distributed.is_main() else (),
            on_video=note,
        )


def test_records(config: RunConfig, classes: Sequence[str] | None) -> RecordTable:
    """The records of the test split; by default those of the val split.

    Args:
        classes: names in label order, as the checkpoint has them. ``data.classes`` must agree, unless its file is
            gone.

    Raises:
        DataError: the config names no videos, or they cannot be found.
    """
    split, name = (config.data.test, "test") if config.data.test.annotation else (config.data.val, "val")
    try:
        records = load_split(config, split, name=name, classes=tuple(classes) if classes else None)
    except DataError as error:
        if "no such" not in str(error):
            raise
        keys = f"data.{name}.annotation=FILE data.{name}.root=FOLDER"
        raise DataError(f"{error}; if the data was moved, add {keys}") from None
    if records is None:
        raise DataError("no videos to test on: set data.test.annotation, or data.val.annotation")
    return records


def protocol(test: TestConfig) -> str:
    """The test protocol in a few words, for tables: "10 clips x 3 crops of 256"."""
    if test.whole_frame:
        return f"fast: {test.clips} clips x the whole frame, short side {test.short_side}"
    return f"{test.clips} clips x {test.crops} crops of {test.crop}"


def journal_key(config: RunConfig, records: RecordTable, checkpoint_hash: str, precision: str) -> dict[str, Any]:
    """Everything a video's scores depend on. All three ensembles are kept, so the choice of one is not among it."""
    incidental = ("ensemble", "views_per_batch", "workers", "train", "quarantine")
    key: dict[str, Any] = {"checkpoint": checkpoint_hash, "records": records.fingerprint, "ids": records.order}
    for name, section in (("test", config.test), ("data", config.data)):
        key[name] = {field: value for field, value in asdict(section).items() if field not in incidental}
    return {**key, "precision": precision}
