"""The official Kinetics CSV, matched with the video files of a copy.

Columns, by name: ``label, youtube_id, time_start, time_end, split[, is_cc]``; test sets have no label. Files are named
``ID_SSSSSS_EEEEEE`` (YouTube id, first and last second), flat or in class folders, with any suffix. A file named by
the YouTube id alone is the clip itself or the whole video, from which the clip is cut (see
``VideoRecord.frame_range``). The mirror of the Common Visual Data Foundation
(https://github.com/cvdfoundation/kinetics-dataset) adds a folder ``replacement_for_corrupted_k400`` for videos that
are corrupted in its archives; its files are matched by the first eleven characters of their names: the id.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gcvideo.data.annotations.folders import videos_under
from gcvideo.data.annotations.lists import Layout, header_of, read_rows
from gcvideo.data.annotations.table import Annotation, Row, make_table
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError

YOUTUBE_ID_LENGTH = 11
CLIP_NAME = re.compile(r"(?P<id>.{11})(?:_(?P<start>\d+)_(?P<end>\d+))?")
REPLACEMENTS = re.compile(r"replacement(/.*)?|(.*/)?replacement_for_corrupted_k\d+(/.*)?")


def read_kinetics_csv(annotation: Annotation) -> RecordTable:
    """Records of the videos that are there; the ids of the others are the table's ``missing``.

    Raises:
        DataError: a row cannot be read, one clip has two labels, or no video is there.
    """
    header = header_of(annotation.path)
    if header is None or not {"youtube_id", "start", "end"} <= set(header.columns):
        raise annotation.error(1, "expected the columns youtube_id, time_start and time_end, and label and split")
    table = make_table(annotation, _rows(annotation, header), labels="names")
    if table.missing and not len(table):
        raise DataError(
            f"{annotation.root}: holds none of the {len(table.missing):,} videos of {annotation.path}; expected files "
            f"named like {table.missing[0]}.mp4, in one folder or in class folders"
        )
    return table


def _rows(annotation: Annotation, header: Layout) -> Iterator[Row]:
    files, replacements = find_clips(annotation.root)
    for line, row in read_rows(annotation, header):
        video, label = row["youtube_id"], row.get("label", "")
        if not video or not row["start"]:
            raise annotation.error(line, f"expected a YouTube id and two times in seconds, found {video!r}")
        clip = clip_id(video, row["start"], row["end"])
        cut = replacements.get(video[:YOUTUBE_ID_LENGTH]) or files.get(clip)
        times = () if cut else (float(row["start"]), float(row["end"]))
        yield Row(line, cut or files.get(video, ""), label, clip, *times)


def clip_id(youtube_id: str, start: str, end: str) -> str:
    """The name of a clip in the official scheme."""
    return f"{youtube_id}_{_six_digits(start)}_{_six_digits(end)}"


@functools.lru_cache(maxsize=1 << 16)
def _six_digits(seconds: str) -> str:
    return f"{int(float(seconds)):06d}"


def find_clips(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Paths under ``root`` by clip id (the YouTube id for files without times), and of replacements by YouTube id."""
    files: dict[str, str] = {}
    replacements: dict[str, str] = {}
    for path in videos_under(root):
        folder, name = os.path.split(path)
        if REPLACEMENTS.fullmatch(folder):
            replacements[name[:YOUTUBE_ID_LENGTH]] = path
        else:
            files.setdefault(clip_name(path), path)
    return files, replacements


def clip_name(path: str) -> str:
    """The clip id that a file is named for; the bare YouTube id of a file without times, else the name itself."""
    name = os.path.splitext(os.path.basename(path))[0]
    match = CLIP_NAME.fullmatch(name)
    return clip_id(match["id"], match["start"], match["end"]) if match and match["start"] else name
