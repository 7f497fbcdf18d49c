"""Scores of a test, class by class: accuracy, confusions, calibration, loss; and the verdict on a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gcvideo.console import percent
from gcvideo.errors import DataError
from gcvideo.eval import metrics
from gcvideo.eval.predictions import Predictions

NOT_LEARNED = (
    "not learned: the {} is no better than guessing. Check the labels, try --overfit 8, --find-lr, more epochs"
)
MOST_SUSPECTS, RATIO = 50, 5.0  # by which factor another class is more probable than the label, to doubt it


@dataclass(frozen=True)
class Scoring:
    """The labelled videos of a test, scored.

    Attributes:
        predictions: only the V videos with a label.
        probabilities: (V, K), rows sum to 1.
        predicted: (V,) the best class of each video.
        ranks: (V,) how many classes come before the true one.
        confusion: (K, K) counts: row the true class, column the predicted one.
        classes: (K,) names; numbers where the names are unknown.
    """

    predictions: Predictions
    probabilities: np.ndarray
    predicted: np.ndarray
    ranks: np.ndarray
    confusion: np.ndarray
    classes: list[str]

    @property
    def labels(self) -> np.ndarray:
        """(V,) the true class of each video."""
        return self.predictions.labels

    @property
    def right(self) -> np.ndarray:
        """(V,) bool: whether top-1 is correct."""
        return self.ranks < 1

    @property
    def wrong(self) -> np.ndarray:
        """(K, K) the confusion matrix without its diagonal."""
        return self.confusion - np.diag(np.diag(self.confusion))


def score(predictions: Predictions) -> Scoring:
    """Rank the labels of all labelled videos.

    Raises:
        DataError: no video has a label.
    """
    labelled = predictions.select(predictions.known)
    if not len(labelled):
        raise DataError("none of these videos has a label, so there is nothing to score")
    scores = labelled.scores.astype(np.float64)
    # Scores are probabilities, except that the mean of logits is not and the largest softmax of any view does not sum
    # to 1.
    totals = scores.sum(axis=1, keepdims=True)
    probabilities = metrics.softmax(scores) if labelled.ensemble == "logits" else scores / totals
    predicted = np.where(np.isnan(labelled.scores), -np.inf, labelled.scores).argmax(axis=1)
    return Scoring(
        predictions=labelled,
        probabilities=probabilities,
        predicted=predicted,
        ranks=metrics.label_ranks(labelled.scores, labelled.labels),
        confusion=metrics.confusion_matrix(labelled.labels, predicted, scores.shape[1]),
        classes=labelled.classes or [str(k) for k in range(scores.shape[1])],
    )


def per_class(scoring: Scoring) -> list[dict[str, Any]]:
    """Videos, top-1 and top-5 of each class that occurs, and the class it is most often taken for."""
    rows = []
    for k in np.unique(scoring.labels):
        ranks, wrong = scoring.ranks[scoring.labels == k], scoring.wrong[k]
        rows.append(
            {
                "class": scoring.classes[k],
                "videos": len(ranks),
                "top1": float((ranks < 1).mean()),
                "top5": float((ranks < 5).mean()),
                "most_taken_for": scoring.classes[int(wrong.argmax())] if wrong.any() else None,
            }
        )
    return rows


def worst_pairs(scoring: Scoring, count: int = 10) -> list[dict[str, Any]]:
    """The most frequent mistakes: which class was taken for which, in how many of its videos."""
    wrong, totals = scoring.wrong, scoring.confusion.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    names = scoring.classes
    return [
        {"class": names[k], "taken_for": names[other], "videos": int(wrong[k, other]), "of": int(totals[k])}
        for k, other in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[k, other]
    ]


def against_guessing(scoring: Scoring) -> dict[str, Any]:
    """Video top-1 against guessing.

    Returns:
        "interval", that of Wilson with 95 %; "chance", 1 / K; "largest_class", the share of the most frequent class;
        "context", all this in words; and "verdict", what to do where the network is no better than guessing, else "".
    """
    videos, hits = len(scoring.labels), int(scoring.right.sum())
    low, high = metrics.wilson_interval(hits, videos)
    chance, largest = 1 / len(scoring.classes), float(np.bincount(scoring.labels).max()) / videos
    guess, verdict = max(chance, largest), ""
    if hits / videos <= guess < 1:
        verdict = NOT_LEARNED.format("video top-1")
    elif low <= guess:
        verdict = f"not certain: {videos} videos cannot tell this top-1 from guessing; give more, of every class"
    return {
        "interval": [low, high],
        "chance": chance,
        "largest_class": largest,
        "context": f"95 % interval of the video top-1 {percent(low)} to {percent(high)}; guessing reaches "
        f"{percent(chance)} by chance, {percent(largest)} with the largest class alone",
        "verdict": verdict,
    }


def details(predictions: Predictions, *, thresholds: Sequence[float] | None = None) -> dict[str, Any]:
    """``summary`` of the labelled videos, or ``summarize_sets``; empty if no video has a label."""
    if not predictions.known.any():
        return {}
    return summarize_sets(predictions, thresholds) if predictions.multi_label else summary(score(predictions))


def summarize_sets(predictions: Predictions, thresholds: Sequence[float] | None = None) -> dict[str, Any]:
    """All statistics of one test as plain values for JSON.

    Args:
        predictions: the videos without labels are left out.
        thresholds: (K,) above which a score in (0, 1) is a label; by default those of the best F1 on these videos.

    Returns:
        "loss", the binary cross entropy of the videos' scores; "context" and "verdict" as ``against_guessing`` gives
        them; "thresholds"; "mean_f1" over the classes with a video;
        "per_class", of each of these "class", "videos" (that show it), "ap", "threshold", "precision", "recall", "f1".
    """
    known = predictions.select(predictions.known)
    scores, truth = known.scores.astype(np.float64), known.labels == 1
    scores = metrics.sigmoid(scores) if known.ensemble == "logits" else scores
    precisions, limits = metrics.score_classes(scores, truth)
    limits = limits if thresholds is None else np.asarray(thresholds)
    chosen, names = scores > limits, known.classes or [*map(str, range(scores.shape[1]))]
    hits, given, shown = (each.sum(axis=0) for each in (chosen & truth, chosen, truth))
    columns = {"ap": precisions, "threshold": limits, "precision": hits / np.maximum(given, 1)}
    columns |= {"recall": hits / np.maximum(shown, 1), "f1": 2 * hits / np.maximum(given + shown, 1)}
    tiny, mean = np.finfo(np.float32).tiny, known.accuracy().get("video", {"mAP": np.nan, "chance": np.nan})
    return {
        "context": f"scores at random reach an mAP of {percent(mean['chance'])}, the mean share of each class",
        "verdict": NOT_LEARNED.format("mAP") if mean["mAP"] <= mean["chance"] else "",
        "loss": float(-np.log(np.maximum(np.where(truth, scores, 1 - scores), tiny)).mean()),
        "thresholds": limits.tolist(),
        "mean_f1": float(columns["f1"][shown > 0].mean()) if truth.any() else 0.0,
        "per_class": [
            {"class": names[k], "videos": int(shown[k]), **{key: float(of[k]) for key, of in columns.items()}}
            for k in np.flatnonzero(shown)
        ],
    }


def summary(scoring: Scoring) -> dict[str, Any]:
    """All statistics of one test as plain values for JSON; ``loss`` is the cross-entropy of the videos' scores."""
    rows = per_class(scoring)
    truth = scoring.probabilities[np.arange(len(scoring.labels)), scoring.labels]
    return {
        "loss": float(-np.log(np.maximum(truth, np.finfo(np.float32).tiny)).mean()),
        **against_guessing(scoring),
        "mean_class_top1": sum(row["top1"] for row in rows) / len(rows),
        "per_class": rows,
        "worst_pairs": worst_pairs(scoring),
        "calibration": metrics.calibration(scoring.probabilities.max(axis=1), scoring.right),
        "confusion": scoring.confusion.tolist(),
    }


