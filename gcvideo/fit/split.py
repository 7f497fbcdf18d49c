"""Groups of videos that come from one source, and stratified splits and folds that never divide a group."""

import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gcvideo.data.annotations.table import SUBSETS
from gcvideo.files import read_yaml

ENOUGH = 5  # groups, of which a fifth can be held out: coarser parts of names with fewer groups are taken last
MOST_ALIKE = 0.8  # of the videos of a class are called alike where their names shall show sources
_RULES = read_yaml(__file__, "names.yaml")
GENERIC = re.compile(_RULES["generic"], re.VERBOSE)
SOURCES = {what: re.compile(pattern, re.VERBOSE) for what, pattern in _RULES["sources"].items()}


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
    paths: Sequence[str], labels: np.ndarray, classes: Sequence[str], *, twins: Sequence[tuple[int, int]] = ()
) -> Groups:
    """Find which videos come from one source: by folders, by names, by equal pictures, by segments of one file.

    A name is read as words and numbers. The coarsest part of it that still gives enough groups is taken: of
    ``person3_day2_clip1`` the person, of ``match_b_007`` the match. A last number only counts the pieces.

    Args:
        paths: of the videos.
        labels: (V,) of the videos, from 0.
        classes: names in label order, which say nothing about the source where they occur in paths.
        twins: pairs of places of videos that show the same pictures.
    """
    usable: list[tuple[float, str, np.ndarray]] = []  # how good, what, a number of each video
    for what, sure, keys in _ways(paths, labels, classes):
        first: dict[Hashable, int] = {}
        numbers = np.array([i if key is None else first.setdefault(key, i) for i, key in enumerate(keys)], np.int64)
        told = {int(label) for label, key in zip(labels, keys, strict=True) if key is not None}
        most = [np.bincount(numbers[own]).max() / own.sum() for own in (labels == k for k in told)]
        several = [share < 1 if sure else share <= MOST_ALIKE for share in most]
        count, known = len(first) + keys.count(None), len(keys) - keys.count(None)
        if count < len(paths) <= 2 * known and 2 * sum(several) >= len(several):
            usable.append((1.0 if sure or count >= ENOUGH else count / ENOUGH / 2, what, numbers))
    _, shown_by, numbers = max(usable, key=lambda way: way[0], default=(0, "", np.arange(len(paths))))
    numbers = numbers.copy()
    files: dict[str, int] = {}
    same = [(i, j) for i, path in enumerate(paths) if i != (j := files.setdefault(path, i))]
    for i, j in [*same, *twins, *_variants(paths, labels)]:
        numbers[numbers == numbers[i]] = numbers[j]
    torn = [int(k) for k in np.unique(labels) if (labels == k).sum() > 1 and np.ptp(numbers[labels == k]) == 0]
    apart = np.isin(labels, torn)
    numbers[apart] = len(paths) + np.flatnonzero(apart)
    if not shown_by and len(np.unique(numbers)) < len(paths):
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
        seed: decides between groups of about one size.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    shares = np.zeros((len(names), labels.max() + 1))  # of its class, that a group has
    np.add.at(shares, (numbers, labels), 1 / np.bincount(labels)[labels])
    noise = np.random.default_rng(seed).uniform(0.9, 1.1, len(names))
    totals, fold = np.zeros((count, shares.shape[1])), np.zeros(len(names), np.int64)
    for group in np.argsort(-noise * shares.sum(axis=1), kind="stable"):
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
    fold = folds(labels, groups, max(2, round(1 / share)), seed=seed)
    sizes = np.zeros((fold.max() + 1, labels.max() + 1))
    np.add.at(sizes, (fold, labels), 1)
    held = fold == np.argmin(np.abs(sizes - share * np.bincount(labels)).sum(axis=1))
    for k in [k for k in np.unique(labels) if not held[labels == k].any()]:  # the smallest of its groups that may go
        for group, _ in reversed(Counter(groups[np.isin(groups, groups[labels == k])].tolist()).most_common()):
            moved = held | (groups == group)
            if not held[labels == k].any() and not any(moved[labels == c].all() for c in np.unique(labels)):
                held = moved
    for k in np.unique(labels):
        if held[labels == k].all():
            held &= ~np.isin(groups, groups[labels == k])
    return held


def _ways(paths: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> Iterator[tuple[str, bool, list[Any]]]:
    """Ways to group videos, what is most telling and coarsest first: in words, whether sure, the key of each video."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    below = [folder[len(os.path.commonpath(folders)) :].split(os.sep) for folder in folders]
    full = {_bare(name) for name in classes if len(name) > 2}  # of all classes: the label may be a slip
    known = [{*re.split(r"[\W_]+", name.lower()), _bare(name), "", *full, *SUBSETS} for name in classes]
    own = [known[label] for label in labels]  # words that are the class's
    keys: list[Any] = [tuple(n for n in b if _bare(n) not in words) for b, words in zip(below, own, strict=True)]
    for depth in range(1, max(map(len, keys), default=0) + 1):
        yield "sub-folders", True, [key[:depth] or None for key in keys]
    stems = list(map(_stem, paths))
    for what, pattern in SOURCES.items():
        found = [pattern.search(stem) for stem in stems]
        yield f"{what} in file names", True, [match.groups() if match else None for match in found]
    shapes = Counter(re.sub(r"\d+", "0", stem) for stem in stems)
    alike = shapes.most_common(1)[0][1] >= 0.8 * len(stems)  # then letters and digits in one word are two
    names: list[list[str]] = []
    for stem, words in zip(stems, own, strict=True):
        pieces = re.split(r"[\W_]+", stem)
        split = [re.findall(r"\d+|[^\W\d_]+", p) if alike or re.fullmatch(r"[^\W\d_]+\d+", p) else [p] for p in pieces]
        names.append([w for piece in split for w in piece if w not in words and not GENERIC.fullmatch(w)])
    for least, what in ((3, " and short tags"), (1, "")):
        keys = [tuple(w for w in name if len(w) >= least and not w.isdecimal()) or None for name in names]
        yield f"file names without numbers{what}", False, keys
    places = [[place for place, word in enumerate(name) if word.isdecimal()] for name in names]
    for count in range(1, max(map(len, places), default=0)):
        keys = [tuple(n[: at[count - 1] + 1]) if len(at) > count else None for n, at in zip(names, places, strict=True)]
        yield f"file names up to number {count}", False, keys


def _variants(paths: Sequence[str], labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Places of a name with an end, and of the same without it: ``a_flip`` or ``a1 (2)``, and ``a1``, of one class."""
    names = list(zip(labels.tolist(), map(_stem, paths), strict=True))
    places = {name: i for i, name in enumerate(names) if re.search(r"\d", name[1])}
    for i, (label, stem) in enumerate(names):
        starts = [(label, stem[: match.start()]) for match in re.finditer(r"[\W_]+", stem)]
        yield from ((i, places[start]) for start in starts if start in places)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0].lower()


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
