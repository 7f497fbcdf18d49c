"""Trained networks for an analysis: loaded together with the videos to run them on, and tested on these."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from gcvideo import console
from gcvideo.config import config_to_dict
from gcvideo.data.records import Failure, RecordTable
from gcvideo.errors import DataError
from gcvideo.eval.trained import TrainedNetwork, load_trained, protocol, test_records


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


def about(network: TrainedNetwork, records: RecordTable, failures: Sequence[Failure]) -> dict[str, Any]:
    """What an analysis writes about its network and its videos, as plain values for JSON; warns of unreadable videos.

    Raises:
        DataError: no video can be read.
    """
    for failure in failures[:10]:
        console.warn(f"{console.printable(failure.path)}: {console.printable(failure.reason)}")
    if len(failures) == len(records):
        raise DataError(f"{records.source}: no video can be read; {failures[0].path}: {failures[0].reason}")
    return {
        "checkpoint": str(network.path),
        "annotation": records.source,
        "videos": len(records),
        "protocol": protocol(network.config.test),
        "failures": [failure._asdict() for failure in failures],
        "config": config_to_dict(network.config),
    }
