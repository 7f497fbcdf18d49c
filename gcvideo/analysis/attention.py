"""``gcvideo analyze attention CHECKPOINT``: do attention and output of each block depend on the query position?"""

import argparse
from typing import Any

import torch

from gcvideo import console
from gcvideo.analysis import networks
from gcvideo.analysis.attention_stats import MEASURES, PAPER, PAPER_TABLES, block_statistics, summarize
from gcvideo.benchmark import harness
from gcvideo.console import percent
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import make_views
from gcvideo.data.records import Failure, RecordTable
from gcvideo.errors import ConfigError
from gcvideo.eval.trained import TrainedNetwork
from gcvideo.layers import TracedBlock, record_attention

# One clip from the middle of each video, its centre crop: many videos tell more than many views of a few.
ONE_VIEW = ("test.clips=1", "test.crops=1", "test.whole_frame=false")


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write what was asked for."""
    network, records = networks.load(args, defaults=ONE_VIEW)
    if not any(isinstance(module, TracedBlock) for module in network.model.modules()):
        raise ConfigError(f"{network.path}: this network has neither non-local nor context blocks to look into")
    results = analyze(network, records)
    count = results["videos"] - len(results["failures"])
    title = f"{count} of {results['videos']} videos, {results['protocol']}\n{PAPER_TABLES['legend']}"
    harness.finish(args, results, {title: rows_of(results)})
    for row in results["blocks"]:
        if row["jsd_sampled"]:
            error = f"standard error of the draw {row['jsd_error']:.1g}"
            console.say(f"{row['block']}: JSD from {row['jsd_pairs']:,} pairs drawn for each clip, {error}")
        if row["empty_maps"]:
            empty = percent(row["empty_maps"])
            console.say(f"{row['block']}: {empty} of the queries attend to nothing; they are left out")


def analyze(network: TrainedNetwork, records: RecordTable) -> dict[str, Any]:
    """Measure each block on every view of every video, one at a time.

    The maps of all blocks are held at once: 4 bytes x queries x keys a block, 39 MB for 8 x 28 x 28 positions with
    sub-sampled keys.

    Args:
        network: in float32.
        records: the videos; their views are those of ``network.config.test``.

    Returns:
        what ``--json`` writes: the summary, the statistics of every clip, the paper's, and what was run on what.
    """
    config, blocks = network.config, dict(network.model.named_modules())
    measured: list[dict[str, Any]] = []
    failures: list[Failure] = []
    total = len(records) * config.test.clips * config.test.crops
    with console.Progress("attention", total=total, unit="clips") as progress:
        for video in networks.view_loader(config, records):
            if video.failure is not None:
                failures.append(video.failure)
                continue
            for clip in make_views(video).split(1):  # uint8 (1, C, T, h, w)
                batch = normalize(clip.to(network.device), mean=config.data.mean, std=config.data.std)
                with torch.no_grad(), record_attention(network.model) as traces:
                    network.model(batch)
                seed = config.seed + len(measured)
                found = {name: block_statistics(blocks[name], trace, seed=seed) for name, trace in traces.items()}
                measured.append({"video": video.id, "blocks": found})
                progress.advance()
    return {
        **networks.about(network, records, failures),
        **summarize(network.model, measured),
        "paper_from_memory_unverified": PAPER,
        "clips": measured,
    }


def rows_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of blocks, with their average and the paper's values below."""
    blocks = results["blocks"]
    rows = [*blocks, *([{"block": "average", "kind": "non-local", **results["average"]}] if results["average"] else [])]
    rows += [{"block": "paper *", "kind": kind, **PAPER[kind]} for kind in PAPER if kind in {r["kind"] for r in blocks}]
    table = []
    for row in rows:
        values = {measure.replace("jsd", "JSD"): row.get(measure) for measure in MEASURES}
        shown = {k: f"{v:.1e}" if 0 < v < 0.001 else f"{v:.4f}" for k, v in values.items() if v is not None}
        table.append({"block": row["block"], "kind": row["kind"], **dict.fromkeys(values, "–"), **shown})
    return table
