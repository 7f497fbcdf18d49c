"""Lists with one video per line: ``path label`` and its variants, with or without a header line.

One layout is chosen for all rows of a file: a separator (tab, semicolon, comma or space) and the columns. Without a
header these are ``path``, ``path label``, ``path frames label`` (the number of frames is ignored) or
``path start end label`` (a segment, in seconds). Paths may hold separators. A label is an integer or, unless spaces
separate the columns, a class name. A header names the columns in any order: those, ``class`` (names), ``class_id``
(numbers from 0), ``split`` (see ``SPELLINGS`` for others); further columns are ignored.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gcvideo.data.annotations.folders import VIDEO_SUFFIXES
from gcvideo.data.annotations.table import NUMBER, Annotation, FileFinder, Labels, Row, make_table
from gcvideo.data.records import RecordTable

SEPARATORS = ("\t", ";", ",", " ")
SPELLINGS = """file:path filename:path file_name:path filepath:path file_path:path video:path video_path:path
class_name:class label_name:class label_id:class_id class_index:class_id label_index:class_id
time_start:start start_time:start time_end:end end_time:end subset:split"""
ALIASES = dict(pair.split(":") for pair in SPELLINGS.split())
SUBSETS = {"training": "train", "validate": "val", "validation": "val", "valid": "val", "testing": "test"}
LABELS: dict[str, Labels] = {"class": "names", "label": "any", "class_id": "numbers"}
KNOWN = {"youtube_id", "path", "frames", *LABELS, *ALIASES.values()}
KINETICS_ROW = re.compile(r"(.*[,;\t])?[\w-]{11}[,;\t]\d+(\.\d+)?[,;\t]\d+(\.\d+)?([,;\t].*)?")
SECONDS = re.compile(r"\d+(\.\d*)?")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # which Windows programs put first


@dataclass(frozen=True)
class Layout:
    """How all rows of a list are read: what separates the columns, their names, and whether they stand in a header."""

    separator: str
    columns: tuple[str, ...]
    is_header: bool = False

    def __str__(self) -> str:
        return f"`{self.separator.join(self.columns)}`"

    def parse(self, text: str) -> dict[str, str] | None:
        """Values of the columns; None where the row has other columns."""
        others, path_first = len(self.columns) - 1, self.columns[0] == "path"
        separator = None if self.separator == " " else self.separator
        if '"' in text and separator:
            fields = next(csv.reader([text], delimiter=separator, skipinitialspace=True))
            if path_first and others:  # a path may hold separators
                fields = [separator.join(fields[:-others]), *fields[-others:]]
        else:
            fields = text.rsplit(separator, others) if path_first else text.split(separator)
        if len(fields) != len(self.columns) or not fields[0] or (separator is None and "\t" in text):
            return None
        row = dict(zip(self.columns, [field.strip() for field in fields], strict=True))
        start, end = row.get("start"), row.get("end")
        fits = (
            (separator is not None or NUMBER.fullmatch(row.get("label", "0")))
            and row.get("frames", "0").isdecimal()
            and (not (start or end) or _seconds(start) < _seconds(end))
        )
        return row if fits else None


LAYOUTS = [Layout(",", ("path",))] + [
    Layout(separator, ("path", *columns))
    for separator in SEPARATORS
    for columns in (("label",), ("frames", "label"), ("start", "end", "label"))
]


def read_list(annotation: Annotation) -> RecordTable:
    """Records of a list.

    Raises:
        DataError: a row does not read as the others do, can be read in two ways, or names no existing file.
    """
    files = FileFinder(annotation.root)
    layout = header_of(annotation.path) or choose_layout(annotation, files)
    column = next((name for name in LABELS if name in layout.columns), "label")
    rows = (
        Row(line, row["path"].strip('"'), row.get(column, ""), "", _seconds(row.get("start")), _seconds(row.get("end")))
        for line, row in read_rows(annotation, layout)
    )
    table = make_table(annotation, rows, files=files, labels=LABELS[column])
    between = (row[name] for _, row in read_rows(annotation, layout) for name in layout.columns[1:-1])
    limit = annotation.num_classes or len(table.classes or ()) or table.labels.max(initial=0) + 1
    if not layout.is_header and len(layout.columns) > 2 and all(v.isdecimal() and int(v) < limit for v in between):
        fix = f"give one label per video, or add a header line: {','.join(layout.columns)}, and separate by commas"
        raise annotation.error(1, f"the rows may be {layout} or have several labels; {fix}")
    return table


def header_of(path: Path) -> Layout | None:
    """The layout that the first line names, None where it names no column of videos."""
    _, line = next(read_lines(path), (0, ""))
    for separator in SEPARATORS:
        names = [name.strip(' "').lower() for name in line.split(separator)]
        columns = tuple(ALIASES.get(name, name) for name in names)
        known = KNOWN.intersection(columns)
        if len(known) > 1 and known & {"path", "youtube_id"} and (separator != " " or len(known) == len(names)):
            return Layout(separator, columns, is_header=True)
    return None


def read_rows(annotation: Annotation, layout: Layout) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and columns of each row, of the annotation's subset where a ``split`` column names several.

    Raises:
        DataError: a row has other columns, or none is of the subset.
    """
    keep = _subset(annotation, layout) if "split" in layout.columns else None
    for line, text in itertools.islice(read_lines(annotation.path), layout.is_header, None):
        row = layout.parse(text)
        is_path = layout.columns != ("path",) or _may_be_video(text) or (annotation.root / text).exists()
        if row is None or not is_path:
            raise annotation.error(line, f"expected {layout} as in the other rows, found {text!r}")
        if keep is None or row["split"] in keep:
            yield line, row


