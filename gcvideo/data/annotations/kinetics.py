"""The official Kinetics CSV, matched with the video files of a copy.

Columns, by name: ``label, youtube_id, time_start, time_end, split[, is_cc]``; test sets have no label. Files are named
``ID_SSSSSS_EEEEEE`` (YouTube id, first and last second), flat or in class folders, whatever their suffix. The mirror
of the Common Visual Data Foundation (https://github.com/cvdfoundation/kinetics-dataset) adds a ``replacement`` folder
for videos that are corrupted in its archives, matched by the first eleven characters of the name: the id.
"""

from __future__ import annotations

import csv
import difflib
import functools
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gcvideo.data.annotations.video_files import videos_under
from gcvideo.data.records import RecordTable, StringColumn
from gcvideo.errors import DataError

YOUTUBE_ID_LENGTH = 11
CLIP_NAME = re.compile(r"(?P<id>.{11})(?:_(?P<start>\d+)_(?P<end>\d+))?")

UNLABELLED = -1


def read_kinetics_csv(annotation: Path, root: Path, classes: Sequence[str] | None) -> RecordTable:
    """Records of the videos that are there; the ids of the others are the table's ``missing``.

    Args:
        annotation: the file.
        root: folder to search for videos, with all folders below it.
        classes: class names in label order; by default the sorted names in the file.

    Raises:
        DataError: in one line.
    """
    files = find_clips(root)
    ids, paths, missing = StringColumn(), StringColumn(), []
    labels = LabelColumn(annotation)
    for line, id_, name in _rows(annotation):
        # A replacement file is listed by the YouTube id alone, and wins.
        path = files.get(id_[:YOUTUBE_ID_LENGTH]) or files.get(id_)
        labels.append(name, line, kept=path is not None)
        if path is None:
            missing.append(id_)
        else:
            ids.append(id_)
            paths.append(path)
    classes = classes or labels.names()
    table = RecordTable(
        ids=ids.finish(),
        paths=paths.finish(),
        labels=labels.numbers(classes),
        root=root,
        classes=classes,
        source=str(annotation),
        missing=missing,
    )
    if missing and not len(table):
        raise DataError(
            f"{root}: holds none of the {len(missing):,} videos of {annotation}; expected files named like "
            f"{missing[0]}.mp4, in one folder or in class folders"
        )
    return table


def _rows(annotation: Path) -> Iterator[tuple[int, str, str]]:
    """Line, clip id and class name ("" where there is none) of every row."""
    with annotation.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = [name.strip().lower() for name in next(reader)]
        for column in ("time_start", "time_end"):
            if column not in header:
                raise DataError(f"{annotation}: has a youtube_id column but no {column} column")
        id_at, start_at, end_at = (header.index(name) for name in ("youtube_id", "time_start", "time_end"))
        label_at = header.index("label") if "label" in header else None
        for row in filter(any, reader):
            try:
                id_ = clip_id(row[id_at].strip(), row[start_at], row[end_at])
                yield reader.line_num, id_, row[label_at].strip() if label_at is not None else ""
            except (ValueError, IndexError):
                raise DataError(
                    f"{annotation}:{reader.line_num}: expected a YouTube id and two times in seconds, found "
                    f"{','.join(row)!r}"
                ) from None


class LabelColumn:
    """Class names gathered row by row, and turned into labels once all of them are known.

    Args:
        annotation: the file that they come from, for errors.
    """

    def __init__(self, annotation: Path) -> None:
        self._annotation = annotation
        self._codes = array("i")
        self._first_line: dict[str, int] = {}  # by name, in the order of appearance
        self._code: dict[str, int] = {"": UNLABELLED}

    def append(self, name: str, line: int, *, kept: bool = True) -> None:
        """Add the name of a row, "" for none; of a row that is not kept only the name is remembered."""
        code = self._code.get(name)
        if code is None:
            code = self._code[name] = len(self._first_line)
            self._first_line[name] = line
        if kept:
            self._codes.append(code)

    def names(self) -> list[str] | None:
        """All names in sorted order; None where there are none."""
        return sorted(self._first_line) or None

    def numbers(self, classes: Sequence[str] | None) -> np.ndarray:
        """Label of every row that was kept, -1 where it has none.

        Raises:
            DataError: a name that is not among the classes, with its line and the nearest one that is.
        """
        index = {name: label for label, name in enumerate(classes or ())}
        for name, line in self._first_line.items():
            if name not in index:
                raise DataError(f"{self._annotation}:{line}: unknown class {name!r}{nearest(name, list(index))}")
        return self._replace(index)

    def integers(self, limit: int | None) -> np.ndarray | None:
        """The same for names that are the labels themselves; None where one is no integer.

        Raises:
            DataError: a label outside 0 to ``limit`` - 1, with its line.
        """
        if not all(name.removeprefix("-").isdecimal() for name in self._first_line):
            return None
        for name, line in self._first_line.items():
            if int(name) < 0 or (limit is not None and int(name) >= limit):
                expected = f"0 to {limit - 1}" if limit is not None else "0, 1, 2 ..."
                raise DataError(f"{self._annotation}:{line}: label {name} is outside {expected}")
        return self._replace({name: int(name) for name in self._first_line})

    def _replace(self, index: dict[str, int]) -> np.ndarray:
        # The last entry stands for the code -1.
        table = np.array([*(index[name] for name in self._first_line), UNLABELLED], dtype=np.int32)
        return table[np.frombuffer(self._codes, dtype=np.int32)]


def clip_id(youtube_id: str, start: str, end: str) -> str:
    """The name of a clip in the official scheme."""
    return f"{youtube_id}_{_six_digits(start)}_{_six_digits(end)}"


@functools.lru_cache(maxsize=1 << 16)
def _six_digits(seconds: str) -> str:
    return f"{int(float(seconds)):06d}"


def find_clips(root: Path) -> dict[str, str]:
    """Clip id -> path under ``root``; the bare YouTube id for replacements and for files without times."""
    files: dict[str, str] = {}
    for path in videos_under(root):
        folder, name = os.path.split(path)
        match = CLIP_NAME.fullmatch(os.path.splitext(name)[0])
        if "replacement" in folder:
            files[name[:YOUTUBE_ID_LENGTH]] = path
        elif match and match["start"]:
            files.setdefault(clip_id(match["id"], match["start"], match["end"]), path)
        elif match:
            files.setdefault(match["id"], path)
    return files


def clip_name(path: str) -> str:
    """The clip id that a file is named for; the bare YouTube id of a file without times, else the name itself."""
    name = os.path.splitext(os.path.basename(path))[0]
    match = CLIP_NAME.fullmatch(name)
    if match is None:
        return name
    return clip_id(match["id"], match["start"], match["end"]) if match["start"] else match["id"]


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of an error message: the name that was probably meant."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f", not among the {len(names)} classes"
