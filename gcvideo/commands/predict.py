"""``gcvideo predict VIDEO ... --checkpoint CKPT``: label videos.

Exit code: 0 if every video was answered, 1 if some could not be, 2 if none could be or the command was wrong.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcvideo import console
from gcvideo.commands import timeline
from gcvideo.config import TestConfig
from gcvideo.console import printable
from gcvideo.errors import ConfigError
from gcvideo.files import write_atomically, write_json

if TYPE_CHECKING:
    from gcvideo.eval.inputs import Source
    from gcvideo.eval.predictor import Predictor


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
    parser.add_argument("--csv", metavar="FILE", help="write the answers as CSV: video, start, end, rank, label, ...")
    parser.add_argument("--html", metavar="FILE", help="write a page with thumbnails, bars, timelines and attention")
    parser.add_argument("--maps", metavar="FOLDER", help="write where the network looked: NAME_maps.png, .gif, .mp4")
    parser.add_argument(
        "--query",
        type=float,
        nargs=3,
        default=(0.5, 0.5, 0.5),
        metavar=("T", "Y", "X"),
        help="whose attention non-local blocks show: a place in the clip, in fractions (default: the middle)",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="compile the network first (pays for many videos)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode ahead (default: %(default)s)")
    views = parser.add_argument_group("views of each video; by default those of the test of the checkpoint")
    views.add_argument("--clips", type=int, metavar="N", help="clips, laid evenly over the video")
    views.add_argument("--crops", type=int, choices=(1, 3, 5), help="crops of each clip")
    views.add_argument("--fast", action="store_true", help="the whole frame once instead of crops")
    timeline.add_arguments(parser)


def run(args: argparse.Namespace) -> int | None:
    """Answer every video; prints each as soon as it is known."""
    from gcvideo.eval.inputs import find_sources
    from gcvideo.eval.predictor import load

    for name, least in (("top", 1), ("workers", 0), ("clips", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ConfigError(f"--{name}: must be at least {least}, not {getattr(args, name)}")
    if not all(0 <= fraction <= 1 for fraction in args.query):
        raise ConfigError(f"--query: a place in the clip is three fractions from 0 to 1, not {args.query}")
    sources = find_sources(args.videos)
    timeline.check_arguments(args, sources)
    predictor = load(args.checkpoint, device=args.device, compile=args.compile)
    entries = []
    for entry in answer(predictor, sources, args):
        entries.append(entry)
        show(entry)
    write_answers(args, predictor, entries)
    failed = sum(entry["error"] is not None for entry in entries)
    return 0 if not failed else 1 if failed < len(entries) else 2


def answer(predictor: Predictor, sources: list[Source], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """An entry for each source, in order: its labels, and its timeline where one is wanted; or why there is none."""
    whole = [s for s in sources if s.reason is None and s.kind == "file" and not (args.timeline or args.save)]
    test = chosen_views(predictor.config.test, args)
    answers = predictor.answers([s.name for s in whole], test=test, workers=args.workers)
    for source in sources:
        entry: dict[str, Any] = {"video": source.name, "error": source.reason, "predictions": []}
        if source in whole:
            _, scores, entry["error"] = next(answers)
            if scores is not None:
                entry["predictions"] = [asdict(p) for p in predictor.best(scores, args.top)]
        elif source.reason is None:
            window = replace(test, crops=args.crops or 1)
            if source.kind == "camera":
                window = replace(window, views_per_batch=window.crops)  # each window is answered at once
            entry, found = timeline.answer_timeline(predictor, source, window, args)
            if found is not None and args.save:
                save_annotated(args.save, source.name, found.segments)
        yield entry


def save_annotated(destination: str, source: str, segments: list[Any]) -> None:
    """Write the video back with its labels."""
    from gcvideo.report.labelled_video import annotate_video

    annotate_video(source, destination, segments)
    console.say(f"annotated video: {printable(destination)}")


def chosen_views(test: TestConfig, args: argparse.Namespace) -> TestConfig:
    """The views that the options ask for, on top of the checkpoint's own."""
    chosen = {"clips": args.clips, "crops": args.crops, "whole_frame": args.fast or None}
    return replace(test, **{name: value for name, value in chosen.items() if value is not None})


def show(entry: dict[str, Any]) -> None:
    """Print the answer of one video: its name, then a line a label or segment; or one line why there is none."""
    name = printable(entry["video"])
    if entry["error"] is not None:
        console.warn(f"{name}: {printable(entry['error'])}")
    elif "timeline" in entry:
        timeline.show_timeline(entry)
    else:
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
        writer.writerow(["video", "start", "end", "rank", "label", "score", "error"])
        for entry in entries:
            writer.writerows(_csv_rows(entry))
        write_atomically(args.csv, text.getvalue().encode("utf-8", "surrogateescape"))
    if args.maps:
        write_maps(args, predictor, entries)
    if args.html:
        from gcvideo.report.pages import write_prediction_page

        write_prediction_page(args.html, predictor, entries)
        console.say(f"page: {printable(args.html)}")


def write_maps(args: argparse.Namespace, predictor: Predictor, entries: list[dict[str, Any]]) -> None:
    """Write where the network looked in each answered file."""
    from gcvideo.report.explain import label_in_the_middle, map_stems, save_maps

    answered = [entry for entry in entries if entry["predictions"] and Path(entry["video"]).is_file()]
    stems = map_stems(args.maps, [entry["video"] for entry in answered])
    for entry, stem in zip(answered, stems, strict=True):
        label = label_in_the_middle(entry)
        for file in save_maps(stem, predictor, entry["video"], label, query=tuple(args.query))[:1]:
            console.say(f"maps: {printable(str(file))}, and the same as .gif and .mp4")


def _csv_rows(entry: dict[str, Any]) -> Iterator[list[Any]]:
    """Segments in order of time where there is a timeline, else labels by rank; or the error."""
    if entry["error"] is not None:
        yield [entry["video"], "", "", "", "", "", entry["error"]]
    elif "timeline" in entry:
        for part in entry["timeline"]:
            score = f"{part['score']:.6f}"
            yield [entry["video"], f"{part['start']:.3f}", f"{part['end']:.3f}", 1, part["label"], score, ""]
    else:
        for rank, prediction in enumerate(entry["predictions"], start=1):
            yield [entry["video"], "", "", rank, prediction["label"], f"{prediction['score']:.6f}", ""]
