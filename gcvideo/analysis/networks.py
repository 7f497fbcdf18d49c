"""Trained networks for an analysis: loaded together with the videos to run them on, and tested on these."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gcvideo import console
from gcvideo.config import RunConfig, config_to_dict
from gcvideo.data.bad_videos import Failure
from gcvideo.data.dataset import VideoViews, ViewDataset
from gcvideo.data.loader import Loader, eval_loader
from gcvideo.data.records import RecordTable
from gcvideo.device import versions
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.test_run import protocol, test_records
from gcvideo.eval.trained import TrainedNetwork, load_trained


def load(args: argparse.Namespace, *, defaults: tuple[str, ...] = ()) -> tuple[TrainedNetwork, RecordTable]:
    """Load the network in float32, and choose the videos.

    Args:
        args: ``checkpoint``, ``overrides`` and ``videos``, how many of them to take.
        defaults: ``key=value`` changes that the user's own come after.
    """
    network = load_trained(args.checkpoint, overrides=[*defaults, *args.overrides])
    records = test_records(network.config, network.classes)
    if args.videos is not None and args.videos < len(records):
        chosen = np.random.default_rng(network.config.seed).choice(len(records), args.videos, replace=False)
        records = records.select(np.sort(chosen))
    return network, records


def view_loader(config: RunConfig, records: RecordTable) -> Loader[VideoViews]:
    """All views of each video, decoded by the config's workers."""
    dataset = ViewDataset(records, data=config.data, test=config.test)
    return eval_loader(dataset, rank=0, world_size=1, workers=min(config.data.workers, len(records)))


def predict(model: nn.Module, config: RunConfig, records: RecordTable, *, title: str) -> Predictions:
    """Test a network on videos, with the views of ``config.test``; ``title`` is shown with the progress."""
    with console.Progress(title, total=len(records), unit="videos") as progress:
        loader = view_loader(config, records)
        return evaluate(model, loader, test=config.test, data=config.data, on_video=lambda _: progress.advance())


def load_predictions(place: str) -> Predictions:
    """The predictions of an earlier test: the file, or the folder of its run."""
    path = Path(place).expanduser()
    return Predictions.load(path / "predictions.npz" if path.is_dir() else path)


def about(network: TrainedNetwork, records: RecordTable, failures: Sequence[Failure]) -> dict[str, Any]:
    """What an analysis writes about its network and its videos, as plain values for JSON."""
    return {
        "checkpoint": str(network.path),
        "annotation": records.source,
        "videos": len(records),
        "protocol": protocol(network.config.test),
        "failures": [failure._asdict() for failure in failures],
        "versions": versions(),
        "config": config_to_dict(network.config),
    }


def warn_of(failures: Sequence[dict[str, Any]]) -> None:
    """Print the first ten videos that could not be read: ``path`` and ``reason`` of each."""
    for failure in failures[:10]:
        console.warn(f"{console.printable(failure['path'])}: {console.printable(failure['reason'])}")
