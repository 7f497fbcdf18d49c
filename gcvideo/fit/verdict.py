"""The verdict on a trained classifier: how good it is, what it confuses, and which labels look wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gcvideo.eval.metrics import wilson_interval
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.scoring import Scoring, details, score
from gcvideo.report.pages import video_row

MOST_SUSPECTS, RATIO = 50, 5.0  # by which factor another class is more probable than the label, to doubt it


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
        and what ``gcvideo.eval.scoring.details`` gives.
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
            row["high"] = wilson_interval(round(row["top1"] * row["videos"]), row["videos"])[1]
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
