"""The verdict on a trained classifier: how good it is, what it confuses, and which labels look wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gcvideo.eval.predictions import COUNTS, ENSEMBLES, Predictions
from gcvideo.eval.scoring import Scoring, score, summary

Z = 1.96  # standard deviations of a 95 % interval
MOST_SUSPECTS = 12
SURE, RATIO = 0.5, 5.0  # probability of the predicted class, and how much larger than that of the label, to doubt it


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), which is right for few videos and near 0 and 1 too."""
    square = Z**2 / count
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def join(several: Sequence[Predictions]) -> Predictions:
    """Predictions of several tests as one, as of the folds of a cross-validation."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in several]) for name in COUNTS}
    return replace(
        several[0],
        ids=[id_ for one in several for id_ in one.ids],
        paths=[path for one in several for path in one.paths],
        averages={name: np.concatenate([one.averages[name] for one in several]) for name in ENSEMBLES},
        failures=[failure for one in several for failure in one.failures],
        **arrays,
    )


def judge(tests: Sequence[Predictions], check: Predictions) -> dict[str, Any]:
    """The verdict in numbers.

    Args:
        tests: predictions of held-out videos, of one run or more: of other videos each, or of the same.
        check: predictions of training videos.

    Returns:
        ``trained``, accuracy of training videos; ``suspects``, whose labels look wrong; ``videos``, how many were
        held out. None where there are none: their ``accuracy``, a fraction, mean over the runs; its 95 % ``interval``
        over videos; ``by_run`` and the ``deviation`` of these; what ``chance`` and the ``largest`` class reach;
        ``learned``, whether the interval lies above both, None where the accuracy alone does; and what
        ``gcvideo.eval.scoring.summary`` gives.
    """
    checked = score(check)
    verdict: dict[str, Any] = {"videos": 0, "trained": float(checked.right.mean()), "suspects": []}
    verdict |= dict.fromkeys(("accuracy", "interval", "by_run", "chance", "largest", "learned"))
    if not any(len(test) for test in tests):
        return verdict
    scored = score(join(tests))
    videos, accuracy = len({*scored.predictions.paths}), float(scored.right.mean())
    chance, largest = 1 / len(scored.classes), float(np.bincount(scored.labels).max() / len(scored.labels))
    low, high = wilson(accuracy, videos)
    learned = True if low > max(chance, largest) else None if accuracy > max(chance, largest) else False
    verdict |= {"videos": videos, "accuracy": accuracy, "interval": (low, high), "chance": chance, "largest": largest}
    verdict |= {"by_run": [float(score(test).right.mean()) for test in tests], "learned": learned, **summary(scored)}
    verdict["clip"] = float(scored.predictions.clip_top1.sum() / scored.predictions.views.sum())
    if learned:
        verdict["suspects"] = suspects({"held out": scored, "trained on": checked})
    for row in verdict["per_class"]:
        row["interval"] = wilson(row["top1"], row["videos"])
    verdict["deviation"] = float(np.std(verdict["by_run"], ddof=1)) if len(tests) > 1 else None
    return verdict


def suspects(scored: dict[str, Scoring]) -> list[dict[str, Any]]:
    """Videos whose labels look wrong: confident predictions of another class, the most confident first.

    Args:
        scored: what the videos were to the network, in words -> their scores.
    """
    found: dict[str, dict[str, Any]] = {}
    for part, each in scored.items():
        own, best = (each.probabilities[np.arange(len(each.labels)), k] for k in (each.labels, each.predicted))
        for i in np.flatnonzero(~each.right & (best >= SURE) & (best >= RATIO * own)):
            row = {
                "id": each.predictions.ids[i],
                "path": each.predictions.paths[i],
                "class": each.classes[each.labels[i]],
                "part": part,
            }
            row |= {"taken_for": each.classes[each.predicted[i]], "confidence": float(best[i])}
            found[row["path"]] = max(row, found.get(row["path"], row), key=lambda row: row["confidence"])
    return sorted(found.values(), key=lambda row: -row["confidence"])[:MOST_SUSPECTS]
