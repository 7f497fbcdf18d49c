"""Exports of annotation tools as lists: Label Studio, CVAT, and the VGG Image Annotator (VIA 3).

- Label Studio: JSON, JSON-MIN, CSV and TSV, with ``choices`` of a video or region, ``timelinelabels`` of a timeline,
  whose ``ranges`` are frames from 1, both ends included, and ``labels`` of the sound of a video, which have a ``start``
  and an ``end`` in seconds (https://labelstud.io/guide/export, https://labelstud.io/tags).
- CVAT: "CVAT for video 1.1" (tracks) and "CVAT for images 1.1" (tags of frames, of a video or of folders of pictures):
  XML, or the ZIP file that holds it (https://docs.cvat.ai/docs/manual/advanced/xml_format). Frames that follow each
  other with one label are a segment; tags on no more than one frame stand for the whole video. Attributes of shapes,
  tracks and tags are fields of their own.
- VIA 3: project files, whose ``metadata`` have times ``z`` in seconds and values ``av`` of attributes, resolved by the
  attributes' ``options`` (https://gitlab.com/vgg/via, via-3.x.y/CodeDoc.md).
"""

import csv
import itertools
import json
import math
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

from gcvideo.data.annotations.folders import SUFFIXES, find_by_stem
from gcvideo.data.annotations.labels import split_cells
from gcvideo.errors import DataError, VideoError
from gcvideo.files import replacing
from gcvideo.video import open_video
from gcvideo.video.frame_folder import find_pictures

VIDEO = re.compile(rf"(?:\?d=)?([^?\"<>]+({'|'.join(map(re.escape, SUFFIXES.split()))}))(?=$|[?&#\"'])", re.IGNORECASE)
UPLOADED = re.compile(r"(^|(?<=/))[0-9a-f]{8}-(?=[^/]+$)")  # Label Studio puts it before the name of an uploaded file
LATE = 1.0  # seconds that the end of a segment may lie behind that of the pictures: sound lasts longer
OWN = "id annotator annotation_id created_at updated_at lead_time agreement history was_cancelled"
EXPECTED = "expected JSON, JSON-MIN, CSV or TSV of Label Studio, XML or ZIP of CVAT 1.1, or a project (JSON) of VIA 3"


class Mark(NamedTuple):
    """A label that an export gives a video, named as there, or a part of it.

    ``field`` is the question or attribute that it belongs to, ``by`` the annotation, of several of one video. ``part``
    is in seconds, or a range of frames from 0, of a folder the numbers of its pictures; its step is that of the frames
    that the tool showed. None stands for the whole video.
    """

    video: str
    label: str
    field: str = ""
    by: str = ""
    part: tuple[float, float] | range | None = None


def read_export(path: Path) -> list[Mark]:
    """What an export says.

    Raises:
        DataError: it is none of those known, or damaged.
    """
    try:
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = archive.read(next((name for name in archive.namelist() if name.endswith(".xml")), "a file .xml"))
        text = data.decode("utf-8-sig").strip()
        if text[:1] == "<":
            marks = [*_cvat(ElementTree.fromstring(text.encode()))]
        elif text[:1] == "{":
            marks = [*_via(json.loads(text))]
        else:
            table = csv.DictReader(text.splitlines(True), delimiter="\t" if "\t" in text.split("\n")[0] else ",")
            marks = [mark for task in (json.loads(text) if text[:1] == "[" else table) for mark in _label_studio(task)]
        if not marks:
            raise ValueError("there are no labels in it")
        return marks
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError) as error:  # of Python's parsers
        raise DataError(f"{path}: {EXPECTED}; {type(error).__name__}: {error}") from None


