"""Test run: score the videos of a split and write ``results.json`` and ``predictions.npz``."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from gcvideo import console, distributed
from gcvideo.config import RunConfig, TestConfig, config_to_dict
from gcvideo.data.dataset import ViewDataset
from gcvideo.data.loader import eval_loader
from gcvideo.data.records import Failure, RecordTable
from gcvideo.data.splits import load_split
from gcvideo.device import describe, versions
from gcvideo.errors import CheckpointError, DataError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.eval.scoring import details
from gcvideo.eval.trained import TrainedNetwork
from gcvideo.files import Journal, hash_file, write_json


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
