"""The table that every annotation format becomes: its rows, the files that they name, and their labels."""

import functools
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from gcvideo.config.checks import nearest
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError

Labels = Literal["any", "names", "numbers"]
Find = Callable[[str], str | None]

UNKNOWN = -1
NUMBER = re.compile(r"-?\d+(\.0+)?")
SEVERAL = re.compile(r"\d+([,;| ]\s*\d+)+|\[.*\]")
NO_LABEL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
SPLITS = "train:train training:train val:val valid:val validate:val validation:val test:test testing:test"
SUBSETS = dict(pair.split(":") for pair in SPLITS.split())


@dataclass(frozen=True)
class Annotation:
    """An annotation file or folder, and what is known about it.

    Attributes:
        path: the file or folder.
        root: folder of the videos.
        root_given: whether the user named the root; otherwise it is the annotation's own folder.
        classes: class names in label order, where known.
        limit: largest label + 1 that is allowed, where known.
        names_only: whether numbers are refused as labels, because the order of ``classes`` is in no file.
        subset: "train", "val" or "test": the videos to take of an annotation that lists several subsets.
        split: which of several official splits, from 1.
    """

    path: Path
    root: Path
    root_given: bool
    classes: tuple[str, ...] | None
    limit: int | None
    names_only: bool
    subset: str | None
    split: int

    def error(self, line: int, text: str) -> DataError:
        """An error in a line of the file."""
        return DataError(f"{self.path}:{line}: {text}")


class Row(NamedTuple):
    """One row of an annotation.

    ``label`` is a class name, or a number as text; "" where unknown. ``id`` is the path unless given. ``start`` and
    ``end`` are in seconds, NaN for a whole video. ``subset`` is what a ``split`` column says.
    """

    line: int
    path: str
    label: str = ""
    id: str = ""
    start: float = math.nan
    end: float = math.nan
    subset: str = ""


def file_finder(root: Path) -> Find:
    """A function that finds the existing file that a path means, with one listing per folder; None where none exists.

    Relative paths start from ``root``; backslashes may separate folders, and letters may be composed or decomposed.
    """

    @functools.cache
    def files(folder: str) -> set[str]:
        try:
            return {entry.name for entry in os.scandir(os.path.join(root, folder)) if not entry.is_dir()}
        except (OSError, ValueError):
            return set()

    def find(path: str) -> str | None:
        for name in (path, path.replace("\\", "/"), normalize(path), unicodedata.normalize("NFD", path)):
            cut = name.rfind("/") + 1
            if name[cut:] in files(name[:cut]):
                return name if ".." in name else os.path.normpath(name)  # behind a link, ".." may be another folder
        return None

    return find


def make_table(
    annotation: Annotation, rows: Iterable[Row], *, find: Find | None = None, labels: Labels = "any", hint: str = ""
) -> RecordTable:
    """The records of rows.

    Args:
        annotation: where they come from.
        rows: in the order of the table.
        find: finds the file of a path; every file must exist. None: the paths are those of existing files, or "" for
            a video that is missing.
        labels: what the labels are; "any" decides it for the whole file.
        hint: what to say about a missing file.

    Raises:
        DataError: a file is missing, a label is unknown, or one video has two labels, with the line.
    """
    rows = _of_subset(annotation, list(rows))
    paths = [find(row.path) if find else row.path for row in rows]
    missing = [row for row, path in zip(rows, paths, strict=True) if not path]
    if missing and find:
        path = os.path.join(annotation.root, missing[0].path)
        more = f" (and {len(missing) - 1:,} more of {len(rows):,} rows)" if len(missing) > 1 else ""
        raise annotation.error(missing[0].line, f"{path}: no such video file{more}{hint}")
    numbers, classes = number_labels({row.label: row.line for row in reversed(rows)}, annotation, labels)
    rows = [row for row, path in zip(rows, paths, strict=True) if path]
    root = os.path.join(annotation.root, "") if annotation.root_given else "\0"
    names = [path.removeprefix(root) for path in paths if path]
    ids = [row.id or name + _segment(row) for name, row in zip(names, rows, strict=True)]
    base = os.path.abspath(annotation.root)
    first: dict[str, Row] = {}
    for id_, name, row in zip(ids, names, rows, strict=True):
        key = os.path.normpath(os.path.join(base, name)) + _segment(row) if find else id_  # one file has several names
        other = first.setdefault(key, row) if numbers[row.label] != UNKNOWN else row
        if numbers[other.label] != numbers[row.label]:
            raise annotation.error(row.line, f"{id_} has another label than in line {other.line}; remove one line")
    return RecordTable(
        ids=ids,
        paths=names,
        labels=[numbers[row.label] for row in rows],
        root=annotation.root,
        classes=classes,
        source=str(annotation.path),
        missing=[row.id for row in missing],
        segments=np.array([(row.start, row.end) for row in rows]).reshape(-1, 2),
    )


