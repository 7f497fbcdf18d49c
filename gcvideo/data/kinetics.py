"""The official Kinetics CSV, matched with the video files of a copy.

Columns, by name: ``label, youtube_id, time_start, time_end, split[, is_cc]``; test sets have no label. Files are named
``ID_SSSSSS_EEEEEE`` (YouTube id, first and last second), flat or in class folders, whatever their suffix. The mirror
of the Common Visual Data Foundation (https://github.com/cvdfoundation/kinetics-dataset) adds a ``replacement`` folder
for videos that are corrupted in its archives, matched by the first eleven characters of the name: the id.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError

SUFFIXES = ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
VIDEO_SUFFIXES = frozenset(SUFFIXES.split())
YOUTUBE_ID_LENGTH = 11
CLIP_NAME = re.compile(r"(?P<id>.{11})(?:_(?P<start>\d+)_(?P<end>\d+))?")

Row = tuple[int, str]  # line number from 1, text


def read_kinetics_csv(annotation: Path, rows: Sequence[Row], root: Path, classes: Sequence[str] | None) -> RecordTable:
    """Records of the videos that are there; the ids of the others are the table's ``missing``.

    Args:
        annotation: the file, for errors.
        rows: its non-empty lines, the header first.
        root: folder to search for videos, with all folders below it.
        classes: class names in label order; by default the sorted names in the file.

    Raises:
        DataError: in one line.
    """
    ids, names = _parse(annotation, rows)
    lines = [number for number, _ in rows[1:]]
    if classes is None and any(names):
        classes = sorted({name for name in names if name})
    labels = label_numbers(names, lines, annotation, classes)
    files = find_clips(root)
    # A replacement file is listed by the YouTube id alone, and wins.
    paths = [files.get(id_[:YOUTUBE_ID_LENGTH]) or files.get(id_) for id_ in ids]
    found = [i for i, path in enumerate(paths) if path is not None]
    if ids and not found:
        raise DataError(
            f"{root}: holds none of the {len(ids):,} videos of {annotation}; expected files named like {ids[0]}.mp4, "
            "in one folder or in class folders"
        )
    return RecordTable(
        ids=[ids[i] for i in found],
        paths=[paths[i] or "" for i in found],
        labels=[labels[i] for i in found],
        root=root,
        classes=classes,
        source=str(annotation),
        missing=[id_ for id_, path in zip(ids, paths, strict=True) if path is None],
    )


def _parse(annotation: Path, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Clip ids, and class names ("" where there is none)."""
    reader = csv.reader(text for _, text in rows)
    header = [name.strip().lower() for name in next(reader)]
    for column in ("time_start", "time_end"):
        if column not in header:
            raise DataError(f"{annotation}: has a youtube_id column but no {column} column")
    id_at, start_at, end_at = (header.index(name) for name in ("youtube_id", "time_start", "time_end"))
    label_at = header.index("label") if "label" in header else None
    ids, names = [], []
    for (number, text), row in zip(rows[1:], reader, strict=False):
        try:
            ids.append(clip_id(row[id_at].strip(), row[start_at], row[end_at]))
            names.append(row[label_at].strip() if label_at is not None else "")
        except (ValueError, IndexError):
            raise DataError(
                f"{annotation}:{number}: expected a YouTube id and two times in seconds, found {text!r}"
            ) from None
    return ids, names


def clip_id(youtube_id: str, start: str, end: str) -> str:
    """The name of a clip in the official scheme."""
    return f"{youtube_id}_{int(float(start)):06d}_{int(float(end)):06d}"


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


def videos_under(root: Path) -> Iterator[str]:
    """Paths of all video files, relative to ``root``, in sorted order."""
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield name if relative == "." else os.path.join(relative, name)


def label_numbers(
    names: Sequence[str], lines: Iterable[int], annotation: Path, classes: Sequence[str] | None
) -> list[int]:
    """Label of each class name; -1 for an empty one.

    Raises:
        DataError: a name that is not among the classes, with its line and the nearest one that is.
    """
    index = {name: label for label, name in enumerate(classes or ())}
    for name, line in zip(names, lines, strict=True):
        if name and name not in index:
            raise DataError(f"{annotation}:{line}: unknown class {name!r}{nearest(name, list(index))}")
    return [index[name] if name else -1 for name in names]


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of an error message: the name that was probably meant."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f", not among the {len(names)} classes"