def video_row(scoring: Scoring, i: int) -> dict[str, Any]:
    """What a page shows of the i-th video: its class, what it was taken for with which confidence, and the rank."""
    videos, names, taken_for = scoring.predictions, scoring.classes, scoring.predicted[i]
    row = {"id": videos.ids[i], "path": (videos.paths or videos.ids)[i], "class": names[scoring.labels[i]]}
    confidence = float(scoring.probabilities[i, taken_for])
    return {**row, "taken_for": names[taken_for], "rank": int(scoring.ranks[i]) + 1, "confidence": confidence}


def accuracy(predictions: Predictions) -> float:
    """Video top-1 as a fraction, or mean average precision where videos have several labels."""
    found = predictions.accuracy().get("video", {})
    return found.get("mAP", found.get("top1", 0.0))


def judge(pooled: Predictions | None, runs: Sequence[Predictions], check: Predictions) -> dict[str, Any]:
    """The verdict in numbers.

    Args:
        pooled: predictions of held-out videos; None without any.
        runs: the same of each fold, or of each seed.
        check: predictions of training videos.

    Returns:
        ``videos`` held out; ``accuracy`` of these and ``by_run``, and their standard ``deviation``; ``clip``, that of
        single views; ``trained``, that of training videos; ``learned``; ``suspects``, videos whose labels look wrong;
        and what ``details`` gives.
    """
    verdict: dict[str, Any] = {"trained": accuracy(check), "suspects": [], "learned": False, "videos": 0}
    if pooled is None or not len(pooled):
        return verdict
    verdict |= {"videos": len(pooled), "accuracy": accuracy(pooled), "by_run": list(map(accuracy, runs)), "clip": None}
    verdict |= {"deviation": float(np.std(verdict["by_run"], ddof=1)) if len(runs) > 1 else None, **details(pooled)}
    verdict["learned"] = not verdict["verdict"]
    if not pooled.multi_label:
        verdict["clip"] = pooled.accuracy()["clip"]["top1"]
        for row in verdict["per_class"]:
            row["high"] = metrics.wilson_interval(round(row["top1"] * row["videos"]), row["videos"])[1]
        if verdict["learned"]:
            verdict["suspects"] = suspects({"held out": score(pooled), "trained on": score(check)})
    return verdict


def suspects(scored: dict[str, Scoring]) -> list[dict[str, Any]]:
    """Videos whose labels look wrong: another class is much more probable, by the largest factor first.

    Args:
        scored: what the videos were to the network, in words -> their scores; the first ones count.
    """
    found: dict[str, dict[str, Any]] = {}
    for part, each in scored.items():
        own, best = (each.probabilities[np.arange(len(each.labels)), k] for k in (each.labels, each.predicted))
        for i in np.flatnonzero(best >= RATIO * own).tolist():
            row = {**video_row(each, i), "part": part, "factor": float(best[i] / own[i])}
            found.setdefault(row["id"], row)
    return sorted(found.values(), key=lambda row: -row["factor"])[:MOST_SUSPECTS]
