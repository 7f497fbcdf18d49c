"""The official lists of UCF101 and HMDB51, each with three splits, and of Something-Something V2.

- UCF101: ``classInd.txt``; ``trainlist01.txt`` (``Class/video.avi label``, from 1); ``testlist01.txt`` (no labels).
- HMDB51: ``CLASS_test_split1.txt`` for each class: ``video.avi 1`` (to train on), ``2`` (to test on) or ``0`` (unused).
- Something-Something V2: ``something-something-v2-train.json``, a list of objects with ``id`` and ``template``.

The videos lie below the root as the data sets unpack them, or as copies with other suffixes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from gcvideo.data.annotations.classes import load_classes
from gcvideo.data.annotations.lists import read_lines
from gcvideo.data.annotations.table import Annotation, FileFinder, Row, make_table
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError

UCF101_CLASSES = "classInd.txt"
UCF101_LIST = re.compile(r"(train|test)list0[1-3]\.txt")
HMDB51_LIST = re.compile(r"(.+)_test_split([1-3])\.txt")


def read_ucf101(annotation: Annotation) -> RecordTable:
    """Records of one list, or of the folder of lists by subset and split; the class is the folder of a video."""
    path = annotation.path
    if path.is_dir():
        path = path / f"{'train' if _is_training(annotation) else 'test'}list0{annotation.split}.txt"
    order = load_classes(path.parent / UCF101_CLASSES)
    annotation = replace(annotation, path=path, classes=annotation.classes or order)
    return make_table(annotation, _ucf101_rows(annotation, order), files=_files(annotation), labels="names")


def _ucf101_rows(annotation: Annotation, order: tuple[str, ...]) -> Iterator[Row]:
    for line, text in read_lines(annotation.path):
        video, _, number = text.partition(" ")
        name = video.split("/")[0]
        if number and (name not in order or number != str(order.index(name) + 1)):
            raise annotation.error(line, f"label {number} is not that of {name!r} in {UCF101_CLASSES}")
        yield Row(line, video, name)


def read_hmdb51(annotation: Annotation) -> RecordTable:
    """Records of all classes of one split, from the folder of lists."""
    names = {path: HMDB51_LIST.fullmatch(path.name) for path in sorted(annotation.path.iterdir())}
    lists = {path: name[1] for path, name in names.items() if name and name[2] == str(annotation.split)}
    wanted = "1" if _is_training(annotation) else "2"
    annotation = replace(annotation, classes=annotation.classes or tuple(sorted(lists.values())))
    files = _files(annotation)

    def rows() -> Iterator[Row]:
        for path, name in lists.items():
            for line, text in read_lines(path):
                video, _, flag = text.rpartition(" ")
                if flag == wanted:
                    yield Row(line, f"{name}/{video}" if files.find(f"{name}/{video}") else video, name)

    return make_table(annotation, rows(), files=files, labels="names")


def read_something_something(annotation: Annotation) -> RecordTable:
    """Records of one JSON file; the label order is that of the labels file beside it, else of the sorted names."""
    try:
        entries = json.loads(annotation.path.read_text(encoding="utf-8-sig"))
        rows = [
            Row(number, f"{entry['id']}.webm", re.sub(r"[\[\]]", "", entry.get("template", "")), str(entry["id"]))
            for number, entry in enumerate(entries, start=1)
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        expected = "that of Something-Something V2 (objects with id and template), or lines of `path label`"
        raise DataError(f"{annotation.path}: looks like JSON; expected {expected}") from None
    labels = sorted(annotation.path.parent.glob("*labels.json"))
    if annotation.classes is None and labels:
        annotation = replace(annotation, classes=load_classes(labels[0]))
    return make_table(annotation, rows, files=_files(annotation), labels="names")


def _is_training(annotation: Annotation) -> bool:
    if annotation.subset is None:
        raise DataError(f"{annotation.path}: lists training and test videos; name one of the list files instead")
    return annotation.subset == "train"


def _files(annotation: Annotation) -> FileFinder:
    return FileFinder(annotation.root, any_suffix=True)
