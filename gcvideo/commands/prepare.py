"""``gcvideo prepare``: make, index, check and transcode data sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from gcvideo.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand a task, each with its own options."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    _synthetic_arguments(_task(tasks, "synthetic", "make a small synthetic action set", _synthetic))


def run(args: argparse.Namespace) -> int | None:
    """Run the task that was asked for."""
    task: Callable[[argparse.Namespace], int | None] = args.run_task
    return task(args)


def _task(
    tasks: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run_task: Callable[[argparse.Namespace], int | None],
) -> argparse.ArgumentParser:
    parser = tasks.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run_task=run_task)
    parser.add_argument("--workers", type=int, metavar="N", help="processes; by default one a core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    return parser


def _synthetic_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="folder for the videos and their annotations")
    parser.add_argument("--train", type=int, default=240, metavar="N", help="training videos (%(default)s)")
    parser.add_argument("--val", type=int, default=80, metavar="N", help="validation videos (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same videos (%(default)s)")


def _synthetic(args: argparse.Namespace) -> None:
    from gcvideo.data.prepare.synthetic import CLASSES, make_synthetic

    made = make_synthetic(args.out, train=args.train, val=args.val, seed=args.seed, workers=args.workers)
    say(f"{args.train} training and {args.val} validation videos of {len(CLASSES)} classes: {made.train}, {made.val}")
    if args.json:
        from gcvideo.files import write_json

        write_json(args.json, {"train": str(made.train), "val": str(made.val), "classes": list(CLASSES)})
