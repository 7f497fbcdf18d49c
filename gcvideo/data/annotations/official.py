"""The official annotations of Kinetics, UCF101, HMDB51, Charades and Something-Something V2.

- Kinetics: CSV with the columns ``label, youtube_id, time_start, time_end, split[, is_cc]``, found by their names; test
  sets have no label. Files are named ``ID_SSSSSS_EEEEEE`` (YouTube id, first and last second), flat or in class
  folders, with any suffix. A file named by the YouTube id alone is the clip itself or the whole video, from which the
  clip is cut (see ``VideoRecord.frame_range``). The mirror of the Common Visual Data Foundation
  (https://github.com/cvdfoundation/kinetics-dataset) adds a folder ``replacement_for_corrupted_k400`` for videos that
  are corrupted in its archives; its files are matched by the first eleven characters of their names: the id.
- UCF101: ``classInd.txt``; ``trainlist01.txt`` (``Class/video.avi label``, from 1); ``testlist01.txt`` (no labels).
- HMDB51: ``CLASS_test_split1.txt`` for each class: ``video.avi 1`` (to train on), ``2`` (to test on) or ``0`` (unused).
- Charades: ``Charades_v1_train.csv`` with the columns ``id, ..., actions, length``; actions are ``c092 11.90 21.20;c147
  0.00 12.60`` (class, start, end). ``Charades_v1_classes.txt`` beside it has the names: ``c000 Holding some clothes``.
- Something-Something V2: ``something-something-v2-train.json``, a list of objects with ``id`` and ``template``.

Videos may have other suffixes than their data sets give them, as transcoded copies have.
"""

import csv
import json
import math
import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from gcvideo.data.annotations.classes import load_classes
from gcvideo.data.annotations.folders import VIDEO_SUFFIXES, videos_under
from gcvideo.data.annotations.lists import LABELS, header_of, read_lines, read_rows
from gcvideo.data.annotations.table import EVERY_SUBSET, Annotation, Find, Row, make_table
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError

YOUTUBE_ID_LENGTH = 11
CLIP_NAME = re.compile(r"(.{11})_(\d+)_(\d+)")
REPLACEMENTS = re.compile(r"replacement(/.*)?|(.*/)?replacement_for_corrupted_k\d+(/.*)?")
UCF101_CLASSES = "classInd.txt"
UCF101_LIST = re.compile(r"(train|test)list0[1-3]\.txt")
CHARADES_COLUMNS = {"id", "script", "actions"}
HMDB51_LIST = re.compile(r"(.+)_test_split([1-3])\.txt")


def read_kinetics_csv(annotation: Annotation) -> RecordTable:
    """Records of the videos that are there; the ids of the others are the table's ``missing``.

    Raises:
        DataError: a row cannot be read, or one clip has two labels.
    """
    header = header_of(annotation.path)
    if header is None or not {"youtube_id", "start", "end"} <= set(header.columns):
        raise annotation.error(1, "expected the columns youtube_id, time_start and time_end, and label and split")
    files, replacements = find_clips(annotation.root)
    rows = []
    column = next((name for name in LABELS if name in header.columns), "label")
    for line, row in read_rows(annotation, header):
        video, clip = row["youtube_id"], clip_id(row["youtube_id"], row["start"], row["end"])
        cut = replacements.get(video[:YOUTUBE_ID_LENGTH]) or files.get(clip)
        times = (math.nan, math.nan) if cut else (float(row["start"]), float(row["end"]))
        path = cut or files.get(video, "")
        rows.append(Row(line, path, row.get(column, ""), clip, *times, row.get("split", "")))
    return make_table(annotation, rows, labels="numbers" if column == "class_id" else "names")


def clip_id(youtube_id: str, start: str, end: str) -> str:
    """The name of a clip in the official scheme."""
    return f"{youtube_id}_{int(float(start)):06d}_{int(float(end)):06d}"


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
    return clip_id(*match.groups()) if match else name


def read_ucf101(annotation: Annotation) -> RecordTable:
    """Records of one list, or of the folder of lists by subset and split; the class is the folder of a video."""
    path = annotation.path
    if path.is_dir():
        path = path / f"{'train' if _is_training(annotation) else 'test'}list0{annotation.split}.txt"
    classes = annotation.classes or load_classes(path.parent / UCF101_CLASSES)
    annotation = replace(annotation, path=path, classes=classes)
    numbered = path.parent / UCF101_CLASSES
    names = dict([*text.split(maxsplit=1), ""][:2] for _, text in read_lines(numbered)) if numbered.exists() else {}
    rows = []
    for line, text in read_lines(path):
        video, number = [*text.replace("\\", "/").split(), ""][:2]
        name = video.split("/")[0]
        if names.get(number, name) != name:
            annotation.refuse(line, video, video, f"{text!r}: {numbered} calls class {number} {names[number]!r}")
        else:
            rows.append(Row(line, video, name))
    return make_table(annotation, rows, find=find_by_stem(annotation.root), labels="names")


