"""What predictions say beyond top-1: per class, confusions, calibration, and whether two networks really differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gcvideo.errors import DataError
from gcvideo.eval.metrics import label_ranks, softmax
from gcvideo.eval.predictions import Predictions


@dataclass(frozen=True)
class Scoring:
    """The labelled videos of a test, scored.

    Attributes:
        predictions: only the videos with a label.
        probabilities: (V, K), rows sum to 1.
        predicted: (V,) the best class of each video.
        ranks: (V,) how many classes come before the right one.
        classes: (K,) names; numbers where the names are unknown.
    """

    predictions: Predictions
    probabilities: np.ndarray
    predicted: np.ndarray
    ranks: np.ndarray
    classes: list[str]

    @property
    def labels(self) -> np.ndarray:
        """(V,) the right class of each video."""
        return self.predictions.labels

    @property
    def right(self) -> np.ndarray:
        """(V,) bool: whether top-1 is right."""
        return self.ranks < 1


def score(predictions: Predictions) -> Scoring:
    """Rank the labels of all labelled videos.

    Raises:
        DataError: no video has a label.
    """
    labelled = predictions.select(predictions.labels >= 0)
    if not len(labelled):
        raise DataError("none of these videos has a label, so there is nothing to score")
    scores = labelled.scores.astype(np.float64)
    # Scores are probabilities but for the mean of logits; the largest softmax of any view does not sum to 1.
    probabilities = softmax(scores) if labelled.ensemble == "logits" else scores / scores.sum(axis=1, keepdims=True)
    return Scoring(
        predictions=labelled,
        probabilities=probabilities,
        predicted=np.argsort(-labelled.scores, axis=1, kind="stable")[:, 0],
        ranks=label_ranks(labelled.scores, labelled.labels),
        classes=labelled.classes or [str(k) for k in range(scores.shape[1])],
    )


def per_class(scoring: Scoring) -> list[dict[str, Any]]:
    """Videos, top-1 and top-5 of each class that occurs, and the class it is most often taken for."""
    rows = []
    confusion = confusion_matrix(scoring)
    for k, name in enumerate(scoring.classes):
        own = scoring.labels == k
        count = int(own.sum())
        if not count:
            continue
        mistakes = confusion[k].copy()
        mistakes[k] = 0
        taken_for = scoring.classes[int(mistakes.argmax())] if mistakes.any() else None
        rows.append(
            {
                "class": name,
                "videos": count,
                "top1": int((scoring.ranks[own] < 1).sum()) / count,
                "top5": int((scoring.ranks[own] < 5).sum()) / count,
                "most_taken_for": taken_for,
            }
        )
    return rows


def confusion_matrix(scoring: Scoring) -> np.ndarray:
    """(K, K) counts: row the right class, column the predicted one."""
    size = len(scoring.classes)
    pairs = scoring.labels * size + scoring.predicted
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def worst_pairs(scoring: Scoring, count: int = 10) -> list[dict[str, Any]]:
    """The most frequent mistakes: which class was taken for which, and how many times."""
    confusion = confusion_matrix(scoring)
    totals = confusion.sum(axis=1)
    np.fill_diagonal(confusion, 0)
    order = np.argsort(-confusion, axis=None, kind="stable")[:count]
    pairs = [divmod(int(flat), len(confusion)) for flat in order]
    return [
        {
            "class": scoring.classes[right],
            "taken_for": scoring.classes[wrong],
            "videos": int(confusion[right, wrong]),
            "of": int(totals[right]),
        }
        for right, wrong in pairs
        if confusion[right, wrong]
    ]


def calibration(scoring: Scoring, bins: int = 15) -> dict[str, Any]:
    """Whether a confidence of 0.8 is right 8 times in 10: expected calibration error and its bins.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equations 2 to 5: videos are put into ``bins`` equally
    wide bins by the probability of their best class; the error is the mean over all videos of the gap between a
    bin's accuracy and its mean confidence.
    """
    confidence = scoring.probabilities.max(axis=1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bin m is ((m - 1) / M, m / M]
    rows = []
    for m in range(bins):
        inside = place == m
        if inside.any():
            rows.append(
                {
                    "from": m / bins,
                    "to": (m + 1) / bins,
                    "videos": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(scoring.right[inside].mean()),
                }
            )
    error = sum(row["videos"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(confidence)
    return {"expected_calibration_error": error, "bins": rows}


def mcnemar(first: Scoring, second: Scoring) -> dict[str, Any]:
    """Whether two networks differ on the same videos: McNemar's test, exact and two-sided.

    Only the videos that one gets right and the other wrong tell; if the networks were equally good, each would win
    half of them (McNemar 1947; the exact binomial form).

    Raises:
        DataError: the two have no video in common, or disagree on a label.
    """
    places = {name: i for i, name in enumerate(second.predictions.ids)}
    mine = [i for i, name in enumerate(first.predictions.ids) if name in places]
    theirs = [places[first.predictions.ids[i]] for i in mine]
    if not mine:
        raise DataError("the two prediction files have no labelled video in common")
    differing = np.flatnonzero(first.labels[mine] != second.labels[theirs])
    if len(differing):
        name = first.predictions.ids[mine[int(differing[0])]]
        raise DataError(f"the two prediction files give {name!r} different labels, so they belong to different tests")
    a, b = first.right[mine], second.right[theirs]
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    return {
        "videos": len(mine),
        "top1_first": float(a.mean()),
        "top1_second": float(b.mean()),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": binomial_p_value(only_first, only_second),
    }


def binomial_p_value(first: int, second: int) -> float:
    """Two-sided exact p-value of ``first`` against ``second`` wins, if each win is a toss of a fair coin."""
    total = first + second
    log_terms = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(min(first, second) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(term) for term in log_terms))


def summary(scoring: Scoring) -> dict[str, Any]:
    """Everything above but the comparison, as plain values for JSON."""
    rows = per_class(scoring)
    return {
        "mean_class_top1": sum(row["top1"] for row in rows) / len(rows),
        "per_class": rows,
        "worst_pairs": worst_pairs(scoring),
        "calibration": calibration(scoring),
        "confusion": confusion_matrix(scoring).tolist(),
    }
