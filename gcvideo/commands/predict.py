"""``gcvideo predict VIDEO ... --checkpoint CKPT``: label videos.

Exit code: 0 if every video was labelled, 1 if some could not be read, 2 if none could be or the command was wrong.
Ctrl-C ends a camera, a stream or standard input as its end would; before the first window, and elsewhere, it gives
130.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from gcvideo import console
from gcvideo.arguments import chosen_views
from gcvideo.console import printable
from gcvideo.errors import ConfigError, VideoError
from gcvideo.files import hash_file, write_json
from gcvideo.journal import Journal
from gcvideo.parts import Part

if TYPE_CHECKING:
    from gcvideo.config import TestConfig
    from gcvideo.data.records import RecordTable
    from gcvideo.predict.inputs import Source
    from gcvideo.predict.labels import Entry
    from gcvideo.predict.predictor import Predictor
    from gcvideo.predict.timeline import Timeline, Window
    from gcvideo.video import FrameStream

# Options that the labels depend on.
DECIDING = ("top", "clips", "crops", "fast", "fps", "timeline", "step", "smooth", "min_length", "seconds")
MOST_SHOWN = 100  # videos whose labels are printed where a file gets them too; of more, progress is shown
MOST_ON_PAGE = 1000  # videos; a page holds pictures of each, about 100 kB
REFRESH = 5  # seconds between two versions of the page of a live source


def run(args: argparse.Namespace) -> int:
    """Label every video; prints each as soon as it is known."""
    from gcvideo.predict.ensemble import Ensemble
    from gcvideo.predict.inputs import find_videos
    from gcvideo.predict.labels import spool
    from gcvideo.predict.predictor import load
    from gcvideo.prepare.jobs import PartDone

    if not all(0 <= fraction <= 1 for fraction in args.query):
        raise ConfigError(f"--query: a position in the clip is three fractions from 0 to 1, not {args.query}")
    part = Part.from_args(args)
    records, others = find_videos(args.videos, root=args.root)
    job = _plan(args, part, records, others)
    options: dict[str, Any] = {"device": args.device, "compile": args.compile, "engine": args.engine}
    members = [load(checkpoint, **options) for checkpoint in args.checkpoint]
    for member in members:
        member.config.data.frame_rate = args.fps or member.config.data.frame_rate
    predictor = members[0] if len(members) == 1 else Ensemble(members)
    for member in members:
        if args.maps and not member.shows_layers:
            raise ConfigError(f"--maps: {member.source} is an exported file and shows no layers; give the checkpoint")
    journal = None
    if job.shared:
        key = {name: getattr(args, name) for name in DECIDING}
        key["checkpoints"] = [hash_file(member.source) for member in members]
        journal = Journal(f"{job.files[0]}.partial", key, rank=part.number - 1)
        journal.require_own("checkpoint, views or other options")
    mine = records.select(part.share(range(len(records))))
    quiet = bool(job.files) and len(mine) > MOST_SHOWN
    total = failed = 0
    with contextlib.ExitStack() as opened:
        lines: IO[str] | None = None
        if args.json_lines == "-":  # nothing else may go there
            lines = sys.stdout
            opened.enter_context(contextlib.redirect_stdout(sys.stderr))
        elif job.by_window:
            lines = opened.enter_context(open(args.json_lines, "a", encoding="utf-8"))
        outputs = [Path(file) for file in (*job.files, args.html, args.maps) if file]
        kept = opened.enter_context(spool(outputs[0].parent)) if outputs and part.is_whole else None
        options = {"journal": journal, "sliding": job.sliding, "progress": quiet and not job.sliding}
        for entry in label_sources(predictor, mine, part.share(others), args, lines, **options):
            total, failed = total + 1, failed + (entry["error"] is not None)
            if lines is not None and not job.sliding:
                print(json.dumps(entry), file=lines, flush=True)
            if kept is not None:
                print(json.dumps(entry), file=kept)
            _show(entry, quiet)
        if not part.is_whole:
            console.say(str(PartDone(part, total, failed)))
            return 0
        if kept is not None:
            _write(args, predictor, members, kept, lines=not job.by_window)
    if journal is not None:
        journal.remove()
    return 0 if not failed else 1 if failed < total else 2


class _Job(NamedTuple):
    """What the options ask for together.

    Attributes:
        sliding: slide a window over every video.
        by_window: write JSON lines as they become known.
        files: to write once all is known.
        shared: whether parts can share the work, and another run can resume it.
    """

    sliding: bool
    by_window: bool
    files: list[str]
    shared: bool


def _plan(args: argparse.Namespace, part: Part, records: RecordTable, others: Sequence[Source]) -> _Job:
    """What the options ask for; a ``ConfigError`` where they do not go together, or not with the videos."""
    live = any(source.kind != "refused" for source in others)
    if args.save:
        from gcvideo.report.labelled_video import check_destination

        if len(records) != 1 or others or not Path(records[0].path).is_file():
            raise ConfigError("--save writes one video back: give a single video file")
        check_destination(records[0].path, args.save)
    sliding = bool(args.timeline or args.save or live)
    if sliding and (segment := next((record for record in records if record.start is not None), None)):
        raise ConfigError(f"{segment}: a timeline is made of whole videos; give a list without times")
    if len(args.checkpoint) > 1 and sliding:
        raise ConfigError("several --checkpoint average the scores of whole video files; give one for anything else")
    by_window = args.json_lines is not None and (sliding or args.json_lines == "-")
    files = [file for file in (args.csv, args.json, None if by_window else args.json_lines) if file]
    shared = bool(files) and not live and not (by_window and sliding)
    if not part.is_whole and (not shared or args.maps or args.save):
        raise ConfigError(
            f"{part}: parts keep their work beside --csv, --json or --json-lines until a command without --part writes "
            "these files: give one of them, and no --maps, --save, stream or lines of windows"
        )
    if args.html and len(records) > MOST_ON_PAGE:
        raise ConfigError(f"--html: {len(records):,} videos are too many for a page; give fewer, or leave it out")
    return _Job(sliding, by_window, files, shared)


def label_sources(
    predictor: Predictor,
    records: RecordTable,
    others: Sequence[Source],
    args: argparse.Namespace,
    lines: IO[str] | None = None,
    *,
    sliding: bool,
    **options: Any,
) -> Iterator[Entry]:
    """An entry for each source: what is refused, then files in their order, then cameras and streams."""
    from gcvideo.predict.inputs import Source
    from gcvideo.predict.labels import label_records, timeline_row
    from gcvideo.video.stream import without_credentials

    test = replace(predictor.config.test, **chosen_views(args))
    centre = replace(test, crops=args.crops or 1)

    def timeline(source: Source) -> Timeline:
        return _run_timeline(predictor, source, centre, args, lines)

    for source in others:
        if source.kind == "refused":
            yield {"video": without_credentials(source.name), "error": source.reason, "predictions": []}
    slide = (lambda path: timeline(Source(path))) if sliding else None
    options |= {"top": args.top, "test": test, "workers": args.workers}
    yield from label_records(predictor, records, timeline=slide, **options)
    for source in (source for source in others if source.kind != "refused"):
        entry: Entry = {"video": without_credentials(source.name), "error": None, "predictions": []}
        try:
            yield entry | timeline_row(predictor, timeline(source), args.top)
        except VideoError as error:
            yield entry | {"error": error.reason}


def _run_timeline(
    predictor: Predictor, source: Source, test: TestConfig, args: argparse.Namespace, lines: IO[str] | None
) -> Timeline:
    """Slide the window, with progress."""
    from gcvideo.video.stream import without_credentials

    live = source.kind != "file"
    name = without_credentials(source.name) if source.kind == "stream" else source.name
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


@dataclass
class _Watcher:
    """What is said, written and shown of each window as soon as it is scored.

    A live source says each new label, and its page is written again every few seconds.
    """

    predictor: Predictor
    name: str
    live: bool
    args: argparse.Namespace
    lines: IO[str] | None
    progress: console.Progress
    label: str = ""
    dropped: int = 0
    page_due: float = 0.0
    recent: deque[Window] = field(default_factory=lambda: deque(maxlen=256))  # a page of 1,024 takes 20 MB to draw

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
            line |= {"predictions": [*map(asdict, predictions)], "dropped": stream.dropped - self.dropped}
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
        from gcvideo.predict.labels import timeline_row
        from gcvideo.predict.timeline import Timeline, make_timeline
        from gcvideo.report.pages import write_prediction_page

        kept, lengths = list(self.recent), {"smooth": self.args.smooth, "min_length": self.args.min_length}
        segments = make_timeline(kept, self.predictor.classes, duration=end, start=kept[0].start, **lengths)
        row = timeline_row(self.predictor, Timeline(segments, kept, end, None, dropped), self.args.top)
        entry: Entry = {"video": self.name, "error": None, **row}
        write_prediction_page(self.args.html, self.predictor, [entry], refresh=REFRESH)


def _show(entry: Entry, quiet: bool) -> None:
    """Print one video: its name, then a line for each label or segment; or one line with the error."""
    name = printable(entry["video"])
    if entry["error"] is not None:
        console.warn(f"{name}: {printable(entry['error'])}", every_process=True)
        return
    if not quiet:
        console.say(name)
    for part in [] if quiet else entry.get("timeline") or entry["predictions"]:
        span = f"{console.clock(part['start'])} to {console.clock(part['end'])}  " if "start" in part else ""
        console.say(f"  {span}{100 * part['score']:6.2f} %  {printable(part['label'])}")
    if entry.get("warning"):
        console.warn(f"{name}: {printable(entry['warning'])}")


def _write(
    args: argparse.Namespace, predictor: Predictor, members: Sequence[Predictor], kept: IO[str], *, lines: bool
) -> None:
    """Write the files that were asked for; only JSON and pages need all entries in memory."""
    from gcvideo.predict.labels import read_spool, write_csv, write_lines

    if args.csv:
        write_csv(args.csv, read_spool(kept))
    if args.json_lines and lines:
        write_lines(args.json_lines, read_spool(kept))
    if args.json:
        write_json(args.json, {"checkpoint": predictor.source, "videos": [*read_spool(kept)]})
    if args.maps:
        from gcvideo.report.pages import write_maps

        for stem in write_maps(args.maps, members, [*read_spool(kept)], query=tuple(args.query)):
            console.say(f"maps: {printable(str(stem))}.html, and pictures as .png, .gif and .mp4")
    if args.html:
        from gcvideo.report.pages import write_prediction_page

        write_prediction_page(args.html, predictor, [*read_spool(kept)])
        console.say(f"page: {printable(args.html)}")