def _subset(annotation: Annotation, layout: Layout) -> set[str] | None:
    """The values of the split column to keep; None keeps all, as where there is only one."""
    _, *rows = (layout.parse(text) or {} for _, text in read_lines(annotation.path))
    values = {row.get("split", "") for row in rows}
    keep = {value for value in values if SUBSETS.get(value.lower(), value.lower()) == annotation.subset}
    if len(values) > 1 and not keep:
        found, asked = ", ".join(sorted(values)), annotation.subset or "no subset"
        raise annotation.error(1, f"has rows of {found}, but {asked} is asked for; write one file for each")
    return keep if len(values) > 1 else None


def choose_layout(annotation: Annotation, files: FileFinder) -> Layout:
    """The layout that reads the rows of a file without a header; which paths exist tells layouts apart.

    Raises:
        DataError: a row fits none, or more than one layout fits all rows.
    """
    candidates, found = LAYOUTS, []
    for line, text in read_lines(annotation.path):
        fits = {layout: row["path"].strip('"') for layout in candidates if (row := layout.parse(text))}
        found = [layout for layout, path in fits.items() if files.find(path)]
        if not found and candidates is LAYOUTS:
            _require_list(annotation, line, text, files)
        likely = [layout for layout, path in fits.items() if _may_be_video(os.path.join(annotation.root, path))]
        candidates = found or likely or [layout for layout in fits if len(layout.columns) > 1]
        if not candidates:
            raise annotation.error(line, f"expected `path label` with an integer label, found {text!r}")
        if len(candidates) == 1:
            break
    if len(found) > 1:
        raise annotation.error(line, f"{text!r} reads as {' and as '.join(map(str, found))}; add a header line")
    return candidates[0]


def _require_list(annotation: Annotation, line: int, text: str, files: FileFinder) -> None:
    """Say what a file is whose first row is no row of a list."""
    if KINETICS_ROW.fullmatch(text):
        header = "label,youtube_id,time_start,time_end,split"
        raise annotation.error(line, f"looks like a Kinetics CSV without its header line; add {header}")
    for separator in SEPARATORS:
        for number, field in enumerate(text.split(separator), start=1):
            if number > 1 and files.find(field.strip(' "')):
                why = f"the path is in column {number} of {text!r}"
                raise annotation.error(line, f"expected `path label`, but {why}; add a header line such as label,path")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not empty, in UTF-8 or UTF-16."""
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in UTF16_MARKS else "utf-8-sig")
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _seconds(text: str | None) -> float:
    return float(text) if text and SECONDS.fullmatch(text) else math.nan


def _may_be_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES or os.path.isdir(path)
