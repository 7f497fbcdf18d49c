"""Comparison of networks in one table: size, time, memory, throughput, and accuracy where there are predictions.

Measured in one run on one machine: parameters; multiply-adds of a clip; milliseconds a clip of a forward pass and of a
training step; peak memory in bytes; clips per second by batch size; and how the cost of one block grows with its
features. Ratios are to the first network in the same round, and medians over the rounds (see ``harness.py``). Bound:
the first network, if it is the one without blocks.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gcvideo import console
from gcvideo.analysis.statistics import changed_videos, compare_accuracy
from gcvideo.benchmark.blocks import measure_scaling
from gcvideo.benchmark.complexity import count_config, read_configs
from gcvideo.benchmark.harness import Contender, finish, pick_clock, set_up, time_contenders
from gcvideo.benchmark.workloads import forward_pass, peak_memory, random_clips, training_step
from gcvideo.config import RunConfig, config_from_dict, config_to_dict, load_config
from gcvideo.errors import ConfigError
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.trained import load_trained, run_test
from gcvideo.prepare.synthetic import make_synthetic
from gcvideo.report.page import png, render
from gcvideo.report.pages import plots_of, write_comparison
from gcvideo.train.trainer import Trainer

# Preset, and whether it is --quick -> its networks.
PRESETS = {
    ("paper", False): [f"slow_r50{blocks}" for blocks in ("", "_nl5", "_snl5", "_se_c345", "_gc5", "_gc_c345")],
    ("paper", True): [f"quick/{kind}.yaml" for kind in ("plain", "nl", "snl", "se", "gc")],
}
# What one block is measured on: channels, and the shapes (T, H, W) of features that grow in one way.
CHANNELS = 512
GROWING = {
    "frames": [(t, 14, 14) for t in (4, 8, 16, 32, 64)],
    "size": [(8, side, side) for side in (7, 10, 14, 20, 28)],
}


class Candidate(NamedTuple):
    """A network to measure, and the shape (3, T, H, W) of the clips that it is measured on."""

    name: str
    config: RunConfig
    shape: tuple[int, ...]


def run(args: argparse.Namespace) -> None:
    """Measure, show, and write what was asked for."""
    device, _, machine = set_up(args)
    candidates = read_candidates(args)
    if args.quick:
        args.predictions = [[train_and_test(candidate.config)] for candidate in candidates]
    console.say(f"{len(candidates)} networks on {machine}")
    names = [candidate.name for candidate in candidates]
    tests = [[Predictions.load(place) for place in places] for places in args.predictions or ()]
    accuracies = compare_accuracy(names, tests) if tests else []
    results: dict[str, Any] = {
        "networks": measure_networks(candidates, args, device=device),
        "scaling": None if "scaling" in args.skip else scaling(args.rounds, device),
        "changed": changed_videos(names, tests) if tests else None,
        "machine": machine,
        "clock": pick_clock(device),
    }
    for row, accuracy in zip(results["networks"], accuracies, strict=False):  # none without predictions
        row["accuracy"] = accuracy
    console.say(render("comparison.txt.j2", results=results).rstrip())
    finish(args, results, {})
    plots = plots_of(results)
    if args.html:
        write_comparison(args.html, results, plots, [places[0] for places in args.predictions or ()])
        console.say(f"page: {args.html}")
    if args.png:
        for name, plot in plots.items():
            png(plot, Path(args.png) / f"{name}.png")
        console.say(f"{len(plots)} plots: {args.png}")


def read_candidates(args: argparse.Namespace) -> list[Candidate]:
    """The networks to compare; a ``ConfigError`` for what cannot be measured, before anything is."""
    overrides = [argument for argument in args.configs if "=" in argument]
    places = [argument for argument in args.configs if "=" not in argument]
    if args.quick and (not args.preset or places or args.predictions):
        raise ConfigError("--quick: trains the networks of a --preset, so it takes no configs and no --predictions")
    found = read_configs([*(PRESETS[args.preset, args.quick] if args.preset else ()), *places])
    if not found:
        raise ConfigError("give at least one config, for example slow_r50 slow_r50_nl5 slow_r50_gc5")
    if args.predictions and len(args.predictions) != len(found):
        text = "give one for each, in order, with commas between the runs of one config"
        raise ConfigError(f"--predictions: {len(args.predictions)} places for {len(found)} configs; {text}")
    candidates: list[Candidate] = []
    for place, config in found:
        config = config_from_dict(config_to_dict(config), where=place, overrides=[*overrides, f"device={args.device}"])
        frames, size = args.frames or config.data.frames, args.size or config.data.crop
        taken, file = [candidate.name for candidate in candidates], Path(place)
        short = file.parent.name if file.name == "config.yaml" else file.stem  # of its run, its file, or the model
        name = next(name for name in (short, place, f"{place} ({len(taken) + 1})") if name not in taken)
        candidates.append(Candidate(name, config, (3, frames, size, size)))
    return candidates


def train_and_test(config: RunConfig) -> str:
    """Folder of a run of a config, on the synthetic set if it lacks its videos; one that was tested stays as it is."""
    folder, videos = config.run_dir, Path(str(config.data.train.annotation))
    if (folder / "config.yaml").exists() and load_config(folder / "config.yaml") != config:
        raise ConfigError(f"{folder}: holds a run of another config; remove it, or give output=FOLDER")
    if not (folder / "predictions.npz").exists():
        if not videos.exists():
            make_synthetic(videos.parent)
        Trainer(config).fit(overwrite=True)
        run_test(load_trained(folder), output=folder)
    return str(folder)


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


def scaling(rounds: int, device: torch.device) -> dict[str, Any]:
    """Block cost over the length of the clip and over its height and width; see ``measure_scaling``."""
    how: dict[str, Any] = {"channels": CHANNELS, "rounds": min(rounds, 5), "device": device}
    return {"channels": CHANNELS, **{way: measure_scaling(shapes=shapes, **how) for way, shapes in GROWING.items()}}
