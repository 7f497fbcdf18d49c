"""Comparison of networks in one table: size, time, memory, throughput, and accuracy where there are predictions.

Measured in one run on one machine: parameters; multiply-adds of a clip; milliseconds a clip of a forward pass and of a
training step; peak memory in bytes; clips per second by batch size; and how the cost of one block grows with its
features. Ratios are to the first network in the same round, and medians over the rounds (see ``timing.py``). Bound: the
first network, if it is the one without blocks.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gcvideo import console, distributed
from gcvideo.analysis.networks import load_predictions, predict_checkpoint
from gcvideo.analysis.statistics import compare_accuracy
from gcvideo.benchmark import harness
from gcvideo.benchmark.blocks import measure_scaling
from gcvideo.benchmark.complexity import count_config, read_configs
from gcvideo.benchmark.timing import Contender, pick_clock, time_contenders
from gcvideo.benchmark.workloads import forward_pass, peak_memory, random_clips, training_step
from gcvideo.config import RunConfig, config_from_dict, config_to_dict
from gcvideo.errors import ConfigError
from gcvideo.eval.predictions import Predictions
from gcvideo.report.comparison import left_out_lines, plots_of, tables_of, write_comparison
from gcvideo.report.plots import png
from gcvideo.train.trainer import Trainer

PARTS = ("forward", "train", "memory", "throughput", "scaling")


class Candidate(NamedTuple):
    """A network to measure, and the shape (3, T, H, W) of the clips that it is measured on."""

    name: str
    config: RunConfig
    shape: tuple[int, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``gcvideo benchmark compare``."""
    about = "YAML files, folders, model names; changes to all"
    parser.add_argument("configs", nargs="+", metavar="CONFIG | key=value", help=about)
    add = parser.add_argument_group("what is measured").add_argument
    add("--frames", type=int, metavar="T", help="frames a clip (default: the config's)")
    add("--size", type=int, metavar="S", help="height and width (default: the config's crop)")
    add("--batch", type=int, default=1, metavar="N", help="clips at a time (default 1)")
    add("--batches", type=int, nargs="+", default=[1, 4], metavar="N", help="for throughput (default 1 4)")
    add("--skip", nargs="+", choices=PARTS, default=[], help="leave these out")
    harness.add_options(parser, rounds=7)
    add = parser.add_argument_group("cost of one block against the size of its features").add_argument
    add("--block-channels", type=int, default=512, metavar="C", help="(default 512)")
    add("--block-frames", type=int, nargs="+", default=[4, 8, 16, 32, 64], metavar="T")
    add("--block-sizes", type=int, nargs="+", default=[7, 10, 14, 20, 28], metavar="S")
    add("--block-at", type=int, nargs=2, default=[8, 14], metavar=("T", "S"), help="(default 8 14)")
    about = "one PLACE (file or run folder) for each config, in order; runs with other seeds are joined by commas"
    add = parser.add_argument_group("accuracy", about).add_argument
    places: dict[str, Any] = {"nargs": "+", "type": lambda text: text.split(","), "metavar": "PLACE"}
    add("--checkpoints", **places, help="test these")
    add("--predictions", **places, help="predictions.npz of earlier tests")
    add("--train", action="store_true", help="train each config first and test it; unfinished runs are resumed")
    add("--data", metavar="ANNOTATION", help="videos to test on (default: each run's own)")
    add = parser.add_argument_group("output").add_argument
    add("--html", metavar="FILE", help="self-contained page with tables and plots")
    add("--png", metavar="DIR", help="the plots as PNG")


def run(args: argparse.Namespace) -> None:
    """Measure, show, and write what was asked for."""
    blocks = {"block_channels": 1, "block_frames": 1, "block_sizes": 2, "block_at": 1}
    device, precision, machine = harness.set_up(args, frames=1, size=1, batch=1, batches=1, **blocks)
    candidates = read_candidates(args)
    console.say(f"{len(candidates)} networks on {machine}")
    accuracies = measure_accuracy(candidates, args, device=device, precision=precision)
    results: dict[str, Any] = {
        "networks": measure_networks(candidates, args, device=device),
        "scaling": None if "scaling" in args.skip else scaling(args, device),
        "machine": machine,
        "clock": pick_clock(device),
    }
    for row, accuracy in zip(results["networks"], accuracies, strict=True):
        row["accuracy"] = accuracy
    harness.finish(args, results, tables_of(results))
    for line in left_out_lines(results["networks"]):
        console.warn(line)
    plots = plots_of(results)
    if args.html:
        write_comparison(args.html, results, plots)
        console.say(f"page: {args.html}")
    if args.png:
        for name, plot in plots.items():
            png(plot, Path(args.png) / f"{name}.png")
        console.say(f"{len(plots)} plots: {args.png}")


