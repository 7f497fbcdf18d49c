"""Labels of many videos: an entry for each, a journal of them, and the files JSON, JSON lines and CSV made of them."""

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from gcvideo.config import TestConfig
from gcvideo.console import Progress
from gcvideo.data.records import Failure, RecordTable
from gcvideo.files import Journal, Row, replacing
from gcvideo.predict.predictor import Predictor
from gcvideo.predict.timeline import Timeline

Entry = dict[str, Any]  # what ``gcvideo predict --json`` writes about one video


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


def spool(folder: Path) -> IO[str]:
    """A file for entries as JSON lines until they are written out; it has no name and vanishes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8")


def read_spool(file: IO[str]) -> Iterator[Entry]:
    """The entries from the first on, one at a time."""
    file.seek(0)
    return map(json.loads, file)


def write_lines(path: str | Path, entries: Iterable[Entry]) -> None:
    """Write a JSON object a line."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(entry)}\n" for entry in entries)


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
