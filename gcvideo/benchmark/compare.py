"""Networks side by side in one table: size, time, memory, throughput, and accuracy where there are answers.

Everything is measured in one run on one machine. Networks alternate, and ratios are to the first config of the list.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gcvideo import console, distributed
from gcvideo.analysis.compare_accuracy import compare_accuracy, load_predictions, predict_checkpoint
from gcvideo.analysis.complexity import count_config, read_configs
from gcvideo.benchmark.memory import peak_memory
from gcvideo.benchmark.scaling import measure_scaling
from gcvideo.benchmark.timing import Action, alternate, compare_times, forward_action, pick_clock, train_action
from gcvideo.config import RunConfig, config_from_dict, config_to_dict
from gcvideo.device import describe, pick_device, pick_precision, tune, versions
from gcvideo.errors import ConfigError
from gcvideo.files import write_json
from gcvideo.report.comparison import plots_of, show, write_comparison
from gcvideo.report.plots import png
from gcvideo.train.trainer import Trainer

PARTS = ("forward", "train", "memory", "throughput", "scaling")


class Candidate(NamedTuple):
    """A network to measure, and the clips it is measured on: uint8 (N, 3, T, H, W)."""

    name: str
    config: RunConfig
    clips: Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``gcvideo benchmark compare``."""
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG | key=value", help="YAML files, folders, model names; changes to all"
    )
    size = parser.add_argument_group("what is measured")
    size.add_argument("--frames", type=int, metavar="T", help="frames a clip (default: the config's)")
    size.add_argument("--size", type=int, metavar="S", help="height and width (default: the config's crop)")
    size.add_argument("--batch", type=int, default=1, metavar="N", help="clips at a time (default 1)")
    size.add_argument(
        "--batches", type=int, nargs="+", default=[1, 4], metavar="N", help="for throughput (default 1 4)"
    )
    size.add_argument("--rounds", type=int, default=7, metavar="N", help="runs of each network (default 7)")
    size.add_argument("--skip", nargs="+", choices=PARTS, default=[], metavar="PART", help=", ".join(PARTS))
    size.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    size.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    size.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    block = parser.add_argument_group("cost of one block against the size of its features")
    block.add_argument("--block-channels", type=int, default=512, metavar="C", help="(default 512)")
    block.add_argument("--block-frames", type=int, nargs="+", default=[4, 8, 16, 32, 64], metavar="T")
    block.add_argument("--block-sizes", type=int, nargs="+", default=[7, 10, 14, 20, 28], metavar="S")
    block.add_argument("--block-at", type=int, nargs=2, default=[8, 14], metavar=("T", "S"), help="(default 8 14)")
    answers = parser.add_argument_group(
        "accuracy",
        "one PLACE for each config in the same order: a file or the folder of a run; or several runs with other seeds, "
        "joined by commas, of which the mean and standard deviation are shown",
    )
    answers.add_argument("--checkpoints", nargs="+", type=_places, metavar="PLACE", help="to be tested")
    answers.add_argument(
        "--predictions", nargs="+", type=_places, metavar="PLACE", help="predictions.npz of earlier tests"
    )
    answers.add_argument(
        "--train",
        action="store_true",
        help="train each config first, and test it; a run that was begun is gone on with",
    )
    answers.add_argument("--data", metavar="ANNOTATION", help="videos to test on (default: each run's own)")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="everything that was measured")
    output.add_argument("--html", metavar="FILE", help="a page with tables and plots, complete in itself")
    output.add_argument("--png", metavar="DIR", help="the plots as PNG")


def _places(text: str) -> list[str]:
    return text.split(",")


