"""The sliding-window half of ``gcvideo predict``: long videos, cameras and pipes, answered moment by moment."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from gcvideo import console
from gcvideo.console import printable
from gcvideo.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from gcvideo.config import TestConfig
    from gcvideo.eval.inputs import Source
    from gcvideo.eval.predictor import Predictor, Timeline
    from gcvideo.eval.timeline import Window
    from gcvideo.video.stream import FrameStream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the sliding window."""
    group = parser.add_argument_group("sliding window, for long videos; cameras and standard input always use it")
    group.add_argument("--timeline", action="store_true", help="say what happens when, not only what the video shows")
    group.add_argument("--step", type=float, metavar="S", help="seconds between windows (default: half a window)")
    group.add_argument("--smooth", type=float, default=2.0, metavar="S", help="average over S seconds (%(default)s)")
    group.add_argument(
        "--min-length", type=float, default=1.0, metavar="S", help="shortest segment in seconds (%(default)s)"
    )
    group.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds of video, as for a camera")
    group.add_argument("--save", metavar="FILE", help="write the video back with its labels in the picture")


def check_arguments(args: argparse.Namespace, sources: list[Source]) -> None:
    """Refuse what cannot be meant."""
    for name in ("step", "seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name}: must be positive, not {value:g}")
    for name in ("smooth", "min_length"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')}: must be 0 or more, not {getattr(args, name):g}")
    if args.save and (len(sources) != 1 or sources[0].kind != "file"):
        raise ConfigError("--save writes one video back: give a single video file")
    if args.save and sources[0].reason is None:
        from gcvideo.report.labelled_video import check_destination

        check_destination(sources[0].name, args.save)


def answer_timeline(
    predictor: Predictor, source: Source, test: TestConfig, args: argparse.Namespace
) -> tuple[dict[str, Any], Timeline | None]:
    """The entry of one source for the output files, and its timeline; shows windows of live sources as they come."""
    live = source.kind != "file"
    place: Any = {"file": source.name, "camera": f"camera:{source.name}", "stdin": sys.stdin.buffer}[source.kind]
    said = -1
    with console.Progress("windows", unit="windows") as progress, _stop_politely(live) as stop:

        def note(window: Window, stream: FrameStream) -> bool:
            nonlocal said
            of = "" if stream.expected is None or live else f" of {console.duration(stream.expected / stream.fps)}"
            progress.advance(1, at=f"{console.duration(window.end)}{of}")
            best = predictor.best(window.scores, 1)[0]
            if live and said != best.index:
                said = best.index
                console.say(f"{console.clock(window.start)}  {100 * best.score:6.2f} %  {printable(best.label)}")
            return stop.is_set() or (args.seconds is not None and window.end >= args.seconds)

        options = {"step": args.step, "smooth": args.smooth, "min_length": args.min_length, "test": test}
        try:
            timeline = predictor.timeline(place, **options, on_window=note)
        except VideoError as error:
            return {"video": source.name, "error": error.reason, "predictions": []}, None
    return timeline_entry(predictor, source.name, timeline, args.top), timeline


@contextmanager
def _stop_politely(live: bool) -> Iterator[threading.Event]:
    """The first Ctrl-C ends a live source as if it had ended by itself; the second one ends the command."""
    stop = threading.Event()

    def interrupted(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if not live or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def timeline_entry(predictor: Predictor, name: str, timeline: Timeline, top: int) -> dict[str, Any]:
    """A timeline as plain values. ``predictions`` are those of the whole: the mean over the windows."""
    mean = np.mean([window.scores for window in timeline.windows], axis=0)
    return {
        "video": name,
        "error": None,
        "warning": timeline.problem,
        "duration": timeline.duration,
        "predictions": [asdict(p) for p in predictor.best(mean, top)],
        "timeline": [asdict(segment) for segment in timeline.segments],
        "windows": [
            {"start": w.start, "end": w.end, "predictions": [asdict(p) for p in predictor.best(w.scores, top)]}
            for w in timeline.windows
        ],
    }


def show_timeline(entry: dict[str, Any]) -> None:
    """Print the segments of one video."""
    console.say(printable(entry["video"]))
    for segment in entry["timeline"]:
        span = f"{console.clock(segment['start'])} to {console.clock(segment['end'])}"
        console.say(f"  {span}  {100 * segment['score']:6.2f} %  {printable(segment['label'])}")
    if entry["warning"]:
        console.warn(f"{printable(entry['video'])}: {printable(entry['warning'])}")
