"""Annotations of every layout in use, as one table of records.

``load_records`` reads the official Kinetics CSV, ``path label`` lists (PySlowFast's, mmaction2's and header-less CSV)
and folders of class folders. Problems are one-line ``DataError``s that name the file and the line.
"""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gcvideo.errors import DataError

SUFFIXES = ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
VIDEO_SUFFIXES = frozenset(SUFFIXES.split())
# ID_SSSSSS_EEEEEE: a YouTube id (always 11 characters) and the clip's first and last second.
CLIP_NAME = re.compile(r"(?P<id>.{11})(?:_(?P<start>\d+)_(?P<end>\d+))?")


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: where it lies, its label (-1: unknown) and the name it goes by in reports."""

    path: str
    label: int
    id: str


class RecordTable(Sequence[VideoRecord]):
    """Records in columns: Kinetics-700 takes tens of megabytes, and worker processes share them untouched.

    A ``VideoRecord`` is made on access.

    Args:
        ids: of the videos.
        paths: relative to ``root``, or absolute.
        labels: integers, -1 where unknown.
        root: folder of the videos.
        classes: class names in label order, where known.
        source: the annotation that the table was read from.
        missing: ids that the annotation has and the folder does not.
    """

    def __init__(
        self,
        *,
        ids: Iterable[str],
        paths: Iterable[str],
        labels: Iterable[int],
        root: str | Path = "",
        classes: Sequence[str] | None = None,
        source: str = "",
        missing: Sequence[str] = (),
    ) -> None:
        self._ids = pa.array(ids, type=pa.large_string())
        self._paths = pa.array(paths, type=pa.large_string())
        self.labels = np.fromiter(labels, dtype=np.int32)
        self.root = str(root)
        self.classes = tuple(classes) if classes is not None else None
        self.source = source
        self.missing = tuple(missing)

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> VideoRecord: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> VideoRecord | RecordTable:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = int(index) % len(self)
        path = os.path.join(self.root, self._paths[index].as_py())
        return VideoRecord(path=path, label=int(self.labels[index]), id=self._ids[index].as_py())

    def select(self, indices: Sequence[int] | np.ndarray) -> RecordTable:
        """The records of these indices, in this order."""
        table = RecordTable(ids=(), paths=(), labels=(), root=self.root, classes=self.classes, source=self.source)
        rows = np.asarray(indices, dtype=np.int64)
        table._ids, table._paths, table.labels = self._ids.take(rows), self._paths.take(rows), self.labels[rows]
        return table

    def find(self, ids: Iterable[str]) -> list[int]:
        """Indices of the records with these ids."""
        return np.flatnonzero(pc.is_in(self._ids, pa.array(ids, type=pa.large_string())).to_numpy(False)).tolist()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all (id, label) pairs in sorted order.

        It tells which videos with which labels a run saw. It covers neither the order of the rows nor where the files
        lie nor their bytes, so a copied or transcoded data set keeps its fingerprint.
        """
        lines = sorted(f"{id_}\t{label}\n" for id_, label in zip(self._ids.to_pylist(), self.labels, strict=True))
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line.encode())
        return digest.hexdigest()


