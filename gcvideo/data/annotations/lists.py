"""Lists with one video per line: ``path label`` and its variants, with or without a header line.

One layout is chosen for all rows of a file: a separator (tab, semicolon, comma or space) and the columns. Without a
header these are ``path``, ``path label``, ``path frames label`` (the number of frames is ignored) or
``path start end label`` (a segment, in seconds): those with which most of the first rows name an existing file. Of a
folder of frames the number of frames must be that of its pictures, and four columns are ``path offset frames label``:
so many frames from that one on, counted from 0. Paths may hold separators. A label is an integer or a class name. A
header names the columns in any order: those, ``class`` (names), ``class_id`` (numbers from 0), ``labels`` (several),
``split`` (see ``SPELLINGS`` for others); further columns are ignored. Where ``labels`` comes last, all that is left of
a row are labels: ``path 1 4 7``.
"""

import codecs
import csv
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gcvideo.data.annotations.table import SUBSETS, Annotation, Find, Labels, Row, file_finder, make_table
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.video.frame_folder import count_frames

SEPARATORS = ("\t", ";", ",", " ")
SPELLINGS = """file:path filename:path file_name:path filepath:path file_path:path video:path video_path:path
classes:labels tags:labels label_ids:labels class_ids:labels
class_name:class label_name:class label_id:class_id class_index:class_id label_index:class_id
time_start:start start_time:start starttime:start time_end:end end_time:end endtime:end subset:split
set:split partition:split frame_dir:path video_file_name:path total_frames:frames num_frames:frames"""
ALIASES = dict(pair.split(":") for pair in SPELLINGS.split())
LABELS: dict[str, Labels] = {"class": "names", "label": "some", "class_id": "numbers", "labels": "sets"}
LABELS["class_names"] = "sets of names"
KNOWN = {"youtube_id", "path", "offset", "frames", *LABELS, *ALIASES.values()}
OTHER_TIMES = re.compile(r"(^|.*[-_ ])(start|begin|end|stop)(time|frame|sec|ms)?s?([-_ ].*)?|t0|t1|from|to|onset")
NUMBER = re.compile(r"[\d.,;|]*")
DIGITS = re.compile(r"\d+(,\d+)*")
SECONDS = re.compile(r"\d+(\.\d*)?")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # which Windows programs put first
OTHER_COLUMNS = (
    "other columns need a header line: path,label or path,start,end,label or label,youtube_id,time_start,time_end; "
    "of folders of frames path,offset,frames,label"
)
NO_ROW = re.compile(r"\s*(\"?sep=.\"?\s*)?")  # empty; or what tells Excel the separator
ROWS_TO_TRY = 1000  # for an existing file
VOTES = 100  # rows that decide on a layout


@dataclass(frozen=True)
class Layout:
    """How all rows of a list are read: what separates the columns, their names, and whether they stand in a header."""

    separator: str
    columns: tuple[str, ...]
    is_header: bool = False

    def __str__(self) -> str:
        return f"`{self.separator.join(self.columns)}`"

    def parse(self, text: str) -> dict[str, str] | None:
        """Values of the columns; None where the row has other columns, or values that are no times or frames."""
        others = len(self.columns) - 1
        gathers = self.columns[0] == "path" and self.columns[-1] == "labels"
        text = text if self.is_header else text.strip()
        if self.separator == " ":
            fields = [field.strip('"') for field in text.split()]
            if self.columns[0] == "path" and not gathers:  # which may hold separators
                fields = [field.strip('" ') for field in text.rsplit(None, others) if "\t" not in text]
        else:
            fields = next(csv.reader([text], delimiter=self.separator, skipinitialspace=True))
            if self.columns[0] == "path" and not gathers:
                cut = max(len(fields) - others, 0)
                fields = [self.separator.join(fields[:cut]), *fields[cut:]]
        if gathers and len(fields) > others:  # the path ends where nothing but numbers follows
            numbers = [*itertools.takewhile(NUMBER.fullmatch, fields[::-1])]
            cut = max(len(fields) - len(numbers), 1) if len(numbers) >= others else 1
            fields = [self.separator.join(fields[:cut]), *fields[cut:]]
            fields[others:] = [",".join(fields[others:])]
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


LAYOUTS = [Layout(",", ("path",))] + [
    Layout(separator, ("path", *columns))
    for separator in SEPARATORS
    for columns in (("label",), ("frames", "label"), ("start", "end", "label"), ("offset", "frames", "label"))
]
SEVERAL = [Layout(separator, ("path", *more, "labels")) for separator in SEPARATORS for more in ((), ("frames",))]


