"""``gcvideo predict VIDEO ... --checkpoint CKPT``: label videos.

Exit code: 0 if every video was answered, 1 if some could not be, 2 if none could be or the command was wrong.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from gcvideo import console
from gcvideo.config import TestConfig
from gcvideo.console import printable
from gcvideo.errors import ConfigError
from gcvideo.files import write_atomically, write_json

if TYPE_CHECKING:
    from gcvideo.engine.predictor import Predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = "Exit code: 0 if every video was answered, 1 if some could not be read, 2 if none could be."
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="a file, a folder, a pattern such as 'clips/*.mp4', the number of a camera, or - for standard input",
    )
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or the folder of a run")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="labels for each video (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the answers as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the answers as CSV: video, rank, label, score, error")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="compile the network first (pays for many videos)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode ahead (default: %(default)s)")
    views = parser.add_argument_group("views of each video; by default those of the test of the checkpoint")
    views.add_argument("--clips", type=int, metavar="N", help="clips, laid evenly over the video")
    views.add_argument("--crops", type=int, choices=(1, 3, 5), help="crops of each clip")
    views.add_argument("--fast", action="store_true", help="the whole frame once instead of crops")


def run(args: argparse.Namespace) -> int | None:
    """Answer every video; prints each as soon as it is known."""
    from gcvideo.engine.predictor import load
    from gcvideo.engine.sources import find_sources

    if args.top < 1:
        raise ConfigError(f"--top: must be at least 1, not {args.top}")
    if args.workers < 0:
        raise ConfigError(f"--workers: must be 0 or more, not {args.workers}")
    sources = find_sources(args.videos)
    predictor = load(args.checkpoint, device=args.device, compile=args.compile)
    test = chosen_views(predictor.config.test, args)

    entries: list[dict[str, Any]] = []
    answers = predictor.answers([s.name for s in sources if s.reason is None], test=test, workers=args.workers)
    for source in sources:
        answer = next(answers) if source.reason is None else None
        reason = source.reason if answer is None else answer.reason
        best = [] if answer is None or answer.scores is None else predictor.best(answer.scores, args.top)
        entries.append({"video": source.name, "error": reason, "predictions": [asdict(p) for p in best]})
        show(entries[-1])
    write_answers(args, predictor, entries)
    failed = sum(entry["error"] is not None for entry in entries)
    return 0 if not failed else 1 if failed < len(entries) else 2


def chosen_views(test: TestConfig, args: argparse.Namespace) -> TestConfig:
    """The views that the options ask for, on top of the checkpoint's own."""
    if args.clips is not None and args.clips < 1:
        raise ConfigError(f"--clips: must be at least 1, not {args.clips}")
    chosen = {"clips": args.clips, "crops": args.crops, "whole_frame": args.fast or None}
    return replace(test, **{name: value for name, value in chosen.items() if value is not None})


def show(entry: dict[str, Any]) -> None:
    """Print the answer of one video: its name, then a line a label; or one line why there is none."""
    name = printable(entry["video"])
    if entry["error"] is not None:
        console.warn(f"{name}: {printable(entry['error'])}")
        return
    console.say(name)
    for prediction in entry["predictions"]:
        console.say(f"  {100 * prediction['score']:6.2f} %  {printable(prediction['label'])}")


def write_answers(args: argparse.Namespace, predictor: Predictor, entries: list[dict[str, Any]]) -> None:
    """Write the files that were asked for."""
    if args.json:
        write_json(args.json, {"checkpoint": predictor.source, "videos": entries})
    if args.csv:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["video", "rank", "label", "score", "error"])
        for entry in entries:
            for rank, prediction in enumerate(entry["predictions"], start=1):
                writer.writerow([entry["video"], rank, prediction["label"], f"{prediction['score']:.6f}", ""])
            if entry["error"] is not None:
                writer.writerow([entry["video"], "", "", "", entry["error"]])
        write_atomically(args.csv, text.getvalue().encode("utf-8", "surrogateescape"))
