"""The table that every annotation format becomes, with all checks of its rows, and its stored form: a Parquet index."""

import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gcvideo.data.annotations.labels import UNKNOWN, Kind, normalize, read_labels
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.video.frame_folder import is_frame_folder
from gcvideo.video.tar_members import INDEX, JOURNAL, MANIFEST

Find = Callable[[str], str | None]

SPLITS = "train:train training:train val:val valid:val validate:val validation:val test:test testing:test"
SUBSETS = dict(pair.split(":") for pair in SPLITS.split())
EVERY_SUBSET = "every"
SHARD_FILES = {INDEX, MANIFEST, JOURNAL}  # in a folder of shards, which may be incomplete


class Row(NamedTuple):
    """One row of an annotation.

    ``label`` is a class name, or a number as text; "" where unknown. ``id`` is the path unless given. ``start`` and
    ``end`` are in seconds, NaN for a whole video. ``subset`` is what a ``split`` column says. ``reason`` says why the
    row cannot be used; its path then is the row itself where its columns could not be read.
    """

    line: int
    path: str
    label: str = ""
    id: str = ""
    start: float = math.nan
    end: float = math.nan
    subset: str = ""
    reason: str = ""
    kind: Literal["row", "missing", "conflict"] = "row"


@dataclass
class Readings:
    """How the rows of an annotation were read.

    Attributes:
        rows: those of the table's records, in their order; none for indexes.
        missing: rows of Kinetics whose videos are not there.
        refusals: rows that cannot be used, with the reason, and the id and path that their records would have.
        hint: how all rows are read, for an error in one of them.
    """

    rows: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    refusals: list[Row] = field(default_factory=list)
    hint: str = ""


class Annotation(NamedTuple):
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
        several: whether rows may have several labels; None: as the file shows.
        readings: filled while the rows are read.
    """

    path: Path
    root: Path
    root_given: bool
    classes: tuple[str, ...] | None
    limit: int | None
    names_only: bool
    subset: str | None
    split: int
    several: bool | None
    readings: Readings


def find_file(root: Path, path: str) -> str | None:
    """The existing file, or folder of frames, that a path means; None where there is none.

    Relative paths start from ``root``; backslashes may separate folders, and letters may be composed or decomposed.
    """
    forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    for name in dict.fromkeys((path, path.replace("\\", "/"), *forms)):
        place = os.path.join(root, name)
        if os.path.isfile(place) or is_frame_folder(place):
            return name if ".." in name else os.path.normpath(name)  # behind a link, ".." may be another folder
    return None


def make_table(
    annotation: Annotation,
    rows: Iterable[Row],
    *,
    find: Find | None = None,
    kind: Kind = "any",
    several: bool | None = False,
) -> RecordTable:
    """The records of rows.

    Refused are rows with a reason, those whose file is missing or whose label is unknown, and those that give one video
    two labels.

    Args:
        annotation: where they come from.
        rows: in the order of the table.
        find: finds the file of a path; every file must exist. None: the paths are those of existing files, or "" for
            a video that is missing.
        kind: what the labels are; see ``read_labels``.
        several: whether a row may have several labels; see ``split_cells``.

    Raises:
        DataError: the file has rows of several subsets.
    """
    rows, readings = _of_subset(annotation, list(rows)), annotation.readings
    cells = Counter(row.label for row in rows if not row.reason)
    kind = "names" if annotation.names_only else kind
    numbers, several, classes, why = read_labels(cells, kind, several, annotation.classes, annotation.limit)
    base = os.path.join(os.path.abspath(annotation.root), "")
    kept: list[tuple[str, str, Row]] = []  # id, path
    first: dict[str, Row] = {}  # row of each id that has a label
    other: dict[str, Row] = {}  # row that contradicts the first

    def refuse(row: Row, id: str, path: str, reason: str, kind: Literal["row", "missing", "conflict"] = "row") -> None:
        path = os.path.join(annotation.root, path)
        readings.refusals.append(row._replace(id=id, path=path, reason=reason, kind=kind))

    for row in rows:
        found = find(row.path) if find else row.path
        path = (found or row.path).removeprefix(base)
        times = "" if math.isnan(row.start) else f"#t={row.start:.10g},{row.end:.10g}"
        id_ = row.id or (os.path.normpath(path).removeprefix(base) if ".." in path else path) + times
        if row.reason:
            refuse(row, id_, path, row.reason)
        elif find and not found:
            refuse(row, id_, path, f"{os.path.join(annotation.root, path)}: no such video file", "missing")
        elif row.label in why:
            refuse(row, id_, path, why[row.label])
        elif not found:
            readings.missing.append(row)
        else:
            kept.append((id_, path, row))
            own = numbers[row.label]
            if own != UNKNOWN and numbers[first.setdefault(id_, row).label] != own:
                other.setdefault(id_, row)
    clear = [each for each in kept if each[0] not in other or numbers[each[2].label] == UNKNOWN] if other else kept
    for id_, path, row in kept if other else ():
        if id_ in other and numbers[row.label] != UNKNOWN:
            twin = other[id_] if numbers[row.label] == numbers[first[id_].label] else first[id_]
            reason = f"{id_} has another label than in line {twin.line}; remove one line"
            refuse(row, id_, path, f"{reason} ({row.label!r} here, {twin.label!r} there)", "conflict")
    readings.rows = [row for *_, row in clear]
    labels = [numbers[row.label] for row in readings.rows]
    sets = [None if each == UNKNOWN else each for each in labels]
    return RecordTable(
        ids=[id_ for id_, *_ in clear],
        paths=[path for _, path, _ in clear],
        labels=pa.array(sets, pa.list_(pa.int32())) if several else labels,
        root=annotation.root,
        classes=classes,
        source=str(annotation.path),
        missing=[row.id for row in readings.missing],
        segments=np.array([(row.start, row.end) for row in readings.rows]).reshape(-1, 2),
    )


def _of_subset(annotation: Annotation, rows: list[Row]) -> list[Row]:
    """The rows of the annotation's subset; all where they are of one subset, as the user named this file."""
    names = {row.subset: SUBSETS.get(row.subset.lower(), row.subset.lower()) for row in rows if not row.reason}
    if len(names) < 2 or annotation.subset == EVERY_SUBSET:
        return rows
    if annotation.subset not in names.values() or "" in names:
        found, asked = ", ".join(name or "no split" for name in sorted(names)), annotation.subset or "no subset"
        raise DataError(f"{annotation.path}: has rows of {found}, but {asked} is asked for; write one file for each")
    return [row for row in rows if row.reason or names[row.subset] == annotation.subset]