def read_list(annotation: Annotation) -> RecordTable:
    """Records of a list.

    Raises:
        DataError: the first row can be read in two ways, or no row names an existing file.
    """
    find = file_finder(annotation.root)
    layout = header_of(annotation.path) or choose_layout(annotation, find)
    column = next((name for name in LABELS if name in layout.columns), "label")
    between = [0.0]  # the largest number between path and label; infinite where these can be nothing else

    def rows() -> Iterator[Row]:
        for line, row in read_rows(annotation, layout):
            path, numbers = row["path"], [row[name] for name in ("offset", "frames") if name in row]
            frames = count_frames(os.path.join(annotation.root, find(path) or "\0")) if numbers else None
            if frames is not None and numbers:
                first, last = (0, *map(int, numbers))[-2:]
                if last + first > frames or (len(numbers) == 1 and last != frames):
                    reason = f"has {frames} pictures, but the row says {' and '.join(numbers)}"
                    annotation.refuse(line, path, path, f"{path}: {reason}")
                    continue
                if len(numbers) == 2:
                    path += f"#frames={first},{first + last}"
                if len(numbers) == 1 or first >= last or (first, last) == (0, frames):
                    between[0] = math.inf
            elif len(numbers) < 2:
                for text in map(row.__getitem__, layout.columns[1:-1]):
                    between[0] = max(between[0], int(text) if text.isdecimal() else math.inf)
            start, end = _seconds(row.get("start")), _seconds(row.get("end"))
            folder = path.split("/")[0] if annotation.path.stem == "metadata" else ""  # which may be that of a split
            split = row.get("split", folder if folder.lower() in SUBSETS else "")
            yield Row(line, path, row.get(column, ""), "", start, end, split)

    labels: Labels = "sets" if annotation.several else LABELS[column]
    hint = f"; the rows are read as {layout}; {OTHER_COLUMNS}"
    table = make_table(annotation, rows(), find=find, labels=labels, hint=hint)
    limit = annotation.limit or table.labels.max(initial=0) + 1
    if not layout.is_header and len(layout.columns) > 2 and between[0] < limit:
        other = "`path start end label` (seconds)" if "offset" in layout.columns else "have several labels"
        more = "" if "offset" in layout.columns else " or path,labels"
        fix = f"add a header line: {','.join(layout.columns)}{more}, and separate by commas"
        raise annotation.error(1, f"the rows may be {layout} or {other}; {fix}")
    return table


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


def read_rows(annotation: Annotation, layout: Layout) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and columns of each row; rows with other columns are refused."""
    times = " (seconds, start before end)" if "start" in layout.columns else ""
    fix = "" if layout.is_header else "; for several labels a video, add a header line: path,labels"
    for line, text in itertools.islice(read_lines(annotation.path), layout.is_header, None):
        row = layout.parse(text)
        if row is None:
            annotation.refuse(line, text, text, f"expected {layout} as in the other rows{times}, found {text!r}", fix)
        else:
            yield line, row


def choose_layout(annotation: Annotation, find: Find) -> Layout:
    """The layout with which most of the first rows name an existing file.

    Raises:
        DataError: no row names an existing file, or the first that does can be read in two ways.
    """
    lines = list(itertools.islice(read_lines(annotation.path), ROWS_TO_TRY))

    def tells_frames(row: dict[str, str]) -> bool:
        """Whether the first number is that of the pictures in a folder, in the layout that has it, or is not."""
        path = find(row["path"])
        frames = count_frames(os.path.join(annotation.root, path)) if path else None
        return path is not None and ("frames" in row) == ([*row.values()][1].split(",")[0] == str(frames))

    for layout in SEVERAL:
        cells = [row["labels"] for _, text in lines if (row := layout.parse(text)) and tells_frames(row)]
        counts = Counter(cell.count(",") + 1 for cell in cells if annotation.several or DIGITS.fullmatch(cell))
        # No single label with stray columns gives rows of three lengths, nor several longer than a segment.
        long = sum(counts.values()) - counts[1] - counts[2] - counts[3]
        if counts and (annotation.several or len(counts) > 2 or long > 1):
            return layout
    votes: Counter[Layout] = Counter()
    for line, text in lines:
        found = []
        for layout in LAYOUTS:
            path = find(row["path"]) if (row := layout.parse(text)) else None
            other = "start" if path and os.path.isdir(annotation.root / path) else "offset"
            found += [layout] if path and other not in layout.columns else []
        if len(found) > 1 and not votes:
            raise annotation.error(line, f"{text!r} reads as {' and as '.join(map(str, found))}; add a header line")
        votes.update(found if len(found) == 1 else ())
        if votes.total() == VOTES:
            break
    if votes:
        return votes.most_common(1)[0][0]
    for line, text in lines[:1]:
        expected = f"`path label` of a video file in {annotation.root} (or a folder of numbered pictures)"
        raise annotation.error(line, f"expected {expected}, found {text!r}; {OTHER_COLUMNS}")
    return LAYOUTS[0]


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are rows, in UTF-8 or UTF-16. Tabs at the ends are kept: empty cells.

    JSON lines become those of a table of the columns that are known.
    """
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        try:
            rows = [dict(json.loads(line)) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: expected a JSON object a line; {error}") from None
        names = [name for name in dict.fromkeys(itertools.chain(*rows)) if ALIASES.get(name, name) in KNOWN]
        table = [names, *([row.get(name) for name in names] for row in rows)]
        cells = [[cell if isinstance(cell, list) else [cell] * (cell is not None) for cell in row] for row in table]
        texts = [['"{}"'.format("|".join(map(str, cell)).replace('"', '""')) for cell in row] for row in cells]
        return enumerate(map(",".join, texts))
    lines = enumerate(data.decode("utf-16" if data[:2] in UTF16_MARKS else "utf-8-sig").split("\n"), start=1)
    return ((number, line.strip(" \r\ufeff")) for number, line in lines if not NO_ROW.fullmatch(line))


def _seconds(text: str | None) -> float:
    return float(text) if text and SECONDS.fullmatch(text) else math.nan
