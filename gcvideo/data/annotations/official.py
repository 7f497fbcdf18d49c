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

from gcvideo.data.annotations.folders import find_by_stem, videos_under
from gcvideo.data.annotations.labels import load_classes
from gcvideo.data.annotations.lists import LABELS, header_of, read_lines, read_rows
from gcvideo.data.annotations.table import EVERY_SUBSET, Annotation, Row, make_table
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError

YOUTUBE_ID_LENGTH = 11
REPLACEMENTS = re.compile(r"replacement(/.*)?|(.*/)?replacement_for_corrupted_k\d+(/.*)?")
UCF101_CLASSES = "classInd.txt"
UCF101_LIST = re.compile(r"(train|test)list0[1-3]\.txt")
CHARADES_COLUMNS = {"id", "script", "actions"}
HMDB51_LIST = "_test_split{}.txt"


def read_kinetics_csv(annotation: Annotation) -> RecordTable:
    """Records of the videos that are there; the ids of the others are the table's ``missing``."""
    header = header_of(annotation.path)
    if header is None or not {"youtube_id", "start", "end"} <= set(header.columns):
        raise ValueError("it lacks one of the columns youtube_id, time_start and time_end")
    files: dict[str, str] = {}  # by clip id, or the YouTube id for files without times
    replacements: dict[str, str] = {}  # by YouTube id
    for path in videos_under(annotation.root):
        folder, name = os.path.split(path)
        if REPLACEMENTS.fullmatch(folder):
            replacements[name[:YOUTUBE_ID_LENGTH]] = path
        else:
            files.setdefault(os.path.splitext(name)[0], path)
    column = next((name for name in LABELS if name in header.columns), "label")

    def make(line: int, row: dict[str, str]) -> Row:
        video, times = row["youtube_id"], (float(row["start"]), float(row["end"]))
        clip = f"{video}_{int(times[0]):06d}_{int(times[1]):06d}"
        cut = replacements.get(video[:YOUTUBE_ID_LENGTH]) or files.get(clip)
        times = (math.nan, math.nan) if cut else times
        return Row(line, cut or files.get(video, ""), row.get(column, ""), clip, *times, row.get("split", ""))

    rows = read_rows(annotation, header, files.get, make)
    return make_table(annotation, rows, kind="numbers" if column == "class_id" else "names")


def read_ucf101(annotation: Annotation) -> RecordTable:
    """Records of one list, or of the folder of lists by subset and split; the class is the folder of a video."""
    path = annotation.path
    if path.is_dir():
        path = path / f"{'train' if _is_training(annotation) else 'test'}list0{annotation.split}.txt"
    listed = path.parent / UCF101_CLASSES
    order = load_classes(listed) if listed.exists() or annotation.classes is None else ()
    names = {str(number): name for number, name in enumerate(order, start=1)}
    rows = []
    for line, text in read_lines(path):
        video, number = [*text.replace("\\", "/").split(), ""][:2]
        name = video.split("/")[0]
        listed_name = names.get(number, "no class") if number and names else name
        wrong = f"{text!r}: {listed} calls class {number} {listed_name!r}" if listed_name != name else ""
        rows.append(Row(line, video, name, reason=wrong))
    annotation = annotation._replace(path=path, classes=annotation.classes or order)
    return make_table(annotation, rows, find=find_by_stem(annotation.root), kind="names")


def read_hmdb51(annotation: Annotation) -> RecordTable:
    """Records of all classes of one split, from the folder of lists."""
    wanted = "1" if _is_training(annotation) else "2"
    ending = HMDB51_LIST.format(annotation.split)
    lists = {path.name.removesuffix(ending): path for path in sorted(annotation.path.glob(f"*{ending}"))}
    if not lists:
        raise DataError(f"{annotation.path}: holds no lists of split {annotation.split}")
    rows = []
    for name, path in lists.items():
        for line, text in read_lines(path):
            video, flag = [*text.rsplit(maxsplit=1), ""][:2]
            wrong = "" if flag in {"0", "1", "2"} else f"{path.name}: expected a video and 0, 1 or 2, found {text!r}"
            rows += [Row(line, f"{name}/{video}", name, reason=wrong)] if wrong or flag == wanted else []
    annotation = annotation._replace(classes=annotation.classes or tuple(lists))
    return make_table(annotation, rows, find=find_by_stem(annotation.root), kind="names")


def read_something_something(annotation: Annotation) -> RecordTable:
    """Records of one JSON file; the label order is that of the labels file beside it, else of the sorted names."""
    rows = []
    for number, entry in enumerate(json.loads(annotation.path.read_text(encoding="utf-8-sig")), start=1):
        template = entry["template"] if len(entry) > 1 else ""  # test sets have ids only
        rows.append(Row(number, f"{entry['id']}.webm", re.sub(r"[\[\]]", "", template), str(entry["id"])))
    for labels in sorted(annotation.path.parent.glob("*labels.json"))[:1] if annotation.classes is None else ():
        annotation = annotation._replace(classes=load_classes(labels))
    return make_table(annotation, rows, find=find_by_stem(annotation.root), kind="names")


def read_charades(annotation: Annotation) -> RecordTable:
    """Records of one CSV, each with the labels of all its actions; videos are named ``ID.mp4``."""
    names = annotation.path.with_name("Charades_v1_classes.txt")
    if annotation.classes is None and names.exists():
        annotation = annotation._replace(classes=load_classes(names))
    named = {f"c{number:03d}": name for number, name in enumerate(annotation.classes or map(str, range(157)))}
    rows = []
    with annotation.path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for entry in reader:
            codes = dict.fromkeys(action.partition(" ")[0] for action in (entry["actions"] or "").split(";"))
            label = "|".join(named.get(code, code) for code in codes)
            rows.append(Row(reader.line_num, f"{entry['id']}.mp4", label, entry["id"]))
    return make_table(annotation, rows, find=find_by_stem(annotation.root), several=True)


def _is_training(annotation: Annotation) -> bool:
    if annotation.subset in (None, EVERY_SUBSET):
        raise DataError(f"{annotation.path}: lists training and test videos; name one of the list files instead")
    return annotation.subset == "train"