def read_index(annotation: Annotation) -> RecordTable:
    """Records of a Parquet file with the columns ``id``, ``path``, ``label`` (integers or lists), ``start``, ``end``.

    A folder of tar shards, or its manifest, stands for the index in it.

    The schema's metadata may hold, each as JSON, the ``classes`` in label order, the ``root`` of the paths relative to
    the file, the ids that are ``missing``, and the sizes of the ``shards`` that the videos lie in.

    Raises:
        DataError: the file is no such index, was made with other classes, or a shard is missing.
    """
    folder = annotation.path.parent if annotation.path.name == MANIFEST else annotation.path
    path = folder / INDEX if folder.is_dir() else folder
    if not path.exists():
        raise DataError(f"{folder}: not all shards are there yet; run the same gcvideo prepare shard again")
    schema = pq.read_schema(path)
    several, spans = pa.types.is_list(schema.field("label").type), [n for n in ("start", "end") if n in schema.names]
    kinds = {"id": pa.string(), "path": pa.string(), "label": pa.list_(pa.int32()) if several else pa.int32()}
    fields = [pa.field(name, kind, nullable=several and name == "label") for name, kind in kinds.items()]
    fields += [pa.field(name, pa.float64()) for name in spans]
    columns = pq.read_table(path, columns=[*kinds, *spans]).select([*kinds, *spans]).cast(pa.schema(fields))
    names = ("classes", "root", "missing", "shards")
    stored, home, missing, shards = (json.loads((schema.metadata or {}).get(name.encode(), b"null")) for name in names)
    sets = columns["label"].combine_chunks()
    root = annotation.root if annotation.root_given else path.parent / (home or ".")
    stored = tuple(map(normalize, stored)) if stored is not None else None
    if stored is None and annotation.names_only:
        raise DataError(f"{path}: has no class names; set data.classes to the names in the order of its labels")
    if None not in (annotation.classes, stored) and annotation.classes != stored:
        raise DataError(f"{path}: was made with other classes; make the index again with the new list of classes")
    for name, size in (shards or {}).items():
        if not (root / name).is_file() or (root / name).stat().st_size != size:  # all its videos would be lost
            fix = f"copy the shards of {path} again, or give their folder as root"
            raise DataError(f"{root / name}: expected a file of {size:,} bytes; {fix}")
    labels, classes = np.asarray(sets.flatten() if several else sets), annotation.classes or stored
    limit = annotation.limit or len(classes or ()) or 1 << 31
    if len(labels) and not -1 <= labels.min() <= labels.max() < limit:
        raise DataError(f"{path}: has labels from {labels.min()} to {labels.max()}, expected 0 to {limit - 1}")
    if several:
        texts = pa.array([None if each is None else str(sorted(each)) for each in sets.to_pylist()], pa.string())
    else:
        texts = sets.cast(pa.string())
    known = columns.set_column(2, "label", texts).filter(pc.field("label") != "-1").group_by(["path", *spans])
    if (pc.max(known.aggregate([("label", "count_distinct")])["label_count_distinct"]).as_py() or 0) > 1:
        raise DataError(f"{path}: one video has two labels; remove one of its rows")
    return RecordTable(
        ids=columns["id"].combine_chunks(),
        paths=columns["path"].combine_chunks(),
        labels=sets if several else labels,
        root=root,
        classes=classes,
        source=str(path),
        missing=missing or (),
        segments=np.column_stack([np.asarray(columns[name], float) for name in spans]) if spans else None,
    )
