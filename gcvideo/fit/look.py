"""A look at a user's videos: how many of each class, lengths, rates, sizes, damaged files, copies."""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np

from gcvideo.console import printable, say, table, warn
from gcvideo.data.annotations import load_classes, looks_like, videos_under
from gcvideo.data.annotations.table import SUBSETS
from gcvideo.data.records import VideoRecord
from gcvideo.errors import DataError
from gcvideo.files import Row
from gcvideo.prepare import verify
from gcvideo.prepare.duplicates import alike
from gcvideo.prepare.index import LIMITS, describe_video
from gcvideo.prepare.jobs import run_jobs

FIXED_CAMERA, MOST_NOTES = 0.2, 10  # share of videos that look alike from which that means nothing; notes on labels
COLUMNS = {"duration": "seconds", "fps": "frames/s", "height": "height", "width": "width"}
FEWEST_SECONDS = 20.0  # to open all videos in, even where little time was given


@dataclass
class Videos:
    """The labelled videos that can be used, one entry each in the first four lists.

    Attributes:
        records: of the files; their own labels do not count.
        sets: labels of each, from 0, all of which have videos to train on; one each but with ``multi_label``.
        parts: "train", "val" or "test", as the user has split them; all "train" where they are not split.
        rows: what ``describe_video`` says of each; empty where time was short.
        classes: names in label order.
        labels: (V,) the label of each video, of several the rarest.
        multi_label: whether videos have several labels or none.
        notes: lines that the user should read, also on the page.
    """

    records: list[VideoRecord] = field(default_factory=list)
    sets: list[list[int]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    multi_label: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Warn the user, on the screen and on the page."""
        self.notes.append(printable(text))
        warn(self.notes[-1])


def look(
    source: str | Path, *, test: str | None = None, root: str | None = None, classes: str | None = None, deadline: float
) -> Videos:
    """Read the labels, open every video, and say what is there.

    Args:
        source: a folder of class folders, one of ``train``, ``val`` and ``test`` folders of these, or any annotation.
        test: the same, of the videos to test on.
        root: folder of the videos of an annotation, where it is not the annotation's own.
        classes: file of class names in label order, where labels are numbers; by default ``classes.txt`` beside a list.
        deadline: time, by ``time.monotonic``, until which videos are decoded to their ends to find damaged ones.

    Raises:
        DataError: there is nothing to train a classifier on; says why, and the fix.
    """
    videos, source = Videos(), Path(source).expanduser()
    lists = [entry for entry in sources(source, videos) if not (test and entry[0] == "test")]
    lists += [("test", Path(test).expanduser())] if test else []
    beside = Path(classes or source.with_name("classes.txt"))
    names = load_classes(str(beside)) if classes or (source.is_file() and beside.is_file()) else ()
    entries, findings = verify.read_lists([path for _, path in lists], root, names or None)
    if names and (outside := [f for f in findings if f.reason.startswith("label ") and " is outside " in f.reason]):
        first = outside[0]
        raise DataError(f"{first.list}:{first.line}: {first.reason}; {beside} names {len(names)} classes")
    videos.multi_label = any(isinstance(entry.record.label, tuple) for entry in entries)
    between = verify.SEVERAL if videos.multi_label else "\0"
    labels = [[label for label in (entry.label or "").split(between) if label] for entry in entries]
    rows = _open_all([entry.record.path for entry in entries], deadline)
    findings += verify.findings_of(entries, rows)
    seen = [f for f in findings if f.reason.startswith(verify.LOOKS_SAME)]
    if len({(f.list, f.line, f.id) for f in seen}) > FIXED_CAMERA * len(entries):
        videos.note("many videos show nearly the same pictures, as of a fixed camera: these do not count as copies")
        findings = [f for f in findings if f not in seen]
    else:
        for f in [f for f in seen if f.kind == "alike"][:MOST_NOTES]:
            videos.note(f"{f.path}: {f.reason} (without colours): check both labels")
    told = [f for f in findings[::-1] if f.kind not in ("pyav", "alike")]  # damage, which comes first, tells most
    bad = {(f.list, f.line, f.id): f"{f.path or f.id}: {f.reason}" for f in told}
    parts = [verify.SUBSETS[max(verify.SUBSETS.index(lists[e.order[0]][0]), e.order[1])] for e in entries]
    places = [(entry.list, entry.line, entry.record.id) for entry in entries]
    placed = list(zip(entries, parts, labels, places, strict=True))
    bad = {place: f"{e.record.path}: has no label" for e, _, _, place in placed if e.label is None} | bad
    counts = Counter(label for _, part, own, place in placed if part == "train" and place not in bad for label in own)
    order = [name for name in names if counts[name]]
    order = order or sorted(counts, key=lambda name: (int(name) if name.isdecimal() else 0, name))
    for entry, part, own, place in placed:
        if place not in bad and not {*own} <= {*order}:
            bad[place] = f"{entry.record.path}: no video of its class is there to train on"
        elif place not in bad:
            videos.records.append(entry.record)
            videos.parts.append(part)
            videos.rows.append(rows[entry.record.path])
            videos.sets.append(sorted(map(order.index, own)))
    videos.classes = tuple(order)
    # The rarest label stands for all of a video.
    videos.labels = np.array([min(own, key=lambda k: counts[order[k]], default=0) for own in videos.sets], np.int64)
    if bad:
        videos.note(f"{len(bad):,} videos are left out: {'; '.join([*bad.values()][:3])}{' ...' * (len(bad) > 3)}")
    if len(counts) < 2:
        found = f"only the class {order[0]!r} has" if counts else "no class has"
        fix = "give each class a folder of its videos, or list them with `path label` lines"
        raise DataError(f"{source}: {found} videos to train on, and a classifier needs two classes; {fix}")
    _describe(videos)
    return videos


def sources(source: Path, videos: Videos) -> list[tuple[str, Path]]:
    """Part and annotation of what a user names: one, or one for each part that a folder is split into."""
    folders = [p for p in sorted(source.iterdir()) if p.is_dir()] if source.is_dir() else []
    found = {folder: paths for folder in folders if folder.name[0] != "." and (paths := videos_under(folder))}
    parts = [(SUBSETS.get(folder.name.lower(), ""), folder) for folder in found]
    if any(part == "train" for part, _ in parts) and all(part for part, _ in parts) and looks_like(source) == "folders":
        labelled = [entry for entry in parts if any(os.sep in path for path in found[entry[1]])]
        for _, folder in [entry for entry in parts if entry not in labelled]:
            videos.note(f"{folder}: its videos have no labels, so they are not used; gcvideo predict can label them")
        return sorted(labelled, key=lambda entry: verify.SUBSETS.index(entry[0]))
    return [("train", source)]


def _open_all(paths: Sequence[str], deadline: float) -> dict[str, Row]:
    """Rows as ``verify_video`` gives them: of all files opened, and of as many decoded as there is time for."""
    paths = list(dict.fromkeys(paths))
    random.Random(0).shuffle(paths)
    until = max(deadline, time.monotonic() + FEWEST_SECONDS)
    rows = _each(lambda path: describe_video(path) | verify.verify_video(path, decode=False), paths, "look", until)
    sound = [path for path, row in rows.items() if row["kind"] in ("sound", "pyav")]
    decoded = _each(verify.verify_video, sound, "decode", deadline) if time.monotonic() < deadline else {}
    say(f"{len(rows):,} of {len(paths):,} files opened, {len(decoded):,} decoded to their ends; a tenth of the time")
    return {path: {"kind": "sound"} | rows.get(path, {}) | decoded.get(path, {}) for path in paths}


def _each(function: Callable[[str], Row], paths: list[str], title: str, deadline: float) -> dict[str, Row]:
    """The function's row for each path, until the deadline."""
    jobs = takewhile(lambda job: time.monotonic() < deadline, run_jobs(function, paths, title=title, **LIMITS))
    return {path: {"kind": "failed", "reason": error} if row is None else row for path, row, error in jobs}


def find_twins(videos: Videos) -> list[tuple[int, int]]:
    """Pairs of places of videos that show the same pictures, of every label.

    Not those of which a fixed camera makes half of all videos look alike.
    """
    shown = [i for i, row in enumerate(videos.rows) if "print" in row and videos.records[i].start is None]
    pairs = list(alike([videos.rows[i] for i in shown]))
    often = Counter(i for pair in pairs for i in pair)
    most = max(3, 0.05 * len(shown))
    return [(shown[i], shown[j]) for i, j in pairs if max(often[i], often[j]) <= most]


def _describe(videos: Videos) -> None:
    """Print what each class has."""
    rows = []
    for label, name in enumerate(videos.classes):
        own = np.flatnonzero(videos.labels == label).tolist()
        counts = [sum(videos.parts[i] == part for i in own) for part in verify.SUBSETS]
        if counts[0] == 1:
            videos.note(f"{name}: a single video to train on, so none can be held out to test the class; add more")
        seen = [[r[key] for i in own if (r := videos.rows[i]).get(key)] for key in COLUMNS]
        rows.append([printable(name), *counts, *(f"{np.median(column or [np.nan]):.4g}" for column in seen)])
    title = f"{len(videos.records):,} videos of {len(videos.classes)} classes; medians"
    table(rows, columns=("class", *verify.SUBSETS, *COLUMNS.values()), title=title)
