"""Lists with one video per line: ``path label`` and its variants, with or without a header line.

One layout is chosen for all rows of a file: a separator (tab, semicolon, comma or space) and the columns. Without a
header the path of a row ends where a file exists, and what follows in most of the first rows is ``label``,
``frames label`` (the number of frames is ignored), ``start end label`` (a segment, in seconds), or several labels where
the lengths of the rows show it. Of a folder of frames the number of frames must be that of its pictures, and four
columns are ``path offset frames label``: so many frames from that one on, counted from 0. A label is an integer or a
class name. A header names the columns in any order: those, ``class`` (names), ``class_id`` (numbers from 0), ``labels``
(several), ``split`` (see ``SPELLINGS`` for others); further columns are ignored. Where ``labels`` comes last, all that
is left of a row are labels: ``path 1 4 7``.
"""

import csv
import io
import itertools
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gcvideo.data.annotations.labels import Kind
from gcvideo.data.annotations.table import SUBSETS, Annotation, Find, Row, find_file, make_table
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.video.frame_folder import count_frames

SEPARATORS = (",", "\t", ";", " ")
SPELLINGS = """file:path filename:path file_name:path filepath:path file_path:path video:path video_path:path
classes:labels tags:labels label_ids:labels class_ids:labels
class_name:class label_name:class label_id:class_id class_index:class_id label_index:class_id
time_start:start start_time:start starttime:start time_end:end end_time:end endtime:end subset:split
set:split partition:split frame_dir:path video_file_name:path total_frames:frames num_frames:frames"""
ALIASES = dict(pair.split(":") for pair in SPELLINGS.split())
# What a column of labels holds, and whether several in each cell (None: as it looks).
LABELS: dict[str, tuple[Kind, bool | None]] = {"class": ("names", False), "label": ("any", None)}
LABELS |= {"class_id": ("numbers", False), "labels": ("any", True), "class_names": ("names", True)}
KNOWN = {"youtube_id", "path", "offset", "frames", *LABELS, *ALIASES.values()}
OTHER_TIMES = re.compile(r"(^|.*[-_ ])(start|begin|end|stop)(time|frame|sec|ms)?s?([-_ ].*)?|t0|t1|from|to|onset")
SECONDS = re.compile(r"\d+(\.\d*)?")
OTHER_COLUMNS = (
    "other columns need a header line: path,label or path,labels or path,start,end,label or "
    "label,youtube_id,time_start,time_end; of folders of frames path,offset,frames,label"
)
NO_ROW = re.compile(r"\s*(\"?sep=.\"?\s*)?")  # empty; or what tells Excel the separator
ROWS_TO_TRY = 1000  # which decide on a layout
COLUMNS = ((), ("label",), ("frames", "label"), ("start", "end", "label"))  # behind the path, by their number


class Layout(NamedTuple):
    """How all rows of a list are read: what separates the columns, their names, and whether they stand in a header."""

    separator: str
    columns: tuple[str, ...]
    is_header: bool = False

    def __str__(self) -> str:
        return f"`{self.separator.join(self.columns)}`"

    def parse(self, text: str, find: Find) -> dict[str, str] | None:
        """Values of the columns; None where the row has other columns, or values that are no times or frames."""
        others = len(self.columns) - 1
        fields = split_row(text, self.separator)
        if self.columns[0] == "path":  # which may hold separators
            cut = max(len(fields) - others, 0)
            if self.columns[-1] == "labels":
                cut = next((n for n in range(cut, 0, -1) if find(self.separator.join(fields[:n]))), min(cut, 1))
                fields[cut + others - 1 :] = [",".join(fields[cut + others - 1 :])]
            fields = [self.separator.join(fields[:cut]), *fields[cut:]]
        row = dict(zip(self.columns, map(str.strip, fields), strict=False))
        start, end = row.get("start"), row.get("end")
        fits = (
            len(fields) == len(self.columns)
            and (row.get("path") or row.get("youtube_id"))
            and all(row.get(name, "0").isdecimal() for name in ("offset", "frames"))
            and (self.is_header or others < 2 or fields[-1].strip())  # `path,label,` is no `path,frames,label`
            and (("path" in row and not (start or end)) or _seconds(start) < _seconds(end))
        )
        return row if fits else None