def _label_studio(task: dict[str, Any]) -> Iterator[Mark]:
    """Marks of a task with its annotations, or of a row that is one annotation of a task."""
    found = next(filter(None, map(VIDEO.search, map(str, task.get("data", task).values()))), None)
    results: list[tuple[Any, str, Any]] = []  # annotation, question, value
    for number, each in enumerate(task.get("annotations", ())):
        given = [result for result in each["result"] if "value" in result and not each.get("was_cancelled")]
        results += [(each.get("id", number), result.get("from_name", ""), result["value"]) for result in given]
    for name, cell in {} if "annotations" in task or str(task.get("was_cancelled")) == "True" else task.items():
        if name not in OWN.split() and cell and not VIDEO.search(str(cell)):
            value = json.loads(cell) if isinstance(cell, str) and cell[:2] in ('{"', "[{") else cell
            value = {"choices": [value]} if isinstance(value, str) else value
            results += [(task["annotation_id"], name, v) for v in (value if isinstance(value, list) else [value])]
    if results and found is None:
        raise ValueError(f"a task names no video: {str(task)[:200]}")
    video = unquote(found[1]) if found else ""
    for by, name, value in results:
        value = value if isinstance(value, dict) else {}  # data of the task that are numbers
        timed = {"start", "end"} <= value.keys() and "text" not in value
        seconds = (float(value["start"]), float(value["end"])) if timed else None
        parts: list[Any] = [range(int(each["start"]) - 1, int(each["end"])) for each in value.get("ranges", ())]
        for label in value.get("choices") or value.get("timelinelabels") or (timed and value.get("labels")) or ():
            yield from (Mark(video, label, name, str(by), part) for part in parts or [seconds])


def _cvat(root: ElementTree.Element) -> Iterator[Mark]:
    sources = {t.findtext("id"): t.findtext("source") or t.findtext("name") for t in root.iterfind("meta//task")}
    sources[None] = root.findtext("meta//source") or root.findtext("meta/*/name")
    step = int((root.findtext("meta//frame_filter") or "=1").rpartition("=")[2])
    seen: dict[tuple[str, str], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))  # frames of labels

    def see(video: str, frames: range, shown: ElementTree.Element, *shapes: ElementTree.Element) -> None:
        seen[video, ""][shown.attrib["label"]].update(frames)
        for attribute in itertools.chain(*(each.iterfind("attribute") for each in (shown, *shapes))):
            seen[video, attribute.attrib["name"]][attribute.text or "none"].update(frames)

    for track in root.iterfind("track"):
        shapes = sorted((int(shape.attrib["frame"]), n) for n, shape in enumerate(track) if shape.get("frame"))
        for (frame, n), (end, _) in itertools.pairwise([*shapes, *((last + step, 0) for last, _ in shapes[-1:])]):
            if track[n].get("outside") != "1":
                see(str(sources[track.get("task_id")]), range(frame, end), track, track[n])
    for image in root.iterfind("image"):
        folder, name = os.path.split(image.attrib["name"])
        source, frame = str(sources[image.get("task_id")]), int(image.attrib["id"])
        if "." in name:  # a picture, not a frame of a video, which would be called frame_000000
            source = folder or source
            frame = next((int(match["number"]) for match in find_pictures([name])), frame)
        for tag in image.iterfind("tag"):
            see(source, range(frame, frame + step), tag)
    for (video, field), labels in seen.items():
        whole = root.find("track") is None and len(set().union(*labels.values())) <= step
        for label, frames in labels.items():
            starts, ends = sorted(frames - {n + 1 for n in frames}), sorted({n + 1 for n in frames} - frames)
            parts = [None] if whole else map(range, starts, ends, itertools.repeat(step))
            yield from (Mark(video, label, field, part=part) for part in parts)


def _via(project: dict[str, Any]) -> Iterator[Mark]:
    for item in project["metadata"].values():
        times = item["z"]  # of two a segment, of one a still picture, of none the whole file
        given = {} if len(times) == 1 or item["xy"] else item["av"]
        for key in given.keys() & project["attribute"].keys():  # others are deleted
            attribute, value = project["attribute"][key], str(given[key])
            for chosen in filter(None, value.split(",") if attribute["type"] == 2 else [value]):  # 2: check boxes
                label, part = attribute["options"].get(chosen, chosen), (times[0], times[-1]) if times else None
                for file in project["view"][str(item["vid"])]["fid_list"]:
                    yield Mark(project["file"][str(file)]["fname"], label, attribute["aname"], part=part)


