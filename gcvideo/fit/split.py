"""Groups of videos that come from one source, and stratified splits and folds that never divide a group."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from gcvideo.data.annotations.table import SUBSETS
from gcvideo.data.records import VideoRecord

ENOUGH = 5  # groups, of which a fifth can be held out: coarser parts of names with fewer groups are taken last
_RULES = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text(encoding="utf-8"))
GENERIC = re.compile(_RULES["generic"].replace(" ", ""))
SOURCES = {what: re.compile(pattern.replace(") [", ")[")) for what, pattern in _RULES["sources"].items()}


class Groups(NamedTuple):
    """Groups of videos.

    Attributes:
        numbers: (V,) int64, the group of each video, from 0.
        shown_by: what showed them, in words; "" where nothing did.
        torn: labels of classes whose videos all seem to come from one source, so that these were taken apart.
    """

    numbers: np.ndarray
    shown_by: str
    torn: list[int]


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
    usable: list[tuple[float, str, np.ndarray]] = []  # how good, what, a number of each video
    for what, sure, keys in _ways(records, classes):
        first: dict[Hashable, int] = {}
        numbers: np.ndarray = np.array(
            [i if key is None else first.setdefault(key, i) for i, key in enumerate(keys)], np.int64
        )
        several = [len(np.unique(numbers[labels == k])) > 1 for k in np.unique(labels)]
        count, known = len(first) + keys.count(None), len(keys) - keys.count(None)
        if count < len(records) <= 2 * known and 2 * sum(several) >= len(several):
            usable.append((1.0 if sure or count >= ENOUGH else count / ENOUGH / 2, what, numbers))
    _, shown_by, numbers = max(usable, key=lambda way: way[0], default=(0, "", np.arange(len(records))))
    numbers = numbers.copy()
    files: dict[str, int] = {}
    same = [(i, j) for i, record in enumerate(records) if i != (j := files.setdefault(record.path, i))]
    for i, j in [*same, *twins, *_variants(records)]:
        numbers[numbers == numbers[i]] = numbers[j]
    torn = [int(k) for k in np.unique(labels) if (labels == k).sum() > 1 and np.ptp(numbers[labels == k]) == 0]
    apart = np.isin(labels, torn)
    numbers[apart] = len(records) + np.flatnonzero(apart)
    if not shown_by and len(np.unique(numbers)) < len(records):
        shown_by = "equal pictures and names"
    return Groups(np.unique(numbers, return_inverse=True)[1], shown_by, torn)


def folds(labels: np.ndarray, groups: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """The fold of each video, int64 (V,): groups stay whole, and each fold has its share of every class.

    Large groups come first; each goes to the fold where the shares of the classes stay most equal, as in
    scikit-learn's StratifiedGroupKFold.

    Args:
        labels: (V,) from 0.
        groups: (V,) numbers.
        count: of the folds.
        seed: decides between equal groups.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    shares = np.zeros((len(names), labels.max() + 1))  # of its class, that a group has
    np.add.at(shares, (numbers, labels), 1 / np.bincount(labels)[labels])
    order = np.random.default_rng(seed).permutation(len(names))
    totals, fold = np.zeros((count, shares.shape[1])), np.zeros(len(names), np.int64)
    for group in order[np.argsort(-shares[order].sum(axis=1), kind="stable")]:
        fold[group] = np.argmin(((totals + shares[group]) ** 2 - totals**2).sum(axis=1))
        totals[fold[group]] += shares[group]
    return fold[numbers]


def hold_out(labels: np.ndarray, groups: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Which videos to hold out, bool (V,): whole groups, about a share of every class, never all of a class.

    Of a class whose videos are all in one group, or in one with the last ones of another class, none are held out.

    Args:
        labels: (V,) from 0.
        groups: (V,) numbers.
        share: in (0, 1).
        seed: decides which groups.
    """
    held, rng = np.zeros(len(labels), bool), np.random.default_rng(seed)
    for k in sorted(np.unique(labels), key=lambda k: len(np.unique(groups[labels == k]))):
        own = labels == k
        wanted, sizes = max(1, round(share * own.sum())), Counter(groups[own].tolist())
        for group in sorted(rng.permutation(list(sizes)).tolist(), key=lambda group: sizes[group] > 1.5 * wanted):
            moved = held | (groups == group)
            near = not held[own].any() or held[own].sum() + sizes[group] / 2 <= wanted
            if near and not any(moved[labels == c].all() for c in labels[groups == group]):
                held = moved
    return held


def _ways(records: Sequence[VideoRecord], classes: Sequence[str]) -> Iterator[tuple[str, bool, list[Hashable]]]:
    """Ways to group videos, what is most telling and coarsest first: in words, whether sure, the key of each video."""
    folders = [os.path.dirname(os.path.abspath(record.path)) for record in records]
    shared = len(os.path.join(os.path.commonpath(folders), ""))
    own = [{*re.split(r"[\W_]+", name.lower()), re.sub(r"[\W_]", "", name.lower())} for name in classes]
    yield (
        "sub-folders",
        True,
        [
            tuple(
                n
                for n in folder[shared:].split(os.sep)
                if n and re.sub(r"[\W_]", "", n.lower()) not in own[r.label] | SUBSETS.keys()
            )
            or None
            for r, folder in zip(records, folders, strict=True)
        ],
    )
    stems = [_stem(record) for record in records]
    for what, pattern in SOURCES.items():
        found = [pattern.search(stem) for stem in stems]
        yield f"{what} in file names", True, [match.groups() if match else None for match in found]
    shapes = Counter(re.sub(r"\d+", "0", stem) for stem in stems)
    alike = shapes.most_common(1)[0][1] >= 0.8 * len(stems)  # then letters and digits in one word are two
    names: list[list[str]] = []
    for record, stem in zip(records, stems, strict=True):
        pieces = re.split(r"[\W_]+", stem)
        split = [re.findall(r"\d+|[^\W\d_]+", p) if alike or re.fullmatch(r"[^\W\d_]+\d+", p) else [p] for p in pieces]
        words = [word for piece in split for word in piece if word]
        names.append([word for word in words if word not in own[record.label] and not GENERIC.fullmatch(word)])
    texts = [[word for word in name if not word.isdecimal()] for name in names]
    for least, what in ((3, " and short tags"), (1, "")):
        yield (
            f"file names without numbers{what}",
            False,
            [tuple(w for w in t if len(w) >= least) or None for t in texts],
        )
    places = [[place for place, word in enumerate(name) if word.isdecimal()] for name in names]
    for count in range(1, max(map(len, places), default=0)):
        keys = [tuple(n[: at[count - 1] + 1]) if len(at) > count else None for n, at in zip(names, places, strict=True)]
        yield f"file names up to number {count}", False, list[Hashable](keys)


def _variants(records: Sequence[VideoRecord]) -> Iterator[tuple[int, int]]:
    """Places of a name with an end, and of the same without it: ``a_flip`` or ``a1 (2)``, and ``a1``, of one class."""
    places = {(r.label, stem): i for i, r in enumerate(records) if re.search(r"\d", stem := _stem(r))}
    for i, record in enumerate(records):
        for match in re.finditer(r"[\W_]+", stem := _stem(record)):
            if (record.label, stem[: match.start()]) in places:
                yield i, places[record.label, stem[: match.start()]]


def _stem(record: VideoRecord) -> str:
    return os.path.splitext(os.path.basename(record.path))[0].lower()
