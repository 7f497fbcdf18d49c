"""``gcvideo analyze attention CHECKPOINT``: do attention and output of each block depend on the query position?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from gcvideo import console
from gcvideo.analysis.attention_stats import MEASURES, PAPER, measure_videos, summarize
from gcvideo.analysis.trained import Trained, add_trained_arguments, load_trained
from gcvideo.config import config_to_dict
from gcvideo.console import percent
from gcvideo.data.dataset import VideoViews, ViewDataset
from gcvideo.data.loader import eval_loader
from gcvideo.device import versions
from gcvideo.errors import ConfigError, DataError
from gcvideo.eval.test_run import protocol
from gcvideo.files import write_json
from gcvideo.layers import BlockTrace, TracedBlock
from gcvideo.report.maps import far_apart_maps
from gcvideo.report.pictures import save_picture

# One clip from the middle of each video, its centre crop: many videos tell more than many views of a few.
ONE_VIEW = ("test.clips=1", "test.crops=1", "test.whole_frame=false")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the analysis's options."""
    parser.usage = "gcvideo analyze attention CHECKPOINT [key=value ...] [options]"
    add_trained_arguments(parser, videos=20)
    parser.add_argument(
        "--pairs", type=int, default=20_000, metavar="N", help="compare at most N pairs of maps for the divergence"
    )
    parser.add_argument("--pictures", metavar="DIR", help="draw the maps of far-apart queries there, as PNG")
    parser.add_argument(
        "--max-pictures", type=int, default=4, metavar="N", help="of how many videos (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure, show, and write what was asked for."""
    if args.pairs < 2:
        raise ConfigError(f"--pairs: {args.pairs} must be 2 or more")
    if args.max_pictures < 0:
        raise ConfigError(f"--max-pictures: {args.max_pictures} must be 0 or more")
    trained = load_trained(args, defaults=ONE_VIEW)
    if not any(isinstance(module, TracedBlock) for module in trained.model.modules()):
        raise ConfigError(f"{trained.path}: this network has neither non-local nor context blocks to look into")
    results = analyze(trained, max_pairs=args.pairs, pictures=args.pictures, max_pictures=args.max_pictures)
    show(results)
    if args.json:
        write_json(args.json, results)


def analyze(
    trained: Trained, *, max_pairs: int = 20_000, pictures: str | None = None, max_pictures: int = 4
) -> dict[str, Any]:
    """All that ``--json`` writes: the summary, every clip's figures, the paper's, and what was run on what."""
    config, records = trained.config, trained.records
    dataset = ViewDataset(records, data=config.data, test=config.test)
    loader = eval_loader(dataset, rank=0, world_size=1, workers=min(config.data.workers, len(records)))
    drawn: list[str] = []
    pictured: set[int] = set()
    with console.Progress("attention", total=len(records) * config.test.clips * config.test.crops, unit="clips") as bar:

        def note(video: VideoViews, clip: Tensor, traces: dict[str, BlockTrace]) -> None:
            bar.advance()
            if pictures is None or video.index in pictured or len(pictured) == max_pictures:
                return
            pictured.add(video.index)
            for name, trace in traces.items():
                if trace.attention is not None:
                    path = Path(pictures) / f"video{video.index:04d}_{name.replace('.', '_')}.png"
                    save_picture(path, far_apart_maps(clip, trace))
                    drawn.append(str(path))

        measured, failures = measure_videos(
            trained.model,
            loader,
            data=config.data,
            device=trained.device,
            max_pairs=max_pairs,
            seed=config.seed,
            on_clip=note,
        )
    if not measured:
        reason = f"; {failures[0].path}: {failures[0].reason}" if failures else ""
        raise DataError(f"{records.source}: no video can be read{reason}")
    return {
        "checkpoint": str(trained.path),
        "annotation": records.source,
        "videos": len(records),
        "view": protocol(config.test),
        **summarize(trained.model, measured),
        "paper_from_memory_unverified": PAPER,
        "clips": measured,
        "failures": [failure._asdict() for failure in failures],
        "pictures": drawn,
        "versions": versions(),
        "config": config_to_dict(config),
    }


def show(results: dict[str, Any]) -> None:
    """The table, with the paper's figures below."""
    answered = results["videos"] - len(results["failures"])
    console.say(f"{answered} of {results['videos']} videos, {results['view']}")
    console.say("Cosine distance (1 - cos) / 2 and Jensen-Shannon divergence in nats, mean over all ordered pairs of")
    console.say("query positions, a position with itself included. Evenness: 1 where a map weighs all positions alike:")
    columns = ["block", "kind", *("JSD" if m == "jsd" else m for m in MEASURES)]
    rows = [[row["block"], row["kind"], *(_figure(row[m]) for m in MEASURES)] for row in results["blocks"]]
    if results["average"] is not None:
        rows.append(["average", "non-local", *(_figure(results["average"][m]) for m in MEASURES)])
    for kind in dict.fromkeys(row["kind"] for row in results["blocks"]):
        if kind in PAPER:
            printed = ["–" if PAPER[kind].get(m) is None else f"{PAPER[kind][m]:.3f}" for m in MEASURES]
            rows.append(["paper *", kind, *printed])
    console.table(rows, columns=columns)
    if any(row["kind"] in PAPER for row in results["blocks"]):
        console.say("* Kinetics-400 figures of the GCNet paper, from memory and not verified")
    if any(row["kind"] not in PAPER for row in results["blocks"]):
        console.say("A context block has one map and one term for all positions: its other distances are 0 by design.")
    sampled = [row for row in results["blocks"] if row["jsd_sampled"]]
    if sampled:
        worst = max(row["jsd_error"] for row in sampled)
        console.say(
            f"JSD of {', '.join(row['block'] for row in sampled)}: from {sampled[0]['jsd_pairs']:,} pairs drawn for "
            f"each clip; standard error of the draw at most {worst:.1g}"
        )
    for row in results["blocks"]:
        if row["empty_maps"]:
            console.say(
                f"{row['block']}: {percent(row['empty_maps'])} of the queries attend to nothing; they are left out"
            )
    for failure in results["failures"][:10]:
        console.warn(f"{console.printable(failure['path'])}: {console.printable(failure['reason'])}")
    if results["pictures"]:
        console.say(f"{len(results['pictures'])} pictures: {Path(results['pictures'][0]).parent}")


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1e}" if 0 < value < 0.001 else f"{value:.4f}"
