"""What the analyses start from: a trained network, and videos to run it on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from gcvideo.config import RunConfig, SplitConfig
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError
from gcvideo.eval import trained as networks
from gcvideo.eval.test_run import test_records


class Trained(NamedTuple):
    """A network on its device in float32, the resolved config, the chosen videos, and the checkpoint's file."""

    model: nn.Module
    config: RunConfig
    records: RecordTable
    device: torch.device
    path: Path


def add_trained_arguments(parser: argparse.ArgumentParser, *, videos: int | None) -> None:
    """The arguments that ``load_trained`` reads; ``videos`` is the default of ``--videos`` (None: all)."""
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a run (its checkpoints/best.pt is taken)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config in the checkpoint")
    parser.add_argument(
        "--data", metavar="ANNOTATION", help="videos: an annotation or a folder of class folders (default: the run's)"
    )
    default = "all" if videos is None else videos
    parser.add_argument(
        "--videos",
        type=int,
        default=videos,
        metavar="N",
        help=f"how many, drawn by the run's seed (default: {default})",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")


def load_trained(args: argparse.Namespace, *, defaults: tuple[str, ...] = ()) -> Trained:
    """Restore the network and choose the videos.

    Args:
        args: with what ``add_trained_arguments`` declares.
        defaults: ``key=value`` changes that the user's own come after.
    """
    if args.videos is not None and args.videos < 1:
        raise ConfigError(f"--videos: {args.videos} must be 1 or more")
    if args.overrides and "=" not in args.overrides[0]:
        raise ConfigError(f"{args.overrides[0]!r}: write key=value; the videos are given with --data")
    network = networks.load_trained(args.checkpoint, overrides=[*defaults, *args.overrides])
    config = network.config
    if args.data:
        given = any(override.startswith("data.test.root=") for override in args.overrides)
        config.data.test = SplitConfig(annotation=args.data, root=config.data.test.root if given else None)
    records = test_records(config, network.classes)
    if args.videos is not None and args.videos < len(records):
        chosen = np.random.default_rng(config.seed).choice(len(records), args.videos, replace=False)
        records = records.select(np.sort(chosen))
    return Trained(network.model, config, records, network.device, network.path)
