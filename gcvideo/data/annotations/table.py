"""The table that every annotation format becomes: its rows, the files that they name, and their labels."""

import functools
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from gcvideo.config.checks import nearest
from gcvideo.data.annotations.several import split_labels
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.video.frame_folder import is_frame_folder

Labels = Literal["any", "names", "numbers", "some", "sets", "sets of names"]
Find = Callable[[str], str | None]

UNKNOWN = -1
NUMBER = re.compile(r"-?\d+(\.0+)?")
SEVERAL = re.compile(r"\d+([,;| ]\s*\d+)+|\[.*\]")
SPLIT = re.compile(r"\s*[|;]\s*")
NO_LABEL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
SPLITS = "train:train training:train val:val valid:val validate:val validation:val test:test testing:test"
SUBSETS = dict(pair.split(":") for pair in SPLITS.split())
EVERY_SUBSET = "every"
INTEGERS = pa.list_(pa.int32())


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


class Refusal(NamedTuple):
    """A row that cannot be used.

    ``id`` is what the id of its record would be; the row itself where its columns could not be read. ``hint`` is for an
    error that stands for all rows.
    """

    file: str
    line: int
    id: str
    path: str
    reason: str
    hint: str = ""
    kind: Literal["row", "missing", "conflict"] = "row"