def run(args: argparse.Namespace) -> None:
    """Measure, show, and write what was asked for."""
    candidates = read_candidates(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    tune(device)
    precision = pick_precision(args.precision, device)
    console.say(f"{len(candidates)} networks on {describe(device, precision)}")
    if args.train:
        args.checkpoints = [[train(candidate.config, device)] for candidate in candidates]
    accuracies = measure_accuracy(candidates, args, device=device, precision=precision)
    results: dict[str, Any] = {
        "networks": measure_networks(candidates, args, device=device),
        "scaling": None if "scaling" in args.skip else scaling(args, device),
        "machine": describe(device, precision),
        "settings": {
            **{name: getattr(args, name) for name in ("batch", "rounds", "skip")},
            "clock": pick_clock(device).__name__,
        },
        "versions": versions(),
    }
    for row, accuracy in zip(results["networks"], accuracies, strict=True):
        row["accuracy"] = accuracy
    show(results)
    if args.json:
        write_json(args.json, results)
    plots = plots_of(results)
    if args.html:
        write_comparison(args.html, results, plots)
        console.say(f"page: {args.html}")
    if args.png:
        for name, plot in plots.items():
            png(plot, Path(args.png) / f"{name}.png")
        console.say(
            f"{len(plots)} plots: {args.png}" if plots else "no plots: nothing was measured that could be drawn"
        )


def read_candidates(args: argparse.Namespace) -> list[Candidate]:
    """The networks to compare; a ``ConfigError`` for what cannot be measured, before anything is."""
    for name in ("frames", "size", "batch", "rounds", "threads", "block_channels"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be 1 or more")
    if min(*args.batches, *args.block_frames, *args.block_at) < 1 or min(args.block_sizes) < 2:
        raise ConfigError("--batches, --block-frames and --block-at must be 1 or more, --block-sizes 2 or more")
    overrides = [argument for argument in args.configs if "=" in argument]
    found = read_configs([argument for argument in args.configs if "=" not in argument])
    if not found:
        raise ConfigError("give at least one config, for example slow_r50 slow_r50_nl5 slow_r50_gc5")
    for option in ("checkpoints", "predictions"):
        files = getattr(args, option)
        if files and len(files) != len(found):
            raise ConfigError(
                f"--{option}: {len(files)} places for {len(found)} configs; give one for each, in order, "
                "with commas between the runs of one config"
            )
        for places in files or ():
            if not all(places):
                raise ConfigError(f"--{option} {','.join(places)}: runs of one config are joined by single commas")
    if sum(map(bool, (args.checkpoints, args.predictions, args.train))) > 1:
        raise ConfigError("give only one of --checkpoints, --predictions and --train")
    if args.data and not (args.checkpoints or args.train):
        raise ConfigError("--data: says what --checkpoints or --train are tested on; give one of them")
    candidates: list[Candidate] = []
    for name, config in found:
        config = config_from_dict(config_to_dict(config), where=name, overrides=overrides)
        config.device = args.device
        size = args.size or config.data.crop
        shape = (args.batch, 3, args.frames or config.data.frames, size, size)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        candidates.append(Candidate(short_name(name, [c.name for c in candidates]), config, clips))
    folders = [candidate.config.run_dir for candidate in candidates]
    if args.train and len(set(folders)) < len(folders):
        raise ConfigError("--train: two configs have one name and would train in one folder; give each its own name")
    return candidates


def short_name(path: str, used: Sequence[str]) -> str:
    """A short name for a config: its file's, or its run's, unless two have the same."""
    file = Path(path)
    stem = file.parent.name if file.name == "config.yaml" else file.stem if file.suffix in (".yaml", ".yml") else path
    return stem if stem not in used else path if path not in used else f"{path} ({used.count(path) + 1})"


def measure_networks(
    candidates: Sequence[Candidate], args: argparse.Namespace, *, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each network; parts that were skipped are None."""
    rows: list[dict[str, Any]] = []
    for name, config, clips in candidates:
        cost = count_config(config.model, (1, *clips.shape[1:]))
        unmeasured = dict.fromkeys(("forward", "train", "memory", "throughput", "accuracy"))
        known = {"config": name, "params": cost.params, "macs": cost.macs, "input": list(clips.shape)}
        rows.append({**known, **unmeasured})
    for kind, make in (("forward", forward_action), ("train", train_action)):
        if kind in args.skip:
            continue
        actions = {c.name: make(c.config, c.clips, device=device, precision=args.precision) for c in candidates}
        times = compare_times(_run(kind, actions, args.rounds, device), clips=args.batch)
        for row in rows:
            row[kind] = times[row["config"]]
        del actions  # weights, gradients and momentum of all networks
    if "throughput" not in args.skip:
        _measure_throughput(rows, candidates, args, device=device)
    if "memory" not in args.skip:
        with console.Progress("memory", total=len(rows), unit="networks") as progress:
            configs, shapes = [c.config for c in candidates], [c.clips.shape for c in candidates]
            peaks = peak_memory(configs, shapes, device=device, precision=args.precision)
            for row, peak in zip(rows, peaks, strict=True):
                row["memory"] = peak
                progress.advance()
    return rows


def _run(title: str, actions: dict[str, Action], rounds: int, device: torch.device) -> dict[str, list[float]]:
    with console.Progress(title, total=len(actions) * (rounds + 1), unit="runs") as progress:
        return alternate(actions, rounds=rounds, device=device, clock=pick_clock(device), on_run=progress.advance)


def _measure_throughput(
    rows: list[dict[str, Any]],
    candidates: Sequence[Candidate],
    args: argparse.Namespace,
    *,
    device: torch.device,
) -> None:
    """Clips a second of the forward pass, by batch size."""
    for row in rows:
        row["throughput"] = {}
    for size in args.batches:
        actions = {}
        for name, config, clips in candidates:
            batch = clips[:1].expand(size, -1, -1, -1, -1).contiguous()
            actions[name] = forward_action(config, batch, device=device, precision=args.precision)
        times = compare_times(_run(f"batch {size}", actions, min(args.rounds, 3), device), clips=size)
        for row in rows:
            row["throughput"][str(size)] = 1000 / times[row["config"]]["ms_per_clip"]["median"]


def scaling(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Block cost over the length of the clip and over its height and width; see ``measure_scaling``."""
    frames, size = args.block_at
    ways = {
        "frames": [(t, size, size) for t in sorted(set(args.block_frames))],
        "size": [(frames, s, s) for s in sorted(set(args.block_sizes))],
    }
    found: dict[str, Any] = {"channels": args.block_channels}
    with console.Progress("block scaling", total=sum(map(len, ways.values())), unit="sizes") as progress:
        for way, shapes in ways.items():
            found[way] = measure_scaling(
                channels=args.block_channels,
                shapes=shapes,
                rounds=min(args.rounds, 5),
                device=device,
                on_shape=progress.advance,
            )
    return found


def train(config: RunConfig, device: torch.device) -> str:
    """Train a config as ``gcvideo train --resume`` does; returns the folder of its run."""
    console.say(f"training {config.name} in {config.run_dir}")
    with distributed.init_from_env(device.type):
        Trainer(config).fit(resume=True)
    return str(config.run_dir)


def measure_accuracy(
    candidates: Sequence[Candidate], args: argparse.Namespace, *, device: torch.device, precision: str
) -> Sequence[dict[str, Any] | None]:
    """The accuracy of each network where checkpoints or predictions are given, else None for each."""
    if args.predictions:
        predictions = [[load_predictions(place) for place in places] for places in args.predictions]
    elif args.checkpoints:
        how: dict[str, Any] = {"data": args.data, "device": device, "precision": precision}
        predictions = [
            [predict_checkpoint(place, name, config.model, **how) for place in places]
            for (name, config, _), places in zip(candidates, args.checkpoints, strict=True)
        ]
    else:
        return [None] * len(candidates)
    return compare_accuracy([candidate.name for candidate in candidates], predictions)
