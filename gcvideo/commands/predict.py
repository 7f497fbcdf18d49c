"""``gcvideo predict VIDEO ... --checkpoint CKPT``: label videos.

Exit code: 0 if every video was labelled, 1 if some could not be read, 2 if none could be or the command was wrong.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gcvideo import console
from gcvideo.arguments import require_numbers
from gcvideo.console import printable
from gcvideo.errors import ConfigError, VideoError
from gcvideo.files import write_atomically, write_json

if TYPE_CHECKING:
    from gcvideo.config import TestConfig
    from gcvideo.predict.inputs import Source
    from gcvideo.predict.predictor import Prediction, Predictor
    from gcvideo.predict.timeline import Segment, Timeline, Window
    from gcvideo.video import FrameStream

Entry = dict[str, Any]  # what --json writes about one video


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = "Exit code: 0 if every video was labelled, 1 if some could not be read, 2 if none could be."
    add = parser.add_argument
    text = "a file, a folder, a pattern such as 'clips/*.mp4', the number of a camera, or - for standard input"
    add("videos", nargs="+", metavar="VIDEO", help=text)
    add("--checkpoint", required=True, help="a checkpoint, or the folder of a run")
    add("--top", type=int, default=5, metavar="K", help="labels for each video (default: %(default)s)")
    add("--csv", metavar="FILE", help="write the predictions as CSV: video, start, end, rank, label, score")
    add("--html", metavar="FILE", help="write a page with thumbnails, bars, timelines and attention")
    add("--maps", metavar="FOLDER", help="write attention maps: NAME_maps.png, .gif, .mp4")
    text = "query position of the maps of non-local blocks, each in [0, 1] (default: the middle)"
    add("--query", type=float, nargs=3, default=(0.5, 0.5, 0.5), metavar=("T", "Y", "X"), help=text)
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--compile", action="store_true", help="compile the network first (pays for many videos)")
    add("--workers", type=int, default=2, help="processes that decode ahead (default: %(default)s)")
    add = parser.add_argument_group("views of each video; by default those of the test of the checkpoint").add_argument
    add("--clips", type=int, metavar="N", help="clips, spread evenly over the video")
    add("--crops", type=int, choices=(1, 3, 5), help="crops of each clip")
    add("--fast", action="store_true", help="the whole frame once instead of crops")
    text = "sliding window, for long videos; cameras and standard input always use it"
    add = parser.add_argument_group(text).add_argument
    add("--timeline", action="store_true", help="say what happens when, not only what the video shows")
    add("--step", type=float, metavar="S", help="seconds between windows (default: half a window)")
    add("--smooth", type=float, default=2.0, metavar="S", help="average over S seconds (%(default)s)")
    add("--min-length", type=float, default=1.0, metavar="S", help="shortest segment in seconds (%(default)s)")
    add("--seconds", type=float, metavar="S", help="stop after S seconds of video, as for a camera")
    add("--save", metavar="FILE", help="write the video with its labels burnt in")


def run(args: argparse.Namespace) -> int:
    """Label every video; prints each as soon as it is known."""
    from gcvideo.predict.inputs import find_sources
    from gcvideo.predict.predictor import load

    require_numbers(args, top=1, workers=0, clips=1, smooth=0, min_length=0, step=1e-3, seconds=1e-3)
    if not all(0 <= fraction <= 1 for fraction in args.query):
        raise ConfigError(f"--query: a position in the clip is three fractions from 0 to 1, not {args.query}")
    sources = find_sources(args.videos)
    if args.save:
        from gcvideo.report.labelled_video import check_destination

        if len(sources) != 1 or sources[0].kind != "file":
            raise ConfigError("--save writes one video back: give a single video file")
        check_destination(sources[0].name, args.save)
    predictor = load(args.checkpoint, device=args.device, compile=args.compile)
    entries = []
    for entry in label_sources(predictor, sources, args):
        entries.append(entry)
        _show(entry)
    _write(args, predictor, entries)
    failed = sum(entry["error"] is not None for entry in entries)
    return 0 if not failed else 1 if failed < len(entries) else 2


def label_sources(predictor: Predictor, sources: list[Source], args: argparse.Namespace) -> Iterator[Entry]:
    """An entry for each source, in order: its labels, and its timeline if wanted; or the error."""
    sliding = args.timeline or args.save
    files = [source.name for source in sources if source.kind == "file" and not sliding]
    chosen = {"clips": args.clips, "crops": args.crops, "whole_frame": args.fast or None}
    test = replace(predictor.config.test, **{key: value for key, value in chosen.items() if value is not None})
    scores = predictor.score_files(files, test=test, workers=args.workers)  # decodes ahead, in the order of the files
    for source in sources:
        entry: Entry = {"video": source.name, "error": source.reason, "predictions": []}
        try:
            if source.kind == "file" and not sliding:
                found = next(scores)
                if isinstance(found, tuple):
                    raise VideoError(source.name, found.reason)
                entry["predictions"] = _plain(predictor.best(found, args.top))
            elif source.kind != "refused":
                timeline = _run_timeline(predictor, source, replace(test, crops=args.crops or 1), args)
                entry = timeline_entry(predictor, source.name, timeline, args.top)
        except VideoError as error:
            entry["error"] = error.reason
        yield entry


def _run_timeline(predictor: Predictor, source: Source, test: TestConfig, args: argparse.Namespace) -> Timeline:
    """Slide the window, with progress; a camera or standard input also prints each new label as it comes."""
    live = source.kind != "file"
    place: Any = {"file": source.name, "camera": f"camera:{source.name}", "stdin": sys.stdin.buffer}[source.kind]
    if source.kind == "camera":
        test = replace(test, views_per_batch=test.crops)  # score each window at once
    labels = [""]
    with console.Progress("windows", unit="windows") as progress:

        def note(window: Window, stream: FrameStream) -> bool:
            total = "" if stream.expected is None or live else f" of {console.duration(stream.expected / stream.fps)}"
            progress.advance(1, at=f"{console.duration(window.end)}{total}")
            best = predictor.best(window.scores, 1)[0]
            if live and labels[-1] != best.label:
                labels.append(best.label)
                console.say(f"{console.clock(window.start)}  {100 * best.score:6.2f} %  {printable(best.label)}")
            return args.seconds is not None and window.end >= args.seconds

        options = {"step": args.step, "smooth": args.smooth, "min_length": args.min_length}
        timeline = predictor.timeline(place, **options, test=test, live=live, on_window=note)
    if args.save:
        from gcvideo.report.labelled_video import annotate_video

        annotate_video(source.name, args.save, timeline.segments)
        console.say(f"annotated video: {printable(args.save)}")
    return timeline


def timeline_entry(predictor: Predictor, video: str, timeline: Timeline, top: int) -> Entry:
    """A timeline as plain values; ``predictions`` are those of the mean over the windows."""
    mean = np.mean([window.scores for window in timeline.windows], axis=0)
    return {
        "video": video,
        "error": None,
        "warning": timeline.problem,
        "duration": timeline.duration,
        "predictions": _plain(predictor.best(mean, top)),
        "timeline": _plain(timeline.segments),
        "windows": [
            {"start": w.start, "end": w.end, "predictions": _plain(predictor.best(w.scores, top))}
            for w in timeline.windows
        ],
    }


def _plain(items: Sequence[Prediction] | Sequence[Segment]) -> list[dict[str, Any]]:
    return [asdict(item) for item in items]


def _show(entry: Entry) -> None:
    """Print one video: its name, then a line for each label or segment; or one line with the error."""
    name = printable(entry["video"])
    if entry["error"] is not None:
        console.warn(f"{name}: {printable(entry['error'])}")
        return
    console.say(name)
    for part in entry.get("timeline") or entry["predictions"]:
        span = f"{console.clock(part['start'])} to {console.clock(part['end'])}  " if "start" in part else ""
        console.say(f"  {span}{100 * part['score']:6.2f} %  {printable(part['label'])}")
    if entry.get("warning"):
        console.warn(f"{name}: {printable(entry['warning'])}")


def _write(args: argparse.Namespace, predictor: Predictor, entries: list[Entry]) -> None:
    """Write the files that were asked for."""
    if args.json:
        write_json(args.json, {"checkpoint": predictor.source, "videos": entries})
    if args.csv:
        text = io.StringIO()
        csv.writer(text).writerows(_csv_rows(entries))
        write_atomically(args.csv, text.getvalue().encode("utf-8", "surrogateescape"))
    if args.maps:
        from gcvideo.report.maps import explain_video, map_stems, save_maps

        labelled = [entry for entry in entries if entry["predictions"] and Path(entry["video"]).is_file()]
        stems = map_stems(args.maps, [entry["video"] for entry in labelled])
        for entry, stem in zip(labelled, stems, strict=True):
            if rows := explain_video(predictor, entry, query=tuple(args.query)):
                save_maps(stem, rows)
                console.say(f"maps: {printable(str(stem))}.png, and the same as .gif and .mp4")
    if args.html:
        from gcvideo.report.pages import write_prediction_page

        write_prediction_page(args.html, predictor, entries)
        console.say(f"page: {printable(args.html)}")


def _csv_rows(entries: list[Entry]) -> Iterator[list[Any]]:
    """Segments in order of time where there is a timeline, else labels by rank; or the error."""
    yield ["video", "start", "end", "rank", "label", "score", "error"]
    for entry in entries:
        if entry["error"] is not None:
            yield [entry["video"], "", "", "", "", "", entry["error"]]
        for rank, part in enumerate(entry.get("timeline") or entry["predictions"], start=1):
            place = [f"{part['start']:.3f}", f"{part['end']:.3f}", 1] if "start" in part else ["", "", rank]
            yield [entry["video"], *place, part["label"], f"{part['score']:.6f}", ""]