def split_row(text: str, separator: str) -> list[str]:
    """The cells of a line. Spaces separate where no tab does."""
    if separator == " ":
        return [] if "\t" in text else [cell.strip('"') for cell in text.split()]
    return next(csv.reader([text], delimiter=separator, skipinitialspace=True))


def read_list(annotation: Annotation) -> RecordTable:
    """Records of a list.

    Raises:
        DataError: the rows can be read in two ways, or no row names an existing file.
    """
    find = partial(find_file, annotation.root)
    layout = header_of(annotation.path) or choose_layout(annotation, find)
    column = next((name for name in LABELS if name in layout.columns), "label")
    in_splits = annotation.path.stem == "metadata"  # whose folders may be those of splits

    def make(line: int, row: dict[str, str]) -> Row:
        path, numbers, wrong = row["path"], [int(row[name]) for name in ("offset", "frames") if name in row], ""
        frames = count_frames(os.path.join(annotation.root, find(path) or "\0")) if numbers else None
        if frames is not None:
            first, last = (0, *numbers)[-2:]
            if first + last > frames or (len(numbers) == 1 and last != frames):
                wrong = f"{path}: has {frames} pictures, but the row says {' and '.join(map(str, numbers))}"
            path += f"#frames={first},{first + last}" if len(numbers) == 2 else ""
        split = path.split("/")[0] if in_splits and path.split("/")[0].lower() in SUBSETS else ""
        times = _seconds(row.get("start")), _seconds(row.get("end"))
        return Row(line, path, row.get(column, ""), "", *times, row.get("split", split), wrong)

    kind, several = LABELS[column]
    annotation.readings.hint = f"; the rows are read as {layout}; {OTHER_COLUMNS}"
    rows = read_rows(annotation, layout, find, make)
    return make_table(annotation, rows, find=find, kind=kind, several=annotation.several or several)


def header_of(path: Path) -> Layout | None:
    """The layout that the first line names, None where it names no column of videos."""
    _, line = next(read_lines(path), (0, ""))
    for separator in SEPARATORS:
        names = [name.strip(' "').lower() for name in line.split(separator)]
        columns = tuple(ALIASES.get(name, name) for name in names)
        known = KNOWN.intersection(columns)
        if len(known) > 1 and known & {"path", "youtube_id"} and (separator != " " or len(known) == len(names)):
            bare = [re.sub(r"[_ ]?\d+$", "", name) for name in columns]  # label and label2 are two labels
            if twice := [name for name in known if bare.count(name) > 1]:
                raise DataError(f"{path}:1: several columns mean {twice[0]!r}: {line!r}; leave one, rename the others")
            if "start" not in columns and (other := [name for name in columns if OTHER_TIMES.fullmatch(name)]):
                raise DataError(f"{path}:1: {other[0]!r} is no known column; call times in seconds start and end")
            return Layout(separator, columns, is_header=True)
    return None


def find_labels(path: Path, subset: str | None) -> Path:
    """Where the labels of a folder of Hugging Face's ``datasets`` are: in a table, or in the folder of the subset."""
    tables = [path / name for name in ("metadata.csv", "metadata.jsonl") if (path / name).is_file()]
    folders = [entry for entry in (os.scandir(path) if path.is_dir() else ()) if entry.is_dir()]
    splits = {SUBSETS.get(folder.name.lower()): Path(folder) for folder in folders if folder.name[0] != "."}
    if not tables and subset in splits and None not in splits:
        return find_labels(splits[subset], None)
    return next((table for table in tables if (header := header_of(table)) and {*LABELS} & {*header.columns}), path)


def read_rows(
    annotation: Annotation, layout: Layout, find: Find, make: Callable[[int, dict[str, str]], Row]
) -> Iterator[Row]:
    """The rows that ``make`` makes of the line and columns of each, or why one cannot be read."""
    times = " (seconds, start before end)" if "start" in layout.columns else ""
    for line, text in itertools.islice(read_lines(annotation.path), layout.is_header, None):
        row = layout.parse(text, find)
        reason = f"expected {layout} as in the other rows{times}, found {text.strip()!r}"
        yield make(line, row) if row else Row(line, text.strip(), reason=reason)


