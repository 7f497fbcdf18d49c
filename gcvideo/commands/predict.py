"""``gcvideo predict VIDEO ... --checkpoint CKPT``: label videos.

Exit code: 0 if every video was labelled, 1 if some could not be read, 2 if none could be or the command was wrong.
Ctrl-C ends a camera, a stream or standard input as its end would; before the first window, and elsewhere, it gives
130.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

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
OF_FILES = ("file", "refused")  # kinds of sources that need no sliding window
REFRESH = 5  # seconds between two versions of the page of a live source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = "Exit code: 0 if every video was labelled, 1 if some could not be read, 2 if none could be."
    add = parser.add_argument
    text = (
        "a file, a folder, a pattern such as 'clips/*.mp4', a camera (0 or camera:0), a stream (rtsp://..., "
        "http://...), or - for standard input"
    )
    add("videos", nargs="+", metavar="VIDEO", help=text)
    text = (
        "a checkpoint, the folder of a run, hf:org/name on the Hugging Face Hub, or an exported .onnx or .pt2; give it "
        "again to average several networks"
    )
    add("--checkpoint", required=True, action="append", help=text)
    add("--top", type=int, default=5, metavar="K", help="labels for each video (default: %(default)s)")
    add("--csv", metavar="FILE", help="write the predictions as CSV: video, start, end, rank, label, score")
    add("--html", metavar="FILE", help="write a page with thumbnails, bars, timelines and attention")
    add("--maps", metavar="FOLDER", help="write attention maps: NAME_maps.png, .gif, .mp4")
    text = "query position of the maps of non-local blocks, each in [0, 1] (default: the middle)"
    add("--query", type=float, nargs=3, default=(0.5, 0.5, 0.5), metavar=("T", "Y", "X"), help=text)
    text = "what runs an .onnx (default: %(default)s)"
    add("--engine", default="onnxruntime", choices=("onnxruntime", "openvino"), help=text)
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--compile", action="store_true", help="compile the network first (pays for many videos)")
    add("--workers", type=int, default=2, help="processes that decode ahead (default: %(default)s)")
    add = parser.add_argument_group("views of each video; by default those of the test of the checkpoint").add_argument
    add("--clips", type=int, metavar="N", help="clips, spread evenly over the video")
    add("--crops", type=int, choices=(1, 3, 5), help="crops of each clip")
    add("--fast", action="store_true", help="the whole frame once instead of crops")
    text = "sliding window, for long videos; cameras, streams and standard input always use it"
    add = parser.add_argument_group(text).add_argument
    add("--timeline", action="store_true", help="say what happens when, not only what the video shows")
    add("--step", type=float, metavar="S", help="seconds between windows (default: half a window)")
    add("--smooth", type=float, default=2.0, metavar="S", help="average over S seconds (%(default)s)")
    add("--min-length", type=float, default=1.0, metavar="S", help="shortest segment in seconds (%(default)s)")
    add("--seconds", type=float, metavar="S", help="stop after S seconds of video, as for a camera")
    text = "append a JSON object for each window as soon as it is scored; - is standard output"
    add("--json-lines", metavar="FILE", help=text)
    add("--save", metavar="FILE", help="write the video with its labels burnt in")


def run(args: argparse.Namespace) -> int:
    """Label every video; prints each as soon as it is known."""
    from gcvideo.predict.ensemble import Ensemble
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
    sliding = args.timeline or args.save or args.json_lines or any(source.kind not in OF_FILES for source in sources)
    if len(args.checkpoint) > 1 and (sliding or args.maps):
        raise ConfigError("several --checkpoint average the scores of whole video files; give one for anything else")
    options = {"device": args.device, "compile": args.compile, "engine": args.engine}
    members = [load(checkpoint, **options) for checkpoint in args.checkpoint]
    predictor = members[0] if len(members) == 1 else Ensemble(members)
    if args.maps and not predictor.shows_layers:
        raise ConfigError(f"--maps: {predictor.source} is an exported file, which shows no layers; give the checkpoint")
    entries = []
    with contextlib.ExitStack() as opened:
        lines: IO[str] | None = None
        if args.json_lines == "-":  # nothing else may go there
            lines = sys.stdout
            opened.enter_context(contextlib.redirect_stdout(sys.stderr))
        elif args.json_lines:
            lines = opened.enter_context(open(args.json_lines, "a", encoding="utf-8"))
        for entry in label_sources(predictor, sources, args, lines):
            entries.append(entry)
            _show(entry)
        _write(args, predictor, entries)
    failed = sum(entry["error"] is not None for entry in entries)
    return 0 if not failed else 1 if failed < len(entries) else 2


def label_sources(
    predictor: Predictor, sources: list[Source], args: argparse.Namespace, lines: IO[str] | None = None
) -> Iterator[Entry]:
    """An entry for each source, in order: its labels, and its timeline if wanted; or the error."""
    from gcvideo.video.stream import without_credentials

    sliding = args.timeline or args.save or lines
    files = [source.name for source in sources if source.kind == "file" and not sliding]
    chosen = {"clips": args.clips, "crops": args.crops, "whole_frame": args.fast or None}
    test = replace(predictor.config.test, **{key: value for key, value in chosen.items() if value is not None})
    scores = predictor.score_files(files, test=test, workers=args.workers)  # decodes ahead, in the order of the files
    for source in sources:
        name = without_credentials(source.name) if source.kind in ("stream", "refused") else source.name
        entry: Entry = {"video": name, "error": source.reason, "predictions": []}
        try:
            if source.kind == "file" and not sliding:
                found = next(scores)
                if isinstance(found, tuple):
                    raise VideoError(source.name, found.reason)
                entry["predictions"] = _plain(predictor.best(found, args.top))
            elif source.kind != "refused":
                timeline = _run_timeline(predictor, source, name, replace(test, crops=args.crops or 1), args, lines)
                entry = timeline_entry(predictor, name, timeline, args.top)
        except VideoError as error:
            entry["error"] = error.reason
        yield entry


def _run_timeline(
    predictor: Predictor, source: Source, name: str, test: TestConfig, args: argparse.Namespace, lines: IO[str] | None
) -> Timeline:
    """Slide the window, with progress."""
    live = source.kind != "file"
    places: dict[str, Any] = {"camera": f"camera:{name.removeprefix('camera:')}", "stdin": sys.stdin.buffer}
    if live:
        test = replace(test, views_per_batch=1 if test.whole_frame else test.crops)  # score each window at once
    options = {"step": args.step, "smooth": args.smooth, "min_length": args.min_length}
    with console.Progress("windows", unit="windows") as progress:
        watcher = _Watcher(predictor, name, live, args, lines, progress)
        place = places.get(source.kind, source.name)
        timeline = predictor.timeline(place, **options, test=test, live=live, on_window=watcher)
    if timeline.dropped:
        console.warn(f"{name}: {timeline.dropped} frames came faster than they could be scored, and were left out")
    if args.save:
        from gcvideo.report.labelled_video import annotate_video

        annotate_video(source.name, args.save, timeline.segments)
        console.say(f"annotated video: {printable(args.save)}")
    return timeline


class _Watcher:
    """What is said, written and shown of each window as soon as it is scored.

    A live source says each new label, and its page is written again every few seconds.
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        live: bool,
        args: argparse.Namespace,
        lines: IO[str] | None,
        progress: console.Progress,
    ) -> None:
        from gcvideo.predict.timeline import LIVE_WINDOWS

        self.predictor, self.name, self.live, self.args = predictor, name, live, args
        self.lines, self.progress = lines, progress
        self.label, self.dropped, self.page_due = "", 0, 0.0
        self.recent: deque[Window] = deque(maxlen=LIVE_WINDOWS)

    def __call__(self, window: Window, stream: FrameStream) -> bool:
        """Returns whether ``--seconds`` are over."""
        predictions = self.predictor.best(window.scores, self.args.top)
        total = "" if stream.expected is None or self.live else f" of {console.duration(stream.expected / stream.fps)}"
        self.progress.advance(1, at=f"{console.duration(window.end)}{total}")
        best = predictions[0]
        if self.live and self.label != best.label:
            self.label = best.label
            console.say(f"{console.clock(window.start)}  {100 * best.score:6.2f} %  {printable(best.label)}")
        if self.lines:
            line: Entry = {"video": self.name, "start": window.start, "end": window.end}
            line |= {"predictions": _plain(predictions), "dropped": stream.dropped - self.dropped}
            line |= {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")} if self.live else {}
            print(json.dumps(line), file=self.lines, flush=True)
            self.dropped = stream.dropped
        if self.live and self.args.html:
            self.recent.append(window)
            began = time.monotonic()
            if began >= self.page_due:
                self._write_page(window.end, stream.dropped)
                self.page_due = began + max(REFRESH, 20 * (time.monotonic() - began))
        return self.args.seconds is not None and window.end >= self.args.seconds

    def _write_page(self, end: float, dropped: int) -> None:
        from gcvideo.predict.timeline import Timeline, make_timeline
        from gcvideo.report.pages import write_prediction_page

        kept, lengths = list(self.recent), {"smooth": self.args.smooth, "min_length": self.args.min_length}
        segments = make_timeline(kept, self.predictor.classes, duration=end, start=kept[0].start, **lengths)
        entry = timeline_entry(self.predictor, self.name, Timeline(segments, kept, end, None, dropped), self.args.top)
        write_prediction_page(self.args.html, self.predictor, [entry], refresh=REFRESH)


def timeline_entry(predictor: Predictor, video: str, timeline: Timeline, top: int) -> Entry:
    """A timeline as plain values; ``predictions`` are those of the mean over the windows."""
    mean = np.mean([window.scores for window in timeline.windows], axis=0)
    return {
        "video": video,
        "error": None,
        "warning": timeline.problem,
        "duration": timeline.duration,
        "dropped": timeline.dropped,
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
