"""The table that every annotation format becomes: its rows, the files that they name, and their labels."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from gcvideo.config.checks import nearest
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError

Labels = Literal["any", "names", "numbers"]

UNKNOWN = -1
NUMBER = re.compile(r"-?\d+(\.0+)?")
SEVERAL = re.compile(r"\d+([,;| ]\s*\d+)+")
MORE = re.compile(r"[,;\s]\d+$")
SAY_WHICH = "add a header line: path,class for names, path,class_id for numbers from 0"


@dataclass(frozen=True)
class Annotation:
    """An annotation file or folder, and what is known about it.

    Attributes:
        path: the file or folder.
        root: folder of the videos.
        root_given: whether the user named the root; otherwise it is the annotation's own folder.
        classes: class names in label order, where known.
        num_classes: largest label + 1 that is allowed, where known.
        subset: "train", "val" or "test": the videos to take of an annotation that lists several subsets.
        split: which of several official splits, from 1.
    """

    path: Path
    root: Path
    root_given: bool
    classes: tuple[str, ...] | None
    num_classes: int | None
    subset: str | None
    split: int

    def error(self, line: int, text: str) -> DataError:
        """An error in a line of the file."""
        return DataError(f"{self.path}:{line}: {text}")


class Row(NamedTuple):
    """One row of an annotation.

    ``label`` is a class name, or a number as text; "" where unknown. ``id`` is the path unless given. ``start`` and
    ``end`` are in seconds, NaN for a whole video.
    """

    line: int
    path: str
    label: str = ""
    id: str = ""
    start: float = math.nan
    end: float = math.nan


class FileFinder:
    """Looks files up in a folder tree, with one listing per folder instead of one system call per file.

    Args:
        root: folder that relative paths start from.
        any_suffix: also find a video of the same name with another suffix, as transcoded copies have.
    """

    def __init__(self, root: Path, *, any_suffix: bool = False) -> None:
        self._root, self._any_suffix = root, any_suffix
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, path: str) -> str | None:
        """The path of the existing file that is meant, None where there is none; backslashes may separate folders."""
        cut = path.rfind("/") + 1
        folder, name = path[:cut], path[cut:]
        if folder not in self._folders:
            self._folders[folder] = self._list(folder)
        names = self._folders[folder]
        if name in names:
            return path
        if self._any_suffix and os.path.splitext(name)[0] in names:
            return folder + names[os.path.splitext(name)[0]]
        return self.find(path.replace("\\", "/")) if "\\" in path else None

    def _list(self, folder: str) -> dict[str, str]:
        try:
            names = [entry.name for entry in os.scandir(os.path.join(self._root, folder)) if not entry.is_dir()]
        except (OSError, ValueError):
            return {}
        return {os.path.splitext(name)[0]: name for name in names if self._any_suffix} | dict.fromkeys(names, "")


def make_table(
    annotation: Annotation, rows: Iterable[Row], *, files: FileFinder | None = None, labels: Labels = "any"
) -> RecordTable:
    """The records of rows.

    Args:
        annotation: where they come from.
        rows: in the order of the table.
        files: finds their files, all of which must exist. None: the paths are those of existing files, or "" for a
            video that is missing.
        labels: what the labels are; "any" decides it for the whole file.

    Raises:
        DataError: a file is missing, a label is unknown, or one video has two labels, with the line.
    """
    root = os.path.join(annotation.root, "") if annotation.root_given else "\0"
    lines: dict[str, int] = {}  # label -> line of its first row
    found: list[Row] = []
    paths: list[str] = []
    missing: list[Row] = []
    for row in rows:
        if row.label not in lines:
            lines[row.label] = row.line
        path = files.find(row.path) if files is not None else row.path
        if path:
            found.append(row)
            paths.append(path.removeprefix(root))
        else:
            missing.append(row)
    if missing and files is not None:
        path = os.path.join(annotation.root, missing[0].path)
        what = "is a folder, and frames in folders are not read" if os.path.isdir(path) else "no such video file"
        what += "; has the row several labels? gcvideo trains one label per video" if MORE.search(path) else ""
        more = f" (and {len(missing) - 1:,} more of {len(missing) + len(found):,} rows)" if len(missing) > 1 else ""
        raise annotation.error(missing[0].line, f"{path}: {what}{more}")
    numbers, classes = number_labels(lines, annotation, labels)
    table = RecordTable(
        ids=[row.id or _id(path, row) for path, row in zip(paths, found, strict=True)],
        paths=paths,
        labels=[numbers[row.label] for row in found],
        root=annotation.root,
        classes=classes,
        source=str(annotation.path),
        missing=[row.id for row in missing],
        segments=np.array([(row.start, row.end) for row in found]).reshape(-1, 2),
    )
    pair = table.contradiction()
    if pair is not None:
        first, second = (found[index].line for index in pair)
        raise annotation.error(second, f"{table[pair[1]].id} has another label than in line {first}; remove one line")
    return table


def _id(path: str, row: Row) -> str:
    return path if math.isnan(row.start) else f"{path}#t={row.start:.10g},{row.end:.10g}"


def number_labels(
    lines: Mapping[str, int], annotation: Annotation, kind: Labels
) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """The number of each label, and the class names in label order, where known.

    All labels of a file are read one way: as names if they are names of known classes, as numbers if all are numbers
    ("1.0" is 1), else as names, of which the sorted ones are the classes. Names that are numbers are compared as such
    ("001" is 1). "" and "-1" stand for no label.

    Args:
        lines: label -> line of its first row.
        annotation: where they come from.
        kind: what the labels are; "any" decides it.

    Raises:
        DataError: both readings are possible and differ, or a label has none, with its line.
    """
    unknown = {text: UNKNOWN for text in lines if text in ("", "-1", "-1.0")}
    texts = [text for text in lines if text not in unknown]
    classes = annotation.classes
    limit = annotation.num_classes or len(classes or ()) or math.inf
    numbers = {text: int(float(text)) for text in texts if NUMBER.fullmatch(text)}
    known = {_key(name): label for label, name in enumerate(classes or ())}
    known |= {name: label for label, name in enumerate(classes or ())}  # the exact name wins
    names = {text: known[key] for text in texts for key in (_key(text), normalize(text)) if key in known}

    def error(text: str, why: str) -> DataError:
        return annotation.error(lines[text], f"label {text!r} {why}")

    if kind == "any" and len(numbers) == len(names) == len(texts) and numbers != names:
        kind = "names"
        if max(numbers.values()) < limit:
            text = next(text for text in texts if numbers[text] != names[text])
            raise error(text, f"may be the name of class {names[text]} or the number of another class; {SAY_WHICH}")
    if kind == "numbers" or (kind == "any" and len(numbers) == len(texts)):
        for text in texts:
            if not 0 <= numbers.get(text, -1) < limit:
                from_one = 0 not in numbers.values() and max(numbers.values(), default=0) == limit
                hint = "; the labels seem to count from 1: subtract 1 from each" if from_one else ""
                raise error(text, f"is outside {f'0 to {limit - 1}' if limit < math.inf else '0, 1, 2 ...'}{hint}")
        return numbers | unknown, classes
    for text in texts:
        if text in names:
            continue
        if kind == "any" and SEVERAL.fullmatch(text):
            raise error(text, "is more than one label; gcvideo trains one label per video")
        if kind == "any" and (text in numbers) != (texts[0] in numbers):
            raise error(text, f"and {texts[0]!r} in line {lines[texts[0]]} are a name and a number; use one kind")
        if classes is not None:
            raise error(text, f"is an unknown class{nearest(normalize(text), classes)}")
    if classes is None:
        classes = tuple(sorted(set(map(normalize, texts)))) or None
        names = {text: (classes or ()).index(normalize(text)) for text in texts}
    return names | unknown, classes


def _key(name: str) -> str:
    return str(int(float(name))) if NUMBER.fullmatch(name) else normalize(name)


def normalize(name: str) -> str:
    """A class name in composed Unicode (NFC): macOS writes the same letters decomposed."""
    return unicodedata.normalize("NFC", name)
