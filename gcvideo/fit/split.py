"""Groups of videos that come from one source, and stratified splits and folds that never divide a group."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gcvideo.data.annotations.table import SUBSETS
from gcvideo.data.records import VideoRecord

ENOUGH = (
    5  # groups, of which one fifth can be held out; coarser names with fewer groups are not taken if finer ones are
)
GENERIC = re.compile(
    "at|aug|avi|bad|clips?|copy|cut|dji|dscn?|file|flip|frame|goo|good|gopr|gp|hd|image|img|med|mov|movie|mp|mvi|out|"
    "part|piece|pt|pxl|rec|record|recording|sample|sd|seg|segment|shot|take|trim|trimmed|v|vid|videos?|whatsapp"
)
WHO = re.compile(
    r"(actor|athlete|child|driver|participant|patient|performer|person|player|speaker|student|subj|subject|user|worker)"
    r"[ _.-]?(\d+)"
)
WHERE = re.compile(r"(day|group|location|place|room|scene|session|source)[ _.-]?(\d+)")
YOUTUBE = re.compile(r"^(.{11})_\d{6}_\d{6}$")

Key = Hashable  # what all videos of a group have in common; None where a name tells nothing


class Groups(NamedTuple):
    """Groups of videos.

    Attributes:
        numbers: (V,) int64, the group of each video.
        found_by: what showed them: "folders", "names", "pictures", ... in words; "" where nothing did.
        torn: classes all of whose videos seem to come from one source, so that these were taken apart.
    """

    numbers: np.ndarray
    found_by: str
    torn: list[int]


@dataclass(frozen=True)
class _Name:
    """The parts of a video's name, without the words of its class and without generic words."""

    stem: str
    folders: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def numbers(self) -> list[int]:
        """Places of the words that are numbers."""
        return [place for place, word in enumerate(self.words) if word.isdecimal()]


