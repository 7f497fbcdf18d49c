"""Predictions made up for tests of statistics and pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gcvideo.data.records import Failure
from gcvideo.eval.predictions import Predictions, VideoScores


def right_or_wrong(right: Sequence[bool], *, views: Sequence[int] | None = None, prefix: str = "v") -> Predictions:
    """Videos of class 0 out of three, of which these are right, with all their views (by default two each)."""
    videos = []
    for i, is_right in enumerate(right):
        scores = np.array([0.6, 0.3, 0.1] if is_right else [0.3, 0.6, 0.1], np.float32)
        count = views[i] if views else 2
        videos.append(VideoScores(i, f"{prefix}{i}", 0, count, count * is_right, count, scores, scores, scores))
    return Predictions.collect(videos)


def random_scores(
    classes: Sequence[str],
    *,
    count: int = 60,
    seed: int = 0,
    skill: float = 1.5,
    suffix: str = "",
    failures: Sequence[Failure] = (),
) -> Predictions:
    """Random scores of videos whose labels go round the classes; that of the label is ``skill`` higher on average."""
    rng = np.random.default_rng(seed)
    videos = []
    for i in range(count):
        label = i % len(classes)
        logits = rng.normal(size=len(classes)) * 2
        logits[label] += skill
        shares = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
        videos.append(VideoScores(i, f"video {i}{suffix}", label, 6, 2, 5, shares, logits.astype(np.float32), shares))
    found = Predictions.collect(videos, failures=failures)
    found.classes = list(classes)
    return found