def _segment(row: Row) -> str:
    return "" if math.isnan(row.start) else f"#t={row.start:.10g},{row.end:.10g}"


def _of_subset(annotation: Annotation, rows: list[Row]) -> list[Row]:
    """The rows of the annotation's subset; all where they are of one subset, as the user named this file."""
    names = {row.subset: SUBSETS.get(row.subset.lower(), row.subset.lower()) for row in rows}
    if len(names) < 2:
        return rows
    if annotation.subset not in names.values() or "" in names:
        found, asked = ", ".join(name or "no split" for name in sorted(names)), annotation.subset or "no subset"
        raise annotation.error(1, f"has rows of {found}, but {asked} is asked for; write one file for each")
    return [row for row in rows if names[row.subset] == annotation.subset]


def number_labels(
    lines: Mapping[str, int], annotation: Annotation, kind: Labels
) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """The number of each label, and the class names in label order, where known.

    All labels of a file are read one way: as names of classes, or as numbers ("1.0" is 1). Where no classes are known,
    names are sorted into classes. Names that are numbers are compared as such ("001" is 1). "" and "-1" stand for no
    label.

    Args:
        lines: label -> line of its first row.
        annotation: where they come from.
        kind: what the labels are; "any" decides it.

    Raises:
        DataError: both readings are possible and differ, or a label has none, with its line.
    """
    unknown = {text: UNKNOWN for text in lines if text in ("", "-1", "-1.0")}
    texts = sorted(lines.keys() - unknown, key=lines.__getitem__)
    numbers = {text: int(float(text)) for text in texts if NUMBER.fullmatch(text)}
    classes, limit = annotation.classes, annotation.limit or math.inf
    kind = "names" if annotation.names_only else kind
    if classes is None and texts and (kind == "names" or (kind == "any" and not numbers)):
        classes = tuple(sorted(set(map(normalize, texts))))
    known = {key(name): label for key in (_key, normalize) for label, name in enumerate(classes or ())}
    names = {text: known[name] for text in texts for name in (_key(text), normalize(text)) if name in known}

    def error(text: str, why: str) -> DataError:
        return annotation.error(lines[text], f"label {text!r} {why}")

    two_readings = len(names) == len(numbers) == len(texts) and max(numbers.values(), default=0) < limit
    for text in texts:
        odd = text.lower() == "nan" or (kind == "any" and text not in numbers and NO_LABEL.fullmatch(text))
        if odd and normalize(text) not in (annotation.classes or ()):
            fix = "leave the cell empty if there is no label, or call the column class if it is a name"
            raise error(text, f"is neither a whole number nor a name; {fix}")
    for text in texts if kind == "any" else ():
        if SEVERAL.fullmatch(text) or (set(re.split(r"\s*[|;]\s*", text)) - {text}) & lines.keys():
            raise error(text, "is more than one label; gcvideo trains one label per video")
        if two_readings and names[text] != numbers[text]:
            fix = "add a header line: path,class for names, path,class_id for numbers from 0"
            raise error(text, f"may be the name of class {names[text]} or the number of another class; {fix}")
        if len(names) < len(texts) and (text in numbers) != (texts[0] in numbers):
            raise error(text, f"and {texts[0]!r} in line {lines[texts[0]]} are a name and a number; use one kind")
    by_name = kind == "names" or (kind == "any" and (len(names) == len(texts) or len(numbers) < len(texts)))
    for text in texts:
        if by_name and text not in names:
            fix = "; set data.classes to the names in the order of the numbers" if text in numbers else ""
            raise error(text, f"is an unknown class{fix or nearest(normalize(text), classes or ())}")
        if not by_name and not 0 <= numbers.get(text, -1) < min(limit, 1 << 31):
            from_one = 0 not in numbers.values() and max(numbers.values(), default=0) == limit
            hint = "; the labels seem to count from 1: subtract 1 from each" if from_one else ""
            raise error(text, f"is outside {f'0 to {limit - 1}' if limit < math.inf else '0, 1, 2 ...'}{hint}")
    return (names if by_name else numbers) | unknown, classes


def _key(name: str) -> str:
    return str(int(float(name))) if NUMBER.fullmatch(name) else normalize(name)


def normalize(name: str) -> str:
    """A class name in composed Unicode (NFC): macOS writes the same letters decomposed."""
    return unicodedata.normalize("NFC", name)