def find_groups(
    records: Sequence[VideoRecord], classes: Sequence[str], *, twins: Sequence[tuple[int, int]] = ()
) -> Groups:
    """Find which videos come from one source: by folders, by names, by equal pictures, by segments of one file.

    A name is read as words and numbers. The coarsest part of it that still gives enough groups is taken: of
    ``person3_day2_clip1`` the person, of ``match_b_007`` the match. A last number only counts the pieces.

    Args:
        records: of the videos.
        classes: names in label order.
        twins: pairs of places of videos that show the same pictures.
    """
    labels = np.array([record.label for record in records])
    names = _read_names(records, classes)
    usable: list[tuple[bool, int, str, np.ndarray]] = []  # whether to take it, number of groups, in words, groups
    for title, sure, keys in _ways(names):
        numbers = _numbered(keys)
        several = [len({*numbers[labels == k].tolist()}) > 1 for k in np.unique(labels)]
        count, known = len({*numbers.tolist()}), sum(key is not None for key in keys)
        if count < len(records) <= 2 * known and 2 * sum(several) >= len(several):
            usable.append((sure or count >= ENOUGH, count, title, numbers))
    chosen = max(usable, key=lambda way: way[0] or way[1] / (len(records) + 1), default=None)  # the first of the best
    parents = list(range(len(records)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    first: dict[Hashable, int] = {}
    for i, record in enumerate(records):
        for key in (("file", record.path), *([("name", int(chosen[3][i]))] if chosen else [])):
            parents[root(i)] = root(first.setdefault(key, i))
    for i, j in [*twins, *_variants(names, labels)]:
        parents[root(i)] = root(j)
    numbers = np.array([root(i) for i in range(len(records))], np.int64)
    torn = [int(k) for k in np.unique(labels) if (labels == k).sum() > 1 and np.ptp(numbers[labels == k]) == 0]
    for k in torn:
        numbers[labels == k] = len(records) + np.flatnonzero(labels == k)
    by = chosen[2] if chosen else "equal pictures or files" if len({*numbers.tolist()}) < len(records) else ""
    return Groups(np.unique(numbers, return_inverse=True)[1], by, torn)


def folds(labels: np.ndarray, groups: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """The fold of each video, int64 (V,): groups stay whole, and each fold has its share of every class.

    Large groups come first; each goes to the fold where the shares of the classes stay most equal, as in
    scikit-learn's StratifiedGroupKFold.

    Args:
        labels: (V,) from 0.
        groups: (V,) numbers from 0.
        count: of the folds.
        seed: decides between equal groups.
    """
    tables = np.zeros((groups.max() + 1, labels.max() + 1))
    np.add.at(tables, (groups, labels), 1)
    tables /= np.maximum(np.bincount(labels), 1)  # the share of its class that each group has
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(tables))
    order = order[np.argsort(-tables[order].sum(axis=1), kind="stable")]
    totals = np.zeros((count, tables.shape[1]))
    of_group = np.zeros(len(tables), np.int64)
    for group in order:
        costs = [np.square(totals + tables[group] * (np.arange(count) == k)[:, None]).sum() for k in range(count)]
        of_group[group] = np.argmin(costs)
        totals[of_group[group]] += tables[group]
    return of_group[groups]


def hold_out(labels: np.ndarray, groups: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Which videos to hold out, bool (V,): about a share of every class, whole groups, of each class on both sides.

    A class whose videos are all of one group stays where it is trained.
    """
    count = max(2, round(1 / share))
    fold = folds(labels, groups, count, seed=seed)
    sizes = np.zeros((count, labels.max() + 1))
    np.add.at(sizes, (fold, labels), 1)
    held = fold == np.argmin(np.abs(sizes - share * np.bincount(labels)).sum(axis=1))
    for k in np.unique(labels):
        own = labels == k
        if not held[own].any():  # take its smallest group from training
            rest = Counter(groups[own].tolist())
            candidates = sorted(rest, key=lambda g: (int(np.sum(groups == g)), g)) if len(rest) > 1 else []
            for group in candidates:
                moved = held | (groups == group)
                if all((~moved[labels == c]).any() for c in np.unique(labels)):
                    held = moved
                    break
    for k in np.unique(labels):
        if held[labels == k].all():  # give its groups back
            held &= ~np.isin(groups, groups[labels == k])
    return held


def _read_names(records: Sequence[VideoRecord], classes: Sequence[str]) -> list[_Name]:
    """The names of all videos, split into words; letters and digits in one word only where all names do it alike."""
    stems = [os.path.splitext(os.path.basename(record.path))[0].lower() for record in records]
    shapes = Counter(re.sub(r"\d+", "0", stem) for stem in stems)
    alike = shapes.most_common(1)[0][1] >= 0.8 * len(stems)
    folders = [os.path.dirname(os.path.abspath(record.path)) for record in records]
    shared = len(os.path.join(os.path.commonpath(folders), ""))
    names = []
    for record, stem, path in zip(records, stems, folders, strict=True):
        of_class = {*re.split(r"[\W_]+", classes[record.label].lower()), _bare(classes[record.label])}
        pieces: list[str] = []
        for piece in re.split(r"[\W_]+", stem):
            simple = alike or re.fullmatch(r"[^\W\d_]+\d+", piece)
            pieces += re.findall(r"\d+|[^\W\d_]+", piece) if simple else [piece]
        words = tuple(word for word in pieces if word and word not in of_class and not GENERIC.fullmatch(word))
        own = [name for name in path[shared:].split(os.sep) if name and _bare(name) not in of_class | SUBSETS.keys()]
        names.append(_Name(stem, tuple(own), words))
    return names


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _ways(names: Sequence[_Name]) -> Iterator[tuple[str, bool, list[Key]]]:
    """Ways to group the videos, what is most telling and coarsest first: in words, whether sure, the key of each."""
    yield "sub-folders", True, [name.folders or None for name in names]
    for what, pattern in (("persons", WHO), ("sessions or sources", WHERE), ("YouTube ids", YOUTUBE)):
        found = [pattern.search(name.stem) for name in names]
        yield f"{what} in the file names", True, [match.groups() if match else None for match in found]
    texts = [[word for word in name.words if not word.isdecimal()] for name in names]
    for least, what in ((3, " and short tags"), (1, "")):
        keys: list[Key] = [tuple(word for word in text if len(word) >= least) or None for text in texts]
        yield f"file names without numbers{what}", False, keys
    for count in range(1, max((len(name.numbers) for name in names), default=0)):
        title = f"file names up to the {('first', 'second', 'third', 'fourth')[min(count, 4) - 1]} number"
        longer = [name.words[: name.numbers[count - 1] + 1] if len(name.numbers) > count else None for name in names]
        yield title, False, list(longer)


def _numbered(keys: Sequence[Key]) -> np.ndarray:
    """Numbers that are equal where the keys are; a video without a key has a number of its own."""
    first: dict[Key, int] = {}
    return np.array([i if key is None else first.setdefault(key, i) for i, key in enumerate(keys)])


def _variants(names: Sequence[_Name], labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of a name and the same with an end: ``a``, ``a_flip``, ``a (1)``."""
    places: dict[tuple[int, str], int] = defaultdict(int)
    for i, name in enumerate(names):
        if any(char.isdecimal() for char in name.stem) or name.words:
            places[int(labels[i]), name.stem] = i
    for i, name in enumerate(names):
        for match in re.finditer(r"[\W_]+", name.stem):
            start = name.stem[: match.start()]
            if (int(labels[i]), start) in places:
                yield i, places[int(labels[i]), start]
