"""``gcvideo predict VIDEO ... --checkpoint CKPT``: label videos.

Exit code: 0 if every video was labelled, 1 if some could not be read, 2 if none could be or the command was wrong.
Ctrl-C ends a camera, a stream or standard input as its end would; before the first window, and elsewhere, it gives
130.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from gcvideo.arguments import chosen_views
from gcvideo.config import TestConfig
from gcvideo.console import Progress, clock, duration, printable, say, warn
from gcvideo.data.records import Failure, RecordTable
from gcvideo.errors import ConfigError, VideoError
from gcvideo.files import Journal, Row, hash_file, replacing, write_json
from gcvideo.predict.ensemble import Ensemble
from gcvideo.predict.inputs import find_videos
from gcvideo.predict.predictor import Predictor, load
from gcvideo.predict.timeline import Timeline, Window, make_timeline
from gcvideo.prepare.jobs import Part, PartDone
from gcvideo.report import pages
from gcvideo.report.pictures import annotate_video, check_destination
from gcvideo.video import FrameStream
from gcvideo.video.stream import without_credentials

Entry = dict[str, Any]  # what ``--json`` writes about one video

# Options that the labels depend on.
DECIDING = ("top", "clips", "crops", "fast", "fps", "timeline", "step", "smooth", "min_length", "seconds")
MOST_SHOWN = 100  # videos whose labels are printed where a file gets them too; of more, progress is shown
REFRESH = 5  # seconds between two versions of the page of a live source


def run(args: argparse.Namespace) -> int:
    """Label every video; prints each as soon as it is known."""
    part = Part.from_args(args)
    records, live, refused = find_videos(args.videos, root=args.root)
    sliding = bool(args.timeline or args.save or live)
    by_window = args.json_lines is not None and (sliding or args.json_lines == "-")
    files = [file for file in (args.csv, args.json, None if by_window else args.json_lines) if file]
    shared = bool(files) and not live and not (by_window and sliding)  # by parts and with a run that resumes it
    _check(args, part, records, others=bool(live or refused), sliding=sliding, shared=shared)
    members = [load(path, device=args.device, compile=args.compile, engine=args.engine) for path in args.checkpoint]
    for member in members:
        member.config.data.frame_rate = args.fps or member.config.data.frame_rate
        if args.maps and not member.shows_layers:
            raise ConfigError(f"--maps: {member.source} is an exported file and shows no layers; give the checkpoint")
    predictor = members[0] if len(members) == 1 else Ensemble(members)
    journal = None
    if shared:
        key = {name: getattr(args, name) for name in DECIDING}
        key["checkpoints"] = [hash_file(member.source) for member in members]
        journal = Journal(f"{files[0]}.partial", key, rank=part.number - 1)
        journal.require_own("checkpoint, views or other options")
    mine = records.select(part.share(range(len(records))))
    quiet = bool(files) and len(mine) > MOST_SHOWN
    total = failed = 0
    with contextlib.ExitStack() as opened:
        lines: IO[str] | None = None
        if args.json_lines == "-":  # nothing else may go there
            lines = sys.stdout
            opened.enter_context(contextlib.redirect_stdout(sys.stderr))
        elif by_window:
            lines = opened.enter_context(open(args.json_lines, "a", encoding="utf-8"))
        outputs = [Path(file) for file in (*files, args.html, args.maps) if file]
        kept = opened.enter_context(spool(outputs[0].parent)) if outputs and part.is_whole else None
        slider = _Slider(predictor, args, lines)
        test = replace(predictor.config.test, **chosen_views(args))
        rows = slider.rows if sliding else partial(score_rows, predictor, top=args.top, test=test, workers=args.workers)
        entries = itertools.chain(
            ({"video": each.path, "error": each.reason, "predictions": []} for each in part.share(refused)),
            label_records(mine, rows, journal=journal, progress=quiet and not sliding),
            map(slider.entry, part.share(live)),
        )
        for entry in entries:
            total, failed = total + 1, failed + (entry["error"] is not None)
            if lines is not None and not sliding:
                print(json.dumps(entry), file=lines, flush=True)
            if kept is not None:
                print(json.dumps(entry), file=kept)
            _show(entry, quiet)
        if not part.is_whole:
            say(str(PartDone(part, total, failed)))
            return 0
        if kept is not None:
            _write(args, predictor, members, kept, lines=not by_window)
    if journal is not None:
        journal.remove()
    return 0 if not failed else 1 if failed < total else 2


def _check(
    args: argparse.Namespace, part: Part, records: RecordTable, *, others: bool, sliding: bool, shared: bool
) -> None:
    """Raise a ``ConfigError`` where options do not go together, or not with the videos."""
    if not all(0 <= fraction <= 1 for fraction in args.query):
        raise ConfigError(f"--query: a position in the clip is three fractions from 0 to 1, not {args.query}")
    if args.save:
        if len(records) != 1 or others or not Path(records[0].path).is_file():
            raise ConfigError("--save writes one video back: give a single video file")
        check_destination(records[0].path, args.save)
    if sliding and (segment := next((record for record in records if record.start is not None), None)):
        raise ConfigError(f"{segment}: a timeline is made of whole videos; give a list without times")
    if len(args.checkpoint) > 1 and sliding:
        raise ConfigError("several --checkpoint average the scores of whole video files; give one for anything else")
    if not part.is_whole and (not shared or args.maps or args.save):
        raise ConfigError(
            f"{part}: parts keep their work beside --csv, --json or --json-lines until a command without --part writes "
            "these files: give one of them, and no --maps, --save, stream or lines of windows"
        )


def label_records(
    records: RecordTable, make_rows: Callable[[RecordTable], Iterator[Row]], *, journal: Journal | None, progress: bool
) -> Iterator[Entry]:
    """An entry for each record, in order: its labels, and its timeline if wanted; or the error.

    Args:
        records: files, and segments of them.
        make_rows: says what is found in each of some records, or the error; ``score_rows``, or of timelines.
        journal: rows of earlier runs, which are not made a second time; new ones are added, but not errors.
        progress: show it.
    """
    items = [os.path.abspath(str(record)) for record in records]  # wherever the command is started
    done = [journal is not None and item in journal for item in items]
    rows = make_rows(records.select([index for index, known in enumerate(done) if not known]))
    bar = Progress("predict", total=len(done), unit="videos", start=sum(done)) if progress else None
    with bar or contextlib.nullcontext():
        for record, item, known in zip(records, items, done, strict=True):
            entry: Entry = {"video": record.path, "error": None, "predictions": []}
            entry |= {} if record.start is None else {"start": record.start, "end": record.end}
            row = journal.find(item) or {} if journal is not None and known else next(rows)
            if journal is not None and not known and row.get("error") is None:
                journal.add(item, row)
            if bar is not None and not known:
                bar.advance()
            yield entry | row


def score_rows(
    predictor: Predictor, records: RecordTable, *, top: int, test: TestConfig, workers: int
) -> Iterator[Entry]:
    """The ``top`` labels of each record by the views of ``test``, or the error; ``workers`` decode ahead."""
    for found in predictor.score_files(records, test=test, workers=workers):
        if isinstance(found, Failure):
            yield {"error": found.reason}
        else:
            yield {"predictions": [*map(asdict, predictor.best(found, top))]}


class _Slider:
    """Slides the window over one source after the other; says, writes and shows each window as soon as it is scored.

    A live source says each new label, and its page is written again every few seconds.
    """

    def __init__(self, predictor: Predictor, args: argparse.Namespace, lines: IO[str] | None) -> None:
        self.predictor, self.args, self.lines = predictor, args, lines
        self.lengths = {"smooth": args.smooth, "min_length": args.min_length}

    def rows(self, records: RecordTable) -> Iterator[Entry]:
        """What is found in each file; see ``label_records``."""
        return (self.row(record.path, record.path, live=False) for record in records)

    def entry(self, source: str) -> Entry:
        """The entry of a live source."""
        name = without_credentials(source)
        return {"video": name, "error": None, "predictions": [], **self.row(source, name, live=True)}

    def row(self, source: str, name: str, *, live: bool) -> Entry:
        """The timeline of a source as plain values, or the error."""
        test = replace(self.predictor.config.test, **{"crops": 1, **chosen_views(self.args)})
        if live:
            test = replace(test, views_per_batch=1 if test.whole_frame else test.crops)  # score each window at once
        self.name, self.live, self.label, self.dropped, self.page_due = name, live, "", 0, 0.0
        self.recent: deque[Window] = deque(maxlen=256)  # a page of 1,024 takes 20 MB to draw
        place: Any = sys.stdin.buffer if live and source == "-" else source
        options = {"step": self.args.step, "test": test, "live": live, "on_window": self.on_window, **self.lengths}
        try:
            with Progress("windows", unit="windows") as self.progress:
                timeline = self.predictor.timeline(place, **options)
        except VideoError as error:
            return {"error": error.reason}
        if timeline.dropped:
            warn(f"{name}: {timeline.dropped} frames came faster than they could be scored, and were left out")
        if self.args.save:
            annotate_video(source, self.args.save, timeline.segments)
            say(f"annotated video: {printable(self.args.save)}")
        return timeline_row(self.predictor, timeline, self.args.top)

    def on_window(self, window: Window, stream: FrameStream) -> bool:
        """Returns whether ``--seconds`` are over."""
        predictor, args = self.predictor, self.args
        predictions = predictor.best(window.scores, args.top)
        total = "" if stream.expected is None or self.live else f" of {duration(stream.expected / stream.fps)}"
        self.progress.advance(1, at=f"{duration(window.end)}{total}")
        best = predictions[0]
        if self.live and self.label != best.label:
            self.label = best.label
            say(f"{clock(window.start)}  {100 * best.score:6.2f} %  {printable(best.label)}")
        if self.lines:
            line: Entry = {"video": self.name, "start": window.start, "end": window.end}
            line |= {"predictions": [*map(asdict, predictions)], "dropped": stream.dropped - self.dropped}
            line |= {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")} if self.live else {}
            print(json.dumps(line), file=self.lines, flush=True)
            self.dropped = stream.dropped
        began = time.monotonic()
        if self.live and args.html:
            self.recent.append(window)
            if began >= self.page_due:
                kept, end = list(self.recent), window.end
                segments = make_timeline(kept, predictor.classes, duration=end, start=kept[0].start, **self.lengths)
                row = timeline_row(predictor, Timeline(segments, kept, end, None, stream.dropped), args.top)
                entry = {"video": self.name, "error": None, **row}
                pages.write_prediction_page(args.html, predictor, [entry], refresh=REFRESH)
                self.page_due = began + max(REFRESH, 20 * (time.monotonic() - began))
        return args.seconds is not None and window.end >= args.seconds


def timeline_row(predictor: Predictor, timeline: Timeline, top: int) -> Entry:
    """A timeline as plain values; ``predictions`` are those of the mean over the windows."""
    mean = np.mean([window.scores for window in timeline.windows], axis=0)
    return {
        "warning": timeline.problem,
        "duration": timeline.duration,
        "dropped": timeline.dropped,
        "predictions": [*map(asdict, predictor.best(mean, top))],
        "timeline": [*map(asdict, timeline.segments)],
        "windows": [
            {"start": w.start, "end": w.end, "predictions": [*map(asdict, predictor.best(w.scores, top))]}
            for w in timeline.windows
        ],
    }


def _show(entry: Entry, quiet: bool) -> None:
    """Print one video: its name, then a line for each label or segment; or one line with the error."""
    name = printable(entry["video"])
    if not quiet and entry["error"] is None:
        say(name)
        for part in entry.get("timeline") or entry["predictions"]:
            span = f"{clock(part['start'])} to {clock(part['end'])}  " if "start" in part else ""
            say(f"  {span}{100 * part['score']:6.2f} %  {printable(part['label'])}")
    if problem := entry["error"] or entry.get("warning"):
        warn(f"{name}: {printable(problem)}", every_process=True)


def _write(
    args: argparse.Namespace, predictor: Predictor, members: Sequence[Predictor], kept: IO[str], *, lines: bool
) -> None:
    """Write the files that were asked for; only JSON and pages need all entries in memory."""
    if args.csv:
        write_csv(args.csv, read_spool(kept))
    if args.json_lines and lines:
        with replacing(args.json_lines) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(entry)}\n" for entry in read_spool(kept))
    if args.json:
        write_json(args.json, {"checkpoint": predictor.source, "videos": [*read_spool(kept)]})
    if args.maps:
        for stem in pages.write_maps(args.maps, members, [*read_spool(kept)], query=tuple(args.query)):
            say(f"maps: {printable(str(stem))}.html, and pictures as .png, .gif and .mp4")
    if args.html:
        pages.write_prediction_page(args.html, predictor, [*read_spool(kept)])
        say(f"page: {printable(args.html)}")


def spool(folder: Path) -> IO[str]:
    """A file for entries as JSON lines until they are written out; it has no name and vanishes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8")


def read_spool(file: IO[str]) -> Iterator[Entry]:
    """The entries from the first on, one at a time."""
    file.seek(0)
    return map(json.loads, file)


def write_csv(path: str | Path, entries: Iterable[Entry]) -> None:
    """Write a row a label; segments in order of time where there is a timeline, else labels by rank; or the error."""
    with replacing(path) as new, new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write = csv.writer(file).writerow
        write(["video", "start", "end", "rank", "label", "score", "error"])
        for entry in entries:
            span = _span(entry)
            if not entry["predictions"]:  # an error; or of several labels a video, none is above its threshold
                write([entry["video"], *span, "", "", "", entry["error"]])
            for rank, part in enumerate(entry.get("timeline") or entry["predictions"], start=1):
                place = [*_span(part), 1] if "start" in part else [*span, rank]
                write([entry["video"], *place, part["label"], f"{part['score']:.6f}", ""])


def _span(part: Entry) -> list[str]:
    """Seconds of a segment; empty for a whole video."""
    return [f"{part['start']:.3f}", f"{part['end']:.3f}"] if "start" in part else ["", ""]