@dataclass
class Readings:
    """How the rows of an annotation were read.

    Attributes:
        rows: those of the table's records, in their order; none for folders and indexes.
        missing: rows of Kinetics whose videos are not there.
        refusals: rows that cannot be used, the one to report first in front.
    """

    rows: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


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
        subset: "train", "val" or "test": the videos to take of an annotation that lists several subsets; or "every".
        split: which of several official splits, from 1.
        readings: filled while the rows are read.
        several: whether rows may have several labels; None: as the file shows.
    """

    path: Path
    root: Path
    root_given: bool
    classes: tuple[str, ...] | None
    limit: int | None
    names_only: bool
    subset: str | None
    split: int
    readings: Readings = field(default_factory=Readings)
    several: bool | None = None

    def error(self, line: int, text: str) -> DataError:
        """An error in a line of the file."""
        return DataError(f"{self.path}:{line}: {text}")

    def refuse(self, line: int, id: str, path: str, reason: str, *more: Any) -> None:
        """Leave a row out; see ``Refusal``. Unless a list of bad videos names its id, reading ends with an error."""
        self.readings.refusals.append(Refusal(str(self.path), line, id, path, reason, *more))


def file_finder(root: Path) -> Find:
    """A function that finds the existing file that a path means, with one listing per folder; None where none exists.

    A folder of frames is a file. Relative paths start from ``root``; backslashes may separate folders, and letters may
    be composed or decomposed.
    """

    @functools.cache
    def files(folder: str) -> set[str]:
        try:
            entries = list(os.scandir(os.path.join(root, folder)))
            # Not is_dir() of a link, which raises for one that leads to itself.
            return {e.name for e in entries if not (os.path.isdir(e.path) if e.is_symlink() else e.is_dir())}
        except (OSError, ValueError):
            return set()

    def find(path: str) -> str | None:
        for spell in (str, lambda text: text.replace("\\", "/"), normalize, decompose):
            name = spell(path)
            cut = name.rfind("/") + 1
            if name[cut:] in files(name[:cut]):
                odd = ("./" in name or "//" in name) and ".." not in name  # behind a link, ".." may be another folder
                return os.path.normpath(name) if odd else name
            if is_frame_folder(os.path.join(root, name)):
                return name.rstrip("/")
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
        labels: what the labels are; "any" decides it for the whole file. With "sets" a row may have several, with
            "some" the file shows whether it does; see ``split_labels``.
        hint: what to say about a missing file.

    Rows whose file is missing, whose label is unknown, or that give one video two labels are refused.

    Raises:
        DataError: the file can be read in two ways, or has rows of several subsets.
    """
    rows = _of_subset(annotation, list(rows))
    paths = [find(row.path) if find else row.path for row in rows]
    root = os.path.join(annotation.root, "") if annotation.root_given else "\0"
    names = [(path or row.path).removeprefix(root) for path, row in zip(paths, rows, strict=True)]
    ids = [row.id or name + _segment(row) for name, row in zip(names, rows, strict=True)]

    def refuse(index: int, reason: str, *more: Any) -> None:
        annotation.refuse(rows[index].line, ids[index], os.path.join(annotation.root, names[index]), reason, *more)

    missing = [index for index, path in enumerate(paths) if not path]
    for index in missing if find else ():
        more = f" (and {len(missing) - 1:,} more of {len(rows):,} rows)" if len(missing) > 1 else ""
        refuse(index, f"{os.path.join(annotation.root, rows[index].path)}: no such video file", more + hint, "missing")
    several = {"sets": True, "sets of names": True, "some": None}.get(labels, False)
    cells = Counter(row.label for row in rows)
    sets = split_labels(cells, classes=annotation.classes or (), several=several)
    parts = sets or {cell: (cell,) for cell in cells}
    lines = {label: row.line for row in reversed(rows) for label in parts[row.label]}
    counts = Counter(label for row in rows for label in parts[row.label])
    kind: Labels = "names" if labels == "sets of names" else labels if several is False else "any"
    single, classes, why = number_labels(counts, lines, annotation, kind)
    for index, label in ((i, label) for i, row in enumerate(rows) for label in parts[row.label] if label in why):
        refuse(index, f"label {label!r} {why[label]}")
    numbers: dict[str, Any] = {
        cell: tuple(sorted({single[label] for label in parts[cell]})) if sets and cell != "-1" else single[cell]
        for cell in cells
        if single.keys() >= {*parts[cell]}
    }
    kept = [index for index, row in enumerate(rows) if paths[index] and row.label in numbers]
    base = os.path.join(os.path.abspath(annotation.root), "")
    keys = [(os.path.normpath(id_) if ".." in id_ else id_).removeprefix(base) for id_ in ids]  # one file, one key
    spelled: dict[str, str] = {}
    ids = [spelled.setdefault(key, id_) for key, id_ in zip(keys, ids, strict=True)]
    first: dict[str, int] = {}
    other: dict[str, int] = {}  # the first row that contradicts the first one
    for index in kept:
        label = numbers[rows[index].label]
        if label != UNKNOWN and numbers[rows[first.setdefault(keys[index], index)].label] != label:
            other.setdefault(keys[index], index)
    clashing = [index for index in kept if keys[index] in other] if other else []
    for index in sorted(clashing, key=lambda index: first[keys[index]] == index):
        row, twin = rows[index], rows[first[keys[index]]]
        if numbers[row.label] == numbers[twin.label]:
            twin = rows[other[keys[index]]]
        reason = f"{ids[index]} has another label than in line {twin.line}; remove one line"
        refuse(index, f"{reason} ({row.label!r} here, {twin.label!r} there)", "", "conflict")
    kept = [index for index in kept if keys[index] not in other]
    readings = annotation.readings
    readings.rows = [rows[index] for index in kept]
    readings.missing = [] if find else [rows[index] for index in missing]
    found = [numbers[row.label] for row in readings.rows]
    return RecordTable(
        ids=[ids[index] for index in kept],
        paths=[names[index] for index in kept],
        labels=found if sets is None else pa.array([None if each == UNKNOWN else each for each in found], INTEGERS),
        root=annotation.root,
        classes=classes,
        source=str(annotation.path),
        missing=[row.id for row in readings.missing],
        segments=np.array([(row.start, row.end) for row in readings.rows]).reshape(-1, 2),
    )


def _segment(row: Row) -> str:
    return "" if math.isnan(row.start) else f"#t={row.start:.10g},{row.end:.10g}"


def _of_subset(annotation: Annotation, rows: list[Row]) -> list[Row]:
    """The rows of the annotation's subset; all where they are of one subset, as the user named this file."""
    names = {row.subset: SUBSETS.get(row.subset.lower(), row.subset.lower()) for row in rows}
    if len(names) < 2 or annotation.subset == EVERY_SUBSET:
        return rows
    if annotation.subset not in names.values() or "" in names:
        found, asked = ", ".join(name or "no split" for name in sorted(names)), annotation.subset or "no subset"
        raise annotation.error(1, f"has rows of {found}, but {asked} is asked for; write one file for each")
    return [row for row in rows if names[row.subset] == annotation.subset]


