"""Annotations of every layout in use, as one table of records.

``load_records`` reads the official Kinetics CSV, ``path label`` lists (PySlowFast's, mmaction2's and header-less CSV),
folders of class folders, folders of tar shards, and an index in Parquet. Problems are one-line ``DataError``s that name
the file and the line.
"""

from __future__ import annotations

import csv
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gcvideo.data.annotations.kinetics import LabelColumn, nearest, read_kinetics_csv
from gcvideo.data.annotations.video_files import VIDEO_SUFFIXES, videos_under
from gcvideo.data.records import RecordTable, StringColumn
from gcvideo.errors import DataError
from gcvideo.video.tar_members import INDEX, MANIFEST

UNLABELLED = "-1"


def load_records(
    annotation: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> RecordTable:
    """Read an annotation of any known layout.

    - The official Kinetics CSV, told by its ``youtube_id`` column (see ``kinetics.py``). Every copy of Kinetics
      lacks some videos: their ids are listed in ``missing``.
    - A list with a video a line: ``path``, ``path label`` or ``path number label`` (PySlowFast's and mmaction2's),
      separated by spaces, tabs or commas; paths may hold any of them. A label is an integer or, after a tab or comma,
      a class name. Every file must exist, and none may have two labels.
    - A folder with a folder of videos for each class.
    - An index that ``gcvideo prepare index`` made, or any Parquet file with the columns ``id``, ``path`` and ``label``
      (integers). The schema's metadata may hold, each as JSON, the ``classes`` in label order, the ``root`` of the
      paths relative to the file, and the ids that are ``missing``.
    - A folder of tar shards that ``gcvideo prepare shard`` made: the index in it. Its records are those of the
      annotation that the shards were made of, in the same order, with paths into the shards.

    Args:
        annotation: a file, or a folder of class folders or of shards.
        root: folder that the videos lie in; by default the annotation's own folder.
        classes: class names in label order; by default the sorted names that the annotation uses.
        num_classes: largest label + 1 that is allowed; by default the number of classes where they are known.

    Raises:
        DataError: in one line, naming file and line, what is wrong, and the fix.
    """
    annotation = Path(annotation).expanduser()
    if not annotation.exists():
        raise DataError(f"{annotation}: no such annotation file or folder")
    folder = Path(root).expanduser() if root is not None else annotation.parent
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of videos (for {annotation})")
    annotation = _index_of_shards(annotation) or annotation
    if annotation.is_dir():
        table = _read_class_folders(annotation, classes)
    elif annotation.suffix == ".parquet":
        table = _read_parquet(annotation, folder if root is not None else None, classes)
    else:
        table = _read_text(annotation, folder, classes, num_classes)
    if not len(table):
        raise DataError(f"{annotation}: lists no videos")
    largest = int(table.labels.max())
    limit = num_classes or (len(table.classes) if table.classes else largest + 1)
    if largest >= limit or table.labels.min() < -1:
        raise DataError(f"{annotation}: has labels from {table.labels.min()} to {largest}, expected 0 to {limit - 1}")
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
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable list of classes ({_one_line(error)})") from None
    names = [name for name in names if name]
    heads = [name.split(maxsplit=1) for name in names]
    for first in (0, 1):
        if all(len(head) == 2 and head[0] == str(first + i) for i, head in enumerate(heads)):
            names = [head[1] for head in heads]
            break
    if not names:
        raise DataError(f"{path}: holds no class names")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: class {name!r} appears twice")
        seen.add(name)
    return tuple(names)


def _classes_of_json(text: str) -> list[str]:
    values = json.loads(text)
    if isinstance(values, dict):  # name -> label; pytorchvideo's file keeps quotes inside the names
        order = sorted(values, key=lambda name: int(values[name]))
        if [int(values[name]) for name in order] != list(range(len(order))):
            raise ValueError("the labels are not 0, 1, 2 ...")
        values = order
    return [str(name).strip().strip('"') for name in values]


def _read_text(annotation: Path, root: Path, classes: Sequence[str] | None, num_classes: int | None) -> RecordTable:
    try:
        with annotation.open(encoding="utf-8-sig") as file:
            header = [name.strip(' "\n').lower() for name in file.readline().split(",")]
        if "youtube_id" in header:
            return read_kinetics_csv(annotation, root, classes)
        return _read_list(annotation, root, classes, num_classes)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{annotation}: not a readable text file ({_one_line(error)})") from None


def _read_list(annotation: Path, root: Path, classes: Sequence[str] | None, num_classes: int | None) -> RecordTable:
    files = _Files(root)
    paths, names, count = StringColumn(), LabelColumn(annotation), 0
    lines = array("i")  # of the records
    missing: list[tuple[int, list[str]]] = []  # line, and every path that it may mean
    with annotation.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(map(str.strip, file), start=1):
            if not text:
                continue
            readings = [(text, UNLABELLED)] if files.has(text) else list(_path_and_label(text))
            if not readings:
                raise DataError(f"{annotation}:{line}: expected `path label` with an integer label, found {text!r}")
            path, label = next((reading for reading in readings if files.has(reading[0])), readings[0])
            if not files.has(path):
                missing.append((line, [path for path, _ in readings]))
            paths.append(path)
            lines.append(line)
            names.append("" if label == UNLABELLED else label, line)
            count += 1
    if missing:
        raise DataError(_missing_files(annotation, missing, count, root))
    labels = names.integers(num_classes or len(classes or ()) or None)
    if labels is None:
        classes = classes or names.names()
        labels = names.numbers(classes)
    column = paths.finish()
    table = RecordTable(ids=column, paths=column, labels=labels, root=root, classes=classes, source=str(annotation))
    pair = table.contradiction()
    if pair is not None:
        first, second = (lines[row] for row in pair)
        raise DataError(
            f"{annotation}:{second}: {table[pair[1]].id} has another label than in line {first}; remove the wrong line"
        )
    return table


def _path_and_label(text: str) -> Iterator[tuple[str, str]]:
    """Every way to read a row, the likeliest first; which one is meant is known once a file of that name exists."""
    for separator in ("\t", ",", " "):
        if separator not in text:
            continue
        if separator == " ":
            fields = text.split(" ")
        else:
            fields = next(csv.reader([text], delimiter=separator, skipinitialspace=True))
        *head, label = fields
        if separator == " " and not _is_integer(label):
            continue
        yield separator.join(head).strip().strip('"'), label.strip()
        if len(head) > 1 and _is_integer(head[-1].strip()):  # `path number label`
            yield separator.join(head[:-1]).strip().strip('"'), label.strip()
    if os.path.splitext(text)[1].lower() in VIDEO_SUFFIXES:
        yield text, UNLABELLED


def _missing_files(annotation: Path, missing: Sequence[tuple[int, list[str]]], count: int, root: Path) -> str:
    line, readings = missing[0]
    paths = [os.path.join(root, path) for path in readings]
    folders = [path for path in paths if os.path.isdir(path)]
    what = "is a folder, and frames in folders are not read" if folders else "no such video file"
    more = f" (and {len(missing) - 1:,} more of {count:,} rows)" if len(missing) > 1 else ""
    return f"{annotation}:{line}: {(folders or paths)[0]}: {what}{more}"


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
            except (OSError, ValueError):
                self._listings[folder] = set()
        return name in self._listings[folder]


def _read_class_folders(root: Path, classes: Sequence[str] | None) -> RecordTable:
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: expected a folder of videos for each class, found no folders")
    classes = folders if classes is None else classes
    index = {name: label for label, name in enumerate(classes)}
    for name in folders:
        if name not in index:
            raise DataError(f"{root / name}: unknown class{nearest(name, classes)}")
    paths = [path for path in videos_under(root) if os.sep in path]
    labels = [index[path.split(os.sep, 1)[0]] for path in paths]
    return RecordTable(ids=paths, paths=paths, labels=labels, root=root, classes=classes, source=str(root))


def _index_of_shards(annotation: Path) -> Path | None:
    """The index of a folder of tar shards, or of its manifest; None for anything else."""
    folder = annotation.parent if annotation.name == MANIFEST else annotation
    if (folder / INDEX).exists():
        return folder / INDEX
    if (folder / MANIFEST).exists():
        raise DataError(f"{folder}: has no {INDEX}; run the same gcvideo prepare shard again, which writes only that")
    if (folder / f"{MANIFEST}.partial").exists():
        raise DataError(f"{folder}: not all shards are there yet; run the same gcvideo prepare shard again")
    return None


def _read_parquet(annotation: Path, root: Path | None, classes: Sequence[str] | None) -> RecordTable:
    try:
        columns = pq.read_table(annotation, columns=["id", "path", "label"])
        metadata = columns.schema.metadata or {}
        stored = json.loads(metadata.get(b"classes", b"null"))
        missing = json.loads(metadata.get(b"missing", b"[]"))
        root = root or annotation.parent / json.loads(metadata.get(b"root", b'"."'))
        shards = {
            os.path.join(root, name): int(size) for name, size in json.loads(metadata.get(b"shards", b"{}")).items()
        }
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{annotation}: not an index of videos ({_one_line(error)})") from None
    if classes is not None and stored is not None and list(classes) != list(stored):
        raise DataError(f"{annotation}: was made with other classes; make the index again with the new list of classes")
    _check_shards(annotation, shards)
    return RecordTable(
        ids=columns["id"].combine_chunks(),
        paths=columns["path"].combine_chunks(),
        labels=np.asarray(columns["label"]),
        root=root,
        classes=classes or stored,
        source=str(annotation),
        missing=missing,
    )


def _check_shards(annotation: Path, shards: dict[str, int]) -> None:
    """Raise where a shard is missing or has another size than the index says: its videos would all be lost."""
    for path, expected in shards.items():
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size != expected:
            found = "is not there" if size is None else f"has {size:,} bytes instead of {expected:,}"
            raise DataError(f"{path}: {found}; copy the shards of {annotation} again, or give the folder as root")


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
