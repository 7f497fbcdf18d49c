"""``gcvideo analyze simplify CHECKPOINT``: the accuracy lost when a trained non-local network gets one map a block."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from gcvideo import console
from gcvideo.analysis.simplify import accuracy_lost, non_local_blocks, share_maps
from gcvideo.analysis.trained import Trained, add_trained_arguments, load_trained
from gcvideo.config import config_to_dict
from gcvideo.console import percent
from gcvideo.data.dataset import ViewDataset
from gcvideo.data.loader import eval_loader
from gcvideo.device import versions
from gcvideo.errors import ConfigError, DataError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.test_run import protocol
from gcvideo.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the analysis's options."""
    parser.usage = "gcvideo analyze simplify CHECKPOINT [key=value ...] [options]"
    add_trained_arguments(parser, videos=None)
    parser.add_argument("--each", action="store_true", help="also simplify each block alone (a test for each block)")


def run(args: argparse.Namespace) -> None:
    """Test the network with and without maps of its own for each query; show and write what that cost."""
    trained = load_trained(args)
    results = simplify(trained, each=args.each)
    show(results)
    if args.json:
        write_json(args.json, results)


def simplify(trained: Trained, *, each: bool = False) -> dict[str, Any]:
    """All that ``--json`` writes: the original's accuracy, and for each set of blocks what sharing their maps costs."""
    names = list(non_local_blocks(trained.model))
    if not names:
        raise ConfigError(f"{trained.path}: this network has no non-local block to simplify")
    choices = [names, *([name] for name in names if each and len(names) > 1)]
    original = _test(trained, trained.model, "original")
    if not len(original):
        first = original.failures[0]
        raise DataError(
            f"{trained.records.source}: no video can be read, the first ({first.path}) as it {first.reason}"
        )
    simplified = []
    for blocks in choices:
        title = "all blocks share" if len(blocks) == len(names) else f"{blocks[0]} shares"
        predictions = _test(trained, share_maps(trained.model, blocks), title)
        simplified.append({"blocks": blocks, **accuracy_lost(original, predictions)})
    return {
        "checkpoint": str(trained.path),
        "annotation": trained.records.source,
        "protocol": protocol(trained.config.test),
        "original": original.accuracy(),
        "simplified": simplified,
        "failures": [failure._asdict() for failure in original.failures],
        "versions": versions(),
        "config": config_to_dict(trained.config),
    }


def _test(trained: Trained, model: nn.Module, title: str) -> Predictions:
    config, records = trained.config, trained.records
    dataset = ViewDataset(records, data=config.data, test=config.test)
    loader = eval_loader(dataset, rank=0, world_size=1, workers=min(config.data.workers, len(records)))
    with console.Progress(title, total=len(records), unit="videos") as progress:
        return evaluate(
            model,
            loader,
            test=config.test,
            data=config.data,
            device=trained.device,
            on_video=lambda _: progress.advance(),
        )


def show(results: dict[str, Any]) -> None:
    """A line for the original, and one for each simplification."""
    labelled = bool(results["original"])
    console.say(f"{results['simplified'][0]['videos']} videos, {results['protocol']}; mean map for all queries of:")
    rows = [["no block (original)", *_accuracies(results["original"]), "–", "–", "–"]]
    for row in results["simplified"]:
        name = row["blocks"][0] if len(row["blocks"]) == 1 else f"all {len(row['blocks'])} blocks"
        lost = f"{0 - 100 * row['top1_lost']:+.2f}" if labelled else "–"
        p_value = f"{row['mcnemar']['p_value']:.3g}" if labelled else "–"
        rows.append([name, *_accuracies(row.get("accuracy", {})), lost, p_value, percent(row["agreement"])])
    columns = ["blocks", "video top-1", "video top-5", "clip top-1", "points", "McNemar p", "same answer"]
    console.table(rows, columns=columns)
    for failure in results["failures"][:10]:
        console.warn(f"{console.printable(failure['path'])}: {console.printable(failure['reason'])}")


def _accuracies(accuracy: dict[str, Any]) -> list[str]:
    if not accuracy:
        return ["–"] * 3
    return [percent(accuracy[kind][k]) for kind, k in (("video", "top1"), ("video", "top5"), ("clip", "top1"))]