def number_labels(
    counts: Counter[str], lines: dict[str, int], annotation: Annotation, kind: Labels
) -> tuple[dict[str, int], tuple[str, ...] | None, dict[str, str]]:
    """The number of each label that has one, class names in label order where known, and why others have none.

    All labels of a file are read one way, that of most rows: as names of classes, or as numbers ("1.0" is 1). Where no
    classes are known, names are sorted into classes. Names that are numbers are compared as such ("001" is 1). "" and
    "-1" stand for no label.

    Args:
        counts: how many rows have each label, in the order of their first rows.
        lines: those of the first rows.
        annotation: where they come from.
        kind: what the labels are; "any" decides it.

    Raises:
        DataError: both readings are possible and differ.
    """
    unknown = {text: UNKNOWN for text in counts if text in ("", "-1", "-1.0")}
    texts = [text for text in counts if text not in unknown]
    numbers = {text: int(float(text)) for text in texts if NUMBER.fullmatch(text)}
    classes, limit = annotation.classes, annotation.limit or math.inf
    kind = "names" if annotation.names_only else kind
    known = {key(name): label for key in (_key, normalize) for label, name in enumerate(classes or ())}
    names = {text: known[name] for text in texts for name in (_key(text), normalize(text)) if name in known}
    why = _why_no_label(texts, counts, kind, numbers, classes or ())  # a label is refused
    texts = [text for text in texts if text not in why]
    if kind == "any" and len(names) == len(numbers) == len(texts) and max(numbers.values(), default=0) < limit:
        for text in texts:
            if names[text] != numbers[text]:
                may_be = f"may be the name of class {names[text]} or the number of another class"
                fix = "add a header line: path,class for names, path,class_id for numbers from 0"
                raise annotation.error(lines[text], f"label {text!r} {may_be}; {fix}")
    elif kind == "any" and len(names) < len(texts):
        votes = Counter(text in numbers for text in texts for _ in range(counts[text]))
        usual = next(text for text in texts if (text in numbers) == votes.most_common(1)[0][0])
        mixed = f"and {usual!r} in line {lines[usual]} are a name and a number; use one kind"
        why |= {text: mixed for text in texts if (text in numbers) != (usual in numbers)}
        texts = [text for text in texts if text not in why]
    are_numbers = all(text in numbers for text in texts)
    if classes is None and texts and (kind == "names" or (kind == "any" and not are_numbers)):
        classes = tuple(sorted(set(map(normalize, texts))))
        names = {text: classes.index(normalize(text)) for text in texts}
    by_name = kind == "names" or (kind == "any" and (not are_numbers or all(text in names for text in texts)))
    values = [numbers[text] for text in texts if text in numbers]
    for text in texts:
        if by_name and text not in names:
            fix = "; set data.classes to the names in the order of the numbers" if text in numbers else ""
            why[text] = f"is an unknown class{fix or nearest(normalize(text), classes or ())}"
        elif not by_name and not 0 <= numbers.get(text, -1) < min(limit, 1 << 31):
            from_one = 0 not in values and max(values, default=0) == limit
            hint = "; the labels seem to count from 1: subtract 1 from each" if from_one else ""
            why[text] = f"is outside {f'0 to {limit - 1}' if limit < math.inf else '0, 1, 2 ...'}{hint}"
    found = names if by_name else numbers
    return {text: found[text] for text in texts if text not in why} | unknown, classes, why


def _why_no_label(
    texts: Sequence[str], counts: Container[str], kind: Labels, numbers: Container[str], classes: Container[str]
) -> dict[str, str]:
    """Why some texts are no labels, each looked at alone; see ``number_labels``."""
    why = {}
    for text in texts:
        odd = text.lower() == "nan" or (kind == "any" and text not in numbers and NO_LABEL.fullmatch(text))
        several = SEVERAL.fullmatch(text) or any(part in counts for part in {*SPLIT.split(text)} - {text})
        if odd and normalize(text) not in classes:
            fix = "leave the cell empty if there is no label, or list it in data.classes if it is a name"
            why[text] = f"is neither a whole number nor a name; {fix}"
        elif kind == "any" and several:
            fix = "if videos have several, call the column labels in a header line (path,labels), each once, or set"
            why[text] = f"is more than one label; {fix} model.multi_label=true"
    return why


def _key(name: str) -> str:
    return str(int(float(name))) if NUMBER.fullmatch(name) else normalize(name)


def normalize(name: str) -> str:
    """A class name in composed Unicode (NFC): macOS writes the same letters decomposed."""
    return unicodedata.normalize("NFC", name)


def decompose(name: str) -> str:
    """A name in decomposed Unicode (NFD)."""
    return unicodedata.normalize("NFD", name)