def choose_layout(annotation: Annotation, find: Find) -> Layout:
    """The layout of a list without a header.

    Raises:
        DataError: no row begins with one existing file, or all can be read in two ways.
    """
    lines = list(itertools.islice(read_lines(annotation.path), ROWS_TO_TRY))
    rows: dict[str, list[tuple[int | None, list[str]]]] = defaultdict(list)  # pictures in a folder, what follows it
    for _, text in lines:
        found = {}  # several where one file is called as the beginning of another
        for separator in SEPARATORS:
            cells = split_row(text.strip(), separator)
            for cut in range(1, len(cells) + 1):
                if path := find(separator.join(cells[:cut])):
                    found[separator if cells[cut:] else ",", path] = cells[cut:]
        for (separator, path), rest in found.items() if len(found) == 1 else ():
            rows[separator].append((count_frames(os.path.join(annotation.root, path)), rest))
    separator, usual = max(rows.items(), key=lambda item: len(item[1]), default=(",", []))
    length = Counter(len(rest) for _, rest in usual).most_common(1)[0][0] if usual else 0
    numbers = [(frames, rest) for frames, rest in usual if rest and all(map(str.isdecimal, rest))]
    framed = 2 * sum(rest[:1] == [str(frames)] for frames, rest in numbers) > len(numbers)
    lengths = Counter(len(rest) - framed for _, rest in numbers)
    # No single label with stray columns gives rows of three lengths, nor several longer than a segment.
    several = annotation.several or len(lengths) > 2 or sum(n > 3 for n in lengths.elements()) > 1
    folder = bool(usual) and usual[0][0] is not None
    if numbers and several and (framed or not folder or max(lengths) < 2):  # a wrong number of pictures is no label
        return Layout(separator, ("path", "frames", "labels") if framed else ("path", "labels"))
    if (lines and not rows) or length > 3:
        expected = f"`path label` of a video file in {annotation.root} (or a folder of numbered pictures)"
        where = f"{annotation.path}:{lines[0][0]}"
        fix = f"set root if its paths begin elsewhere; {OTHER_COLUMNS}"
        raise DataError(f"{where}: expected {expected}, found {lines[0][1]!r}; {fix}")
    middle = ("offset", "frames", "label") if folder and length == 3 else COLUMNS[length]
    layout = Layout(separator, ("path", *middle))
    limit = annotation.limit or 1 + max((int(rest[-1]) for _, rest in numbers), default=0)

    def tells(frames: int | None, between: list[str]) -> bool:
        """Whether the numbers between path and label can be nothing else."""
        values = [int(number) if number.isdecimal() else math.inf for number in between]
        if frames is None:
            return max(values) >= limit
        return len(values) < 2 or values[0] >= values[1] or values == [0, frames]

    told = [tells(frames, rest[:-1]) for frames, rest in usual if len(rest) == length > 1]
    # Where the number of classes is unknown, the larger of two labels of a few rows is no number of frames.
    if length > 1 and not (any(told) if annotation.limit or length > 2 or not numbers else 2 * sum(told) > len(told)):
        header, other = ",".join(layout.columns), "path,start,end,label" if "offset" in middle else "path,labels"
        fix = f"add a header line, {header} or {other}, and separate by commas"
        raise DataError(f"{annotation.path}:1: the rows may be {layout} or `{other}`; {fix}")
    return layout


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are rows, in UTF-8 or UTF-16. Tabs at the ends are kept: empty cells.

    JSON lines become those of a table of the columns that are known.
    """
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    if path.suffix == ".jsonl":
        rows = [_json_row(path, number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        names = [name for name in dict.fromkeys(itertools.chain(*rows)) if ALIASES.get(name, name) in KNOWN]
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([names, *([row.get(name) for name in names] for row in rows)])
        text = table.getvalue()
    lines = enumerate(text.split("\n"), start=path.suffix != ".jsonl")
    return ((number, line.strip(" \r\ufeff")) for number, line in lines if not NO_ROW.fullmatch(line))


def _json_row(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        cells = dict(json.loads(text)).items()
        return {name: "|".join(map(str, cell)) if isinstance(cell, list) else cell for name, cell in cells}
    except (ValueError, TypeError):
        raise DataError(f"{path}:{number}: expected a JSON object, found {text[:80]!r}") from None


def _seconds(text: str | None) -> float:
    return float(text) if text and SECONDS.fullmatch(text) else math.nan