def read_hmdb51(annotation: Annotation) -> RecordTable:
    """Records of all classes of one split, from the folder of lists."""
    wanted = "1" if _is_training(annotation) else "2"
    rows, names = [], []
    for path in sorted(annotation.path.iterdir()):
        match = HMDB51_LIST.fullmatch(path.name)
        if match and match[2] == str(annotation.split):
            names.append(match[1])
            for line, text in read_lines(path):
                video, flag = [*text.rsplit(maxsplit=1), ""][:2]
                if flag not in {"0", "1", "2"}:
                    reason = f"expected a video and 0, 1 or 2, found {text!r}"
                    replace(annotation, path=path).refuse(line, text, text, reason)
                rows += [Row(line, f"{match[1]}/{video}", match[1])] if flag == wanted else []
    if not names:
        raise DataError(f"{annotation.path}: holds no lists of split {annotation.split}")
    annotation = replace(annotation, classes=annotation.classes or tuple(sorted(names)))
    return make_table(annotation, rows, find=find_by_stem(annotation.root), labels="names")


def read_something_something(annotation: Annotation) -> RecordTable:
    """Records of one JSON file; the label order is that of the labels file beside it, else of the sorted names."""
    try:
        entries = json.loads(annotation.path.read_text(encoding="utf-8-sig"))
        rows = []
        for number, entry in enumerate(entries, start=1):
            template = entry["template"] if len(entry) > 1 else ""  # test sets have ids only
            rows.append(Row(number, f"{entry['id']}.webm", re.sub(r"[\[\]]", "", template), str(entry["id"])))
    except (ValueError, TypeError, KeyError, AttributeError):
        expected = "that of Something-Something V2 (objects with id and template), or lines of `path label`"
        raise DataError(f"{annotation.path}: looks like JSON; expected {expected}") from None
    labels = sorted(annotation.path.parent.glob("*labels.json"))
    if annotation.classes is None and labels:
        annotation = replace(annotation, classes=load_classes(labels[0]))
    return make_table(annotation, rows, find=find_by_stem(annotation.root), labels="names")


def read_charades(annotation: Annotation) -> RecordTable:
    """Records of one CSV, each with the labels of all its actions; videos are named ``ID.mp4``."""
    names = annotation.path.with_name("Charades_v1_classes.txt")
    if annotation.classes is None and names.exists():
        annotation = replace(annotation, classes=load_classes(names))
    named = {f"c{number:03d}": name for number, name in enumerate(annotation.classes or map(str, range(157)))}
    rows = []
    with annotation.path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {*(reader.fieldnames or ())} >= CHARADES_COLUMNS:
            raise annotation.error(1, f"expected the columns of Charades: {', '.join(sorted(CHARADES_COLUMNS))}")
        for entry in reader:
            codes = dict.fromkeys(action.partition(" ")[0] for action in (entry["actions"] or "").split(";"))
            label = "|".join(named.get(code, code) for code in codes)
            rows.append(Row(reader.line_num, f"{entry['id']}.mp4", label, entry["id"]))
    return make_table(annotation, rows, find=find_by_stem(annotation.root), labels="sets")


def _is_training(annotation: Annotation) -> bool:
    if annotation.subset in (None, EVERY_SUBSET):
        raise DataError(f"{annotation.path}: lists training and test videos; name one of the list files instead")
    return annotation.subset == "train"


def find_by_stem(root: Path) -> Find:
    """Finds videos with any suffix, as transcoded copies have, by as many of the last parts of a path as one has."""
    places: dict[str, dict[str, str]] = defaultdict(dict)  # the last parts of paths, without the suffix -> their stems

    def tails(path: str) -> list[str]:
        stem, suffix = os.path.splitext(path)
        parts = (stem if suffix.lower() in VIDEO_SUFFIXES else path).split("/")
        return ["/".join(parts[first:]) for first in range(len(parts))]

    for path in videos_under(root):  # a file comes behind the folder of its frames
        for tail in tails(path):
            places[tail][tails(path)[0]] = path

    def find(path: str) -> str | None:
        found = next((found for tail in tails(path) if (found := places.get(tail))), {})
        return next(iter(found.values())) if len(found) == 1 else None

    return find
