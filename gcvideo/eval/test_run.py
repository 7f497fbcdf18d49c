"""A whole test run: a checkpoint, the videos of a split, and what is written about them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from gcvideo import console, distributed
from gcvideo.config import RunConfig, TestConfig, config_to_dict
from gcvideo.data.bad_videos import Failure
from gcvideo.data.dataset import ViewDataset
from gcvideo.data.loader import eval_loader
from gcvideo.data.records import RecordTable
from gcvideo.data.splits import load_split
from gcvideo.device import versions
from gcvideo.errors import CheckpointError, DataError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.files import write_json
from gcvideo.journal import Journal


def run_test(
    model: nn.Module,
    config: RunConfig,
    *,
    output: Path,
    checkpoint: dict[str, Any],
    precision: str,
    restart: bool = False,
) -> tuple[dict[str, Any], Predictions]:
    """Test on the config's test split and write ``results.json`` and ``predictions.npz`` into ``output``.

    A run that was cut off is taken up again: the videos that it finished are kept in ``output/test_parts`` until the
    results are there. The whole-frame protocol writes ``results_fast.json`` and ``predictions_fast.npz``, so that its
    figures never take the place of the published protocol's.

    Args:
        model: on its device, as it is to run.
        checkpoint: what the results say of it: ``path``, ``sha256``, ``classes``, ``epoch``, ``step``, ``fingerprint``.

    Returns:
        What is in ``results.json``, and the predictions, on every process.

    Raises:
        CheckpointError: the network's scores of some video are not finite. Nothing is written.
    """
    began = time.monotonic()
    records = test_records(config, checkpoint.get("classes"))
    device = next(model.parameters()).device
    journal = _journal(output, _journal_key(config, records, checkpoint["sha256"], precision))
    if restart and distributed.is_main():
        _remove(journal)
    dataset = ViewDataset(records, data=config.data, test=config.test)
    finished = [VideoScores.from_row(row) for row in distributed.broadcast_object(journal.rows())]
    finished = [video for video in finished if not dataset.quarantine.is_bad(video.index, 0)]
    if finished:
        console.say(f"{len(finished)} of {len(records)} videos were finished by a run that was cut off and are kept")

    loader = eval_loader(
        dataset,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        workers=config.data.workers,
        skip=[video.index for video in finished],
    )
    share = math.ceil((len(records) - len(finished)) / distributed.world_size())
    failed = 0
    with console.Progress("test", total=share, unit="videos") as progress:

        def note(video: VideoScores | Failure) -> None:
            nonlocal failed
            if isinstance(video, VideoScores):
                journal.add(str(video.index), video.to_row())
            else:
                failed += 1
            progress.advance(1, **({"failed": failed} if failed else {}))

        try:
            predictions = evaluate(
                model,
                loader,
                test=config.test,
                data=config.data,
                device=device,
                precision=precision,
                finished=finished if distributed.is_main() else (),
                on_video=note,
            )
        finally:
            journal.close()
    spoilt = predictions.count_non_finite()
    if spoilt:
        distributed.barrier()  # nobody forgets the parts before all are written
        if distributed.is_main():
            _remove(journal)
        raise CheckpointError(
            f"{checkpoint.get('path')}: its scores of {spoilt} of {len(predictions)} videos are not finite, so its "
            "weights are spoilt or too large; test another checkpoint of the run"
        )
    results = _write(predictions, records, config, output, checkpoint, precision, time.monotonic() - began)
    distributed.barrier()  # nobody forgets the parts before the results are written
    if distributed.is_main():
        _remove(journal)
    return results, predictions


def test_records(config: RunConfig, classes: Sequence[str] | None) -> RecordTable:
    """The records of the test split; by default those of the val split.

    Args:
        classes: names in label order, as the checkpoint has them. They take the place of ``data.classes``, whose file
            need not be here any more.
    """
    split, name = (config.data.test, "test") if config.data.test.annotation else (config.data.val, "val")
    if classes:
        config = replace(config, data=replace(config.data, classes=None))
    records = load_split(config, split, name=name, classes=tuple(classes) if classes else None)
    if records is None:
        raise DataError(
            "no videos to test on: set data.test.annotation (or data.val.annotation) to an annotation file or a "
            "folder of class folders"
        )
    return records


def protocol(test: TestConfig) -> str:
    """The test protocol in a few words, for tables: "10 clips x 3 crops of 256"."""
    if test.whole_frame:
        return f"fast: {test.clips} clips x the whole frame, short side {test.short_side}"
    return f"{test.clips} clips x {test.crops} crops of {test.crop}"


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _journal(output: Path, key: dict[str, Any]) -> Journal:
    """The journal of this test's finished videos; another test, with another key, has its own."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Journal(output / "test_parts" / f"{digest}.jsonl", key, rank=distributed.rank())


def _remove(journal: Journal) -> None:
    journal.remove()
    with suppress(OSError):  # absent, or it holds the journal of another test
        journal.path.parent.rmdir()


def _journal_key(config: RunConfig, records: RecordTable, checkpoint_hash: str, precision: str) -> dict[str, Any]:
    """Everything a video's scores depend on. All three ensembles are kept, so the choice of one is not among it."""
    test = {name: value for name, value in asdict(config.test).items() if name not in ("ensemble", "views_per_batch")}
    data = {
        name: value for name, value in asdict(config.data).items() if name not in ("workers", "train", "quarantine")
    }
    return {
        "checkpoint": checkpoint_hash,
        "records": records.fingerprint,
        "ids": records.order,
        "test": test,
        "data": data,
        "precision": precision,
    }


def _write(
    predictions: Predictions,
    records: RecordTable,
    config: RunConfig,
    output: Path,
    checkpoint: dict[str, Any],
    precision: str,
    seconds: float,
) -> dict[str, Any]:
    predictions.paths = [records[index].path for index in predictions.indices]
    predictions.classes = list(records.classes or checkpoint.get("classes") or ())
    predictions.failures += [Failure(id_, "", "is listed but not among the files") for id_ in records.missing]
    stamp = {name: checkpoint.get(name) for name in ("path", "sha256", "epoch", "step")}
    results = {
        "protocol": protocol(config.test),
        **predictions.accuracy(),
        "ensemble": config.test.ensemble,
        "videos": len(records) + len(records.missing),
        "answered": len(predictions),
        "failed": len(predictions.failures),
        "views_per_video": int(predictions.views.max()) if len(predictions) else 0,
        "views": int(predictions.views.sum()),
        "annotation": records.source,
        "fingerprint": records.fingerprint,
        "train_fingerprint": checkpoint.get("fingerprint"),
        "checkpoint": stamp,
        "precision": precision,
        "processes": distributed.world_size(),
        "seconds": round(seconds, 2),
        "failures": [failure._asdict() for failure in predictions.failures],
        "versions": versions(),
        "config": config_to_dict(config),
    }
    kept = ("protocol", "annotation", "fingerprint", "checkpoint", "precision")
    predictions.info = {name: results[name] for name in kept}
    if distributed.is_main():
        suffix = "_fast" if config.test.whole_frame else ""
        predictions.save(output / f"predictions{suffix}.npz")
        path = output / f"results{suffix}.json"
        write_json(path, {**results, **_training_part(path)})
    return results


def _training_part(path: Path) -> dict[str, Any]:
    """What the training has written into the run's ``results.json`` stays there."""
    try:
        return {"training": json.loads(path.read_text())["training"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