def write_label_list(
    marks: Sequence[Mark], out: Path, *, videos: Path, field: str | None = None, fps: float | None = None
) -> dict[str, Any]:
    """Write the list that marks become.

    Args:
        marks: of one export or several.
        out: the list; the paths in it are relative to its folder.
        videos: folder of the videos; names are matched by their last parts, the suffix may differ.
        field: the question or attribute whose labels to take, where there are several.
        fps: frames per second by which the tool counted frames; by default those of each video.

    Returns:
        number of ``rows``, ``classes``, and ``problems``: what could not be used, and why.

    Raises:
        DataError: there are several fields, or no video of the export is there.
    """
    says: dict[str, dict[str, set[Mark]]] = defaultdict(lambda: defaultdict(set))  # video -> annotation -> its marks
    fields = {mark.field for mark in marks}
    field = "" if field is None and "" in fields else field
    for mark in marks if field is None else [mark for mark in marks if mark.field == field]:
        says[mark.video][mark.by].add(mark._replace(by=""))
    if field not in fields and (field is not None or len(fields) > 1):
        raise DataError(f"labels of several questions or attributes: choose by --field: {', '.join(sorted(fields))}")
    find = find_by_stem(videos)
    labels: dict[tuple[str, ...], list[str]] = defaultdict(list)  # by path, start and end
    problems = []
    for video, annotations in says.items():
        path = find(video.replace("\\", "/")) or find(UPLOADED.sub("", video))
        try:
            if path is None:
                raise DataError(f"{video}: not the name of one video in {videos}")
            if len({frozenset(each) for each in annotations.values()}) > 1:
                raise DataError(f"{video}: {len(annotations)} annotations of it differ; keep one in the project")
            for mark in sorted(set().union(*annotations.values()), key=str):
                labels[_row(videos / path, mark.part, fps, out.parent)].append(mark.label)
        except (DataError, VideoError) as error:
            problems.append(str(error))
    if not labels:
        raise DataError("; ".join([f"no labelled video of the export is in {videos}", *problems[:3]]))
    sets = max(map(len, labels.values())) > 1
    cells = {"|".join(each): tuple(each) for each in labels.values()}
    if sets and split_cells(dict.fromkeys(cells, 1), classes=(), several=True) != cells:
        raise DataError("some videos have several labels, which | separates in lists; begin or end none by [ ] ' or \"")
    rows = [["path", "start", "end", "class_names" if sets else "class"]]
    rows += [[*place, "|".join(each)] for place, each in labels.items()]
    with replacing(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    classes = sorted({*itertools.chain(*labels.values())})
    return {"rows": len(labels), "classes": classes, "problems": problems}


def _row(path: Path, part: tuple[float, float] | range | None, fps: float | None, folder: Path) -> tuple[str, ...]:
    """Path, start and end, in seconds."""
    name = os.path.relpath(path, folder)
    if isinstance(part, range) and path.is_dir():
        numbers = sorted(int(match["number"]) for match in find_pictures(os.listdir(path)))
        if not {*part} <= {*numbers}:
            raise DataError(f"{path}: lacks some of the pictures {part.start} to {part.stop - 1} of the export")
        first, stop = numbers[0], min(part.stop, numbers[-1] + 1)
        return f"{name}#frames={part.start - first},{stop - first}", "", ""
    if part is None:
        return name, "", ""
    with open_video(path) as video:
        frames = video.times - video.times[0]
        lasts = frames[-1] + 1 / video.fps if video.timed else math.inf
    if isinstance(part, range):
        counted = [n / fps for n in range(math.ceil(lasts * fps))] if fps else frames  # as the tool counted them
        times = [*counted, lasts]
        if len(times) - 1 <= part.stop - part.step:
            raise DataError(f"{path}: has {len(times) - 1} frames, not {part.stop}; counted at another rate (--fps)?")
        part = times[part.start], times[min(part.stop, len(times) - 1)]
    elif not 0 <= part[0] < part[1] <= lasts + LATE:
        raise DataError(f"{path}: has a segment from {part[0]:g} to {part[1]:g} s, and lasts {lasts:.4g} s")
    return name, f"{part[0]:.10g}", f"{part[1]:.10g}"