def read_candidates(args: argparse.Namespace) -> list[Candidate]:
    """The networks to compare; a ``ConfigError`` for what cannot be measured, before anything is."""
    overrides = [argument for argument in args.configs if "=" in argument]
    found = read_configs([argument for argument in args.configs if "=" not in argument])
    if not found:
        raise ConfigError("give at least one config, for example slow_r50 slow_r50_nl5 slow_r50_gc5")
    if sum(map(bool, (args.checkpoints, args.predictions, args.train))) > 1:
        raise ConfigError("give only one of --checkpoints, --predictions and --train")
    if args.data and not (args.checkpoints or args.train):
        raise ConfigError("--data: says what --checkpoints or --train are tested on; give one of them")
    for option, places in (("checkpoints", args.checkpoints), ("predictions", args.predictions)):
        if places and len(places) != len(found):
            text = "give one for each, in order, with commas between the runs of one config"
            raise ConfigError(f"--{option}: {len(places)} places for {len(found)} configs; {text}")
    if args.train and len({config.run_dir for _, config in found}) < len(found):
        raise ConfigError("--train: two configs have one name and would train in one folder; give each its own name")
    candidates: list[Candidate] = []
    for place, config in found:
        config = config_from_dict(config_to_dict(config), where=place, overrides=[*overrides, f"device={args.device}"])
        frames, size = args.frames or config.data.frames, args.size or config.data.crop
        name = short_name(place, [candidate.name for candidate in candidates])
        candidates.append(Candidate(name, config, (3, frames, size, size)))
    return candidates


def short_name(path: str, used: Sequence[str]) -> str:
    """A short name for a config: that of its file or of its run, unless two have the same."""
    file = Path(path)
    stem = file.parent.name if file.name == "config.yaml" else file.stem if file.suffix in (".yaml", ".yml") else path
    return stem if stem not in used else path if path not in used else f"{path} ({used.count(path) + 1})"


def measure_networks(
    candidates: Sequence[Candidate], args: argparse.Namespace, *, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each network; parts that were skipped are None."""
    how: dict[str, Any] = {"device": device, "precision": args.precision}
    rows: dict[str, dict[str, Any]] = {}
    for name, config, shape in candidates:
        known = count_config(config.model, (1, *shape))._asdict()
        skipped = dict.fromkeys(("forward", "train", "memory", "throughput", "accuracy"))
        rows[name] = {"config": name, **known, "input": [args.batch, *shape], **skipped}

    def times_of(title: str, make: Callable[..., Contender], batch: int, rounds: int) -> dict[str, dict[str, Any]]:
        contenders = {c.name: make(c.config, random_clips((batch, *c.shape)), **how) for c in candidates}
        return time_contenders(contenders, rounds=rounds, device=device, title=title).per_clip(batch)

    for kind, make in (("forward", forward_pass), ("train", training_step)):
        if kind not in args.skip:
            for name, times in times_of(kind, make, args.batch, args.rounds).items():
                rows[name][kind] = times
    for size in args.batches if "throughput" not in args.skip else ():
        for name, times in times_of(f"batch {size}", forward_pass, size, min(args.rounds, 3)).items():
            rates = rows[name]["throughput"] or {}
            rows[name]["throughput"] = {**rates, str(size): 1000 / times["ms_per_clip"]["median"]}
    for name, config, shape in candidates if "memory" not in args.skip else ():
        console.say(f"memory of {name}")
        rows[name]["memory"] = peak_memory(config, (args.batch, *shape), **how)
    return list(rows.values())


def scaling(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Block cost over the length of the clip and over its height and width; see ``measure_scaling``."""
    frames, size = args.block_at
    ways = {
        "frames": [(t, size, size) for t in sorted(set(args.block_frames))],
        "size": [(frames, s, s) for s in sorted(set(args.block_sizes))],
    }
    how: dict[str, Any] = {"channels": args.block_channels, "rounds": min(args.rounds, 5), "device": device}
    costs = {way: measure_scaling(shapes=shapes, **how) for way, shapes in ways.items()}
    return {"channels": args.block_channels, **costs}


def measure_accuracy(
    candidates: Sequence[Candidate], args: argparse.Namespace, *, device: torch.device, precision: str
) -> Sequence[dict[str, Any] | None]:
    """The accuracy of each network where checkpoints or predictions are given, else None for each."""
    places = args.predictions or args.checkpoints
    if args.train:
        places = [[str(candidate.config.run_dir)] for candidate in candidates]
        with distributed.init_from_env(device.type):
            for candidate in candidates:
                Trainer(candidate.config).fit(resume=True)
    if not places:
        return [None] * len(candidates)

    def test(place: str, candidate: Candidate) -> Predictions:
        if args.predictions:
            return load_predictions(place)
        how: dict[str, Any] = {"data": args.data, "device": device, "precision": precision}
        return predict_checkpoint(place, candidate.name, candidate.config.model, **how)

    tests = [[test(place, candidate) for place in own] for candidate, own in zip(candidates, places, strict=True)]
    return compare_accuracy([candidate.name for candidate in candidates], tests)
