"""What a training says at its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gcvideo.data.records import RecordTable
from gcvideo.eval.metrics import by_class
from gcvideo.eval.predictions import Predictions

# With worker processes decoding ahead, a wait of more than this share of the time means that they cannot keep up.
DATA_BOUND_SHARE = 0.1


def validation_figures(predictions: Predictions) -> dict[str, float]:
    """Accuracy by name, as fractions (NaN where no video could be read), and how many videos could and could not be."""
    accuracy = predictions.accuracy()
    figures = {
        f"{of}_{top}": accuracy.get(of, {}).get(top, float("nan"))
        for of in ("clip", "video")
        for top in ("top1", "top5")
    }
    return {**figures, "videos": len(predictions), "failures": len(predictions.failures)}


def validation_details(predictions: Predictions) -> dict[str, Any]:
    """Accuracy by class, confusions and calibration; see ``gcvideo.eval.metrics.by_class``."""
    known = predictions.labels >= 0
    if not known.any():
        return {}
    return by_class(predictions.averages["softmax"][known], predictions.labels[known])


def save_validation(path: Path, predictions: Predictions, records: RecordTable, *, epoch: float) -> None:
    """Write the answers of a validation, which the run's report is made from, after so many epochs."""
    predictions.paths = [records[index].path for index in predictions.indices]
    predictions.classes = list(records.classes or ())
    predictions.info = {"annotation": records.source, "fingerprint": records.fingerprint, "epoch": epoch}
    predictions.save(path)


def accuracy_line(figures: dict[str, float]) -> str:
    """Clip and video accuracy in percent, by name."""
    unread = f", {figures['failures']:g} videos could not be read" if figures["failures"] else ""
    if math.isnan(figures["video_top1"]):
        return f"no accuracy, for want of readable videos{unread}"
    return (
        f"clip top-1 {100 * figures['clip_top1']:.2f} %, top-5 {100 * figures['clip_top5']:.2f} %; "
        f"video top-1 {100 * figures['video_top1']:.2f} %, top-5 {100 * figures['video_top5']:.2f} % "
        f"of {figures['videos']:g} videos{unread}"
    )


def bound(data_seconds: float, compute_seconds: float, *, workers: int) -> str:
    """ "data" or "compute": which of the two the training had to wait for."""
    total = data_seconds + compute_seconds
    limit = DATA_BOUND_SHARE if workers else 0.5
    return "data" if total and data_seconds / total > limit else "compute"


def bound_line(data_seconds: float, compute_seconds: float, *, workers: int) -> str:
    """The last line of a training: what bounded it, and what would help."""
    share = 100 * data_seconds / max(data_seconds + compute_seconds, 1e-9)
    waited = f"{share:.0f} % of the training time was spent waiting for clips"
    if bound(data_seconds, compute_seconds, workers=workers) == "compute":
        return f"Compute bounded the run: {waited}."
    more = f"raise data.workers ({workers} now)" if workers else "set data.workers to 1 or more"
    return f"Data bounded the run: {waited}; {more} or shrink the videos with gcvideo prepare."


def failed_videos(failures: dict[str, tuple[str, str]]) -> list[dict[str, str]]:
    """Videos that could not be read, by id."""
    return [{"id": id_, "path": path, "reason": reason} for id_, (path, reason) in sorted(failures.items())]