def load_records(
    annotation: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> RecordTable:
    """Read an annotation of any known layout.

    - The official Kinetics CSV, told by its ``youtube_id`` column. Videos are looked for anywhere under ``root`` as
      ``ID_SSSSSS_EEEEEE`` with any video suffix; files of a ``replacement`` folder (CVDF) win, by their first eleven
      characters. Every copy of Kinetics lacks some videos: their ids are listed in ``missing``.
    - A list with a video a line: ``path``, ``path label`` or ``path number label``, separated by spaces, tabs or
      commas; paths may hold spaces. A label is an integer or, after a tab or comma, a class name. Every file must
      exist.
    - A folder with a folder of videos for each class.

    Args:
        annotation: a file, or a folder of class folders.
        root: folder that the videos lie in; by default the annotation's own folder.
        classes: class names in label order; by default the sorted names that the annotation uses.
        num_classes: largest label + 1 that is allowed; by default the number of classes where they are known.

    Raises:
        DataError: in one line, naming file and line, what is wrong, and the fix.
    """
    annotation = Path(annotation).expanduser()
    if not annotation.exists():
        raise DataError(f"{annotation}: no such annotation file or folder")
    if annotation.is_dir():
        table = _read_class_folders(annotation, classes)
    else:
        folder = Path(root).expanduser() if root is not None else annotation.parent
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of videos (root of {annotation})")
        rows = _read_rows(annotation)
        header = [name.strip().lower() for name in rows[0][1].split(",")] if rows else []
        read = _read_kinetics_csv if "youtube_id" in header else _read_list
        table = read(annotation, rows, folder, classes)
    if not len(table):
        raise DataError(f"{annotation}: lists no videos")
    _check_labels(table, annotation, num_classes)
    return table


def load_classes(path: str | Path) -> tuple[str, ...]:
    """Class names in label order.

    Reads a text file with a name a line (numbers in front, as in ``0 abseiling``, are dropped where they count the
    lines from 0 or 1), or JSON that maps names to labels or lists names.

    Raises:
        DataError: the file is missing, empty, or names a class twice.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _classes_of_json(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a readable list of classes ({_one_line(error)})") from None
    names = [name for name in names if name]
    heads = [name.split(maxsplit=1) for name in names]
    for first in (0, 1):
        if names and all(len(h) == 2 and h[0] == str(first + i) for i, h in enumerate(heads)):
            names = [h[1] for h in heads]
            break
    if not names:
        raise DataError(f"{path}: holds no class names")
    for line, name in enumerate(names, start=1):
        if name in names[: line - 1]:
            raise DataError(f"{path}:{line}: class {name!r} appears twice")
    return tuple(names)


def _classes_of_json(text: str) -> list[str]:
    values = json.loads(text)
    if isinstance(values, dict):  # name -> label; pytorchvideo's file keeps quotes inside the names
        order = sorted(values, key=lambda name: int(values[name]))
        if [int(values[name]) for name in order] != list(range(len(order))):
            raise ValueError("labels are not 0, 1, 2 ...")
        values = order
    return [str(name).strip().strip('"') for name in values]


def _read_rows(annotation: Path) -> list[tuple[int, str]]:
    """Line numbers from 1 and stripped, non-empty lines."""
    try:
        lines = annotation.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{annotation}: not a readable text file ({_one_line(error)})") from None
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


# --- Kinetics CSV ----------------------------------------------------------------------------------------------------


def _read_kinetics_csv(
    annotation: Path, rows: list[tuple[int, str]], root: Path, classes: Sequence[str] | None
) -> RecordTable:
    reader = csv.DictReader(line for _, line in rows)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    for column in ("time_start", "time_end"):
        if column not in reader.fieldnames:
            raise DataError(f"{annotation}: has a youtube_id column but no {column} column")
    ids, names, numbers = [], [], []
    for (number, _), row in zip(rows[1:], reader, strict=False):
        try:
            ids.append(_clip_id(row["youtube_id"].strip(), float(row["time_start"]), float(row["time_end"])))
        except (TypeError, ValueError, AttributeError):
            raise DataError(
                f"{annotation}:{number}: expected a YouTube id and two times in seconds, found "
                f"{row['youtube_id']!r}, {row['time_start']!r}, {row['time_end']!r}"
            ) from None
        names.append((row.get("label") or "").strip())
        numbers.append(number)
    if classes is None and any(names):
        classes = sorted({name for name in names if name})
    labels = _label_numbers(names, numbers, annotation, classes)
    files = _kinetics_files(root)
    paths = [files.get(id_[:11]) or files.get(id_) for id_ in ids]
    kept = [i for i, path in enumerate(paths) if path is not None]
    if ids and not kept:
        raise DataError(
            f"{root}: holds none of the {len(ids):,} videos of {annotation}; expected files named like {ids[0]}.mp4, "
            "in one folder or in class folders"
        )
    return RecordTable(
        ids=[ids[i] for i in kept],
        paths=[paths[i] or "" for i in kept],
        labels=[labels[i] for i in kept],
        root=root,
        classes=classes,
        source=str(annotation),
        missing=[id_ for id_, path in zip(ids, paths, strict=True) if path is None],
    )


def _clip_id(youtube_id: str, start: float, end: float) -> str:
    return f"{youtube_id}_{int(start):06d}_{int(end):06d}"


def _kinetics_files(root: Path) -> dict[str, str]:
    """Clip id -> path under root; a bare YouTube id for replacements and for files without times."""
    files: dict[str, str] = {}
    for path in _videos_under(root):
        folder, name = os.path.split(path)
        match = CLIP_NAME.fullmatch(os.path.splitext(name)[0])
        if "replacement" in folder:
            files[name[:11]] = path
        elif match and match["start"]:
            files.setdefault(_clip_id(match["id"], float(match["start"]), float(match["end"])), path)
        elif match:
            files.setdefault(match["id"], path)
    return files


def _videos_under(root: Path) -> Iterator[str]:
    """Paths of all video files, relative to root, in sorted order."""
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield name if relative == "." else os.path.join(relative, name)


def _label_numbers(
    names: Sequence[str], numbers: Sequence[int], annotation: Path, classes: Sequence[str] | None
) -> list[int]:
    """Label of each class name; -1 for an empty one."""
    index = {name: label for label, name in enumerate(classes or ())}
    for name, number in zip(names, numbers, strict=True):
        if name and name not in index:
            raise DataError(f"{annotation}:{number}: unknown class {name!r}{_nearest(name, list(index))}")
    return [index[name] if name else -1 for name in names]


# --- path label lists ------------------------------------------------------------------------------------------------


def _read_list(annotation: Path, rows: list[tuple[int, str]], root: Path, classes: Sequence[str] | None) -> RecordTable:
    files = _Files(root)
    paths, names, missing = [], [], []
    for number, line in rows:
        path, name = _split_line(line, files, annotation, number)
        if not files.has(path):
            missing.append((number, path))
        paths.append(path)
        names.append(name)
    if missing:
        number, path = missing[0]
        more = f", and {len(missing) - 1:,} more of {len(rows):,}" if len(missing) > 1 else ""
        raise DataError(f"{annotation}:{number}: no such video file: {os.path.join(root, path)}{more}")
    if all(_is_integer(name) for name in names):
        labels = [int(name) for name in names]
    else:
        if classes is None:
            classes = sorted({name for name in names if name != "-1"})
        labels = _label_numbers(
            ["" if name == "-1" else name for name in names], [number for number, _ in rows], annotation, classes
        )
    return RecordTable(ids=paths, paths=paths, labels=labels, root=root, classes=classes, source=str(annotation))


def _split_line(line: str, files: _Files, annotation: Path, number: int) -> tuple[str, str]:
    """Path and label (an integer or a class name; "-1" where the line is a path alone)."""
    for separator in "\t,":
        if separator in line and not files.has(line):
            fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
            *head, label = [field.strip() for field in fields]
            return _drop_count(head, separator, files), label
    *head, label = line.split(" ")
    if head and _is_integer(label):
        return _drop_count([part for part in head if part or len(head) > 2], " ", files), label
    if os.path.splitext(line)[1].lower() in VIDEO_SUFFIXES or files.has(line):
        return line, "-1"
    raise DataError(f"{annotation}:{number}: expected `path label` with an integer label, found {line!r}")


def _drop_count(head: list[str], separator: str, files: _Files) -> str:
    """The path of ``path number label`` rows (PySlowFast's three fields, mmaction2's frame counts)."""
    path = separator.join(head).strip()
    if len(head) > 1 and _is_integer(head[-1]) and not files.has(path):
        return separator.join(head[:-1]).strip()
    return path


class _Files:
    """Which files exist, from one listing a folder instead of one look-up a file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        folder, name = os.path.split(os.path.join(self.root, path))
        if folder not in self._listings:
            try:
                self._listings[folder] = {entry.name for entry in os.scandir(folder) if not entry.is_dir()}
            except OSError:
                self._listings[folder] = set()
        return name in self._listings[folder]


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


# --- class folders ---------------------------------------------------------------------------------------------------


def _read_class_folders(root: Path, classes: Sequence[str] | None) -> RecordTable:
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: expected a folder of videos for each class, found no folders")
    classes = folders if classes is None else classes
    unknown = [name for name in folders if name not in set(classes)]
    if unknown:
        raise DataError(f"{root / unknown[0]}: no class of that name{_nearest(unknown[0], classes)}")
    index = {name: label for label, name in enumerate(classes)}
    paths = [os.path.join(name, path) for name in folders for path in _videos_under(root / name)]
    labels = [index[path.split(os.sep, 1)[0]] for path in paths]
    return RecordTable(ids=paths, paths=paths, labels=labels, root=root, classes=classes, source=str(root))


# --- shared ----------------------------------------------------------------------------------------------------------


def _check_labels(table: RecordTable, annotation: Path, num_classes: int | None) -> None:
    if num_classes is None:
        num_classes = int(table.labels.max()) + 1 if table.classes is None else len(table.classes)
    wrong = np.flatnonzero((table.labels < -1) | (table.labels >= num_classes))
    if len(wrong):
        record = table[int(wrong[0])]
        more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
        raise DataError(
            f"{annotation}: label {record.label} of {record.id} is outside 0 to {num_classes - 1} "
            f"({num_classes} classes){more}"
        )


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f" among the {len(names)} classes"


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
