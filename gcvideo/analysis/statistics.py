"""Statistics of predictions: bootstrap intervals of accuracy, and McNemar's test."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gcvideo.errors import DataError
from gcvideo.eval.metrics import label_ranks
from gcvideo.eval.predictions import Predictions

RESAMPLES = 10_000
LEVEL = 0.95
MEASURES = ("clip_top1", "clip_top5", "video_top1", "video_top5")


def common_videos(names: Sequence[str], networks: Sequence[Sequence[Predictions]]) -> list[list[Predictions]]:
    """Of each run of each network, the labelled videos that all of them have, in the order of their ids.

    Args:
        names: of the networks, for the errors.
        networks: their runs.

    Raises:
        DataError: the runs have no labelled video in common, several labels a video, or disagree on labels or classes.
    """
    tests = [(name, run) for name, runs in zip(names, networks, strict=True) for run in runs]
    if several := [name for name, run in tests if run.multi_label]:
        raise DataError(f"{several[0]}: has several labels a video; only accuracies of one label a video are compared")
    tests = [(name, run.select(run.known)) for name, run in tests]
    shared = set.intersection(*(set(run.ids) for _, run in tests))
    if not shared:
        ids = " and ".join(dict.fromkeys(run.ids[0] for _, run in tests if run.ids)) or "none"
        fix = "test readable videos, with the same data.test.root, which ids are relative to"
        raise DataError(f"{' and '.join(dict.fromkeys(names))}: have no labelled video in common (ids: {ids}); {fix}")
    tests = [(name, run.select([id_ in shared for id_ in run.ids])) for name, run in tests]
    first = tests[0][1].select(np.argsort(np.array(tests[0][1].ids, dtype=np.str_), kind="stable"))
    common = iter([run.aligned_with(first, names=(name, names[0])) for name, run in tests])
    return [[next(common) for _ in runs] for runs in networks]


def mcnemar(
    first: Predictions, second: Predictions, *, names: Sequence[str] = ("the first test", "the second test")
) -> dict[str, Any]:
    """McNemar's test, exact and two-sided: whether two networks differ on the videos that both have.

    Only the videos that one predicts correctly and the other does not tell; if the networks were equally good, each
    would win half of them (McNemar 1947; the exact binomial form).

    Raises:
        DataError: see ``common_videos``.
    """
    ((first,), (second,)) = common_videos(names, [[first], [second]])
    a, b = (label_ranks(test.scores, test.labels) < 1 for test in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    return {
        "videos": len(first),
        "top1_first": float(a.mean()),
        "top1_second": float(b.mean()),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "p_value": binomial_p_value(only_first, only_second),
    }


def binomial_p_value(first: int, second: int) -> float:
    """Two-sided exact p-value of ``first`` against ``second`` wins, if each win is a toss of a fair coin."""
    total = first + second
    ways = sum(math.comb(total, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * ways / 2**total)  # of integers, so exact


def compare_accuracy(
    names: Sequence[str], predictions: Sequence[Sequence[Predictions]], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy of each network on the labelled videos that all of them have, with 95 % intervals.

    Intervals are percentiles of a bootstrap over videos (Efron 1979), so the views of a video count as one trial. The
    same resamples serve all networks, which makes the interval of a difference a paired one. For a network that was
    trained several times, accuracies are means over its runs, and the bootstrap is over videos and runs: other videos
    and other seeds could both move the mean. Of n runs n - 1 are drawn: n of few vary too little (Rao and Wu 1988).

    Args:
        names: of the networks.
        predictions: of each network, one or more runs that differ in nothing but the seed.

    Returns:
        for each network: "videos"; "views", the fewest and the most of a video; "left_out", how many of its labelled
        videos not all others have; "failures", the videos that it could not read; "runs", their number; each of
        ``MEASURES`` as {"value", "low", "high", "by_run", "sd"}, fractions in [0, 1], where "sd" is the standard
        deviation over runs (n - 1), or None for one run; for all but the first also "minus_first" (video top-1:
        "value", "low", "high") and "mcnemar", a list that compares the first network's k-th run with this one's k-th.

    Raises:
        DataError: see ``common_videos``.
    """
    common = common_videos(names, predictions)
    correct = [[_correct(run) for run in runs] for runs in common]
    values = [np.stack([right.sum(0) / total.sum(0) for right, total in runs]) for runs in correct]  # (runs, measures)
    drawn = _resample(correct, seed=seed)
    video = MEASURES.index("video_top1")
    rows: list[dict[str, Any]] = []
    for number, (original, own) in enumerate(zip(predictions, common, strict=True)):
        views = np.concatenate([run.views for run in own])
        row: dict[str, Any] = {
            "videos": len(own[0]),
            "runs": len(own),
            "left_out": max(int((run.labels >= 0).sum()) for run in original) - len(own[0]),
            "failures": list({(f.path, f.id): f._asdict() for run in original for f in run.failures}.values()),
            "views": [int(views.min()), int(views.max())],
        }
        for column, measure in enumerate(MEASURES):
            by_run = values[number][:, column]
            row[measure] = {**_interval(by_run.mean(), drawn[number][:, column]), "by_run": by_run.tolist()}
            row[measure]["sd"] = float(by_run.std(ddof=1)) if len(own) > 1 else None
        if number:
            difference = values[number][:, video].mean() - values[0][:, video].mean()
            row["minus_first"] = _interval(difference, drawn[number][:, video] - drawn[0][:, video])
            row["mcnemar"] = [mcnemar(*pair) for pair in zip(common[0], own, strict=False)]  # as many as both have
        rows.append(row)
    return rows


def changed_videos(names: Sequence[str], predictions: Sequence[Sequence[Predictions]]) -> dict[str, Any]:
    """Videos that one network has right and another wrong: right in more than half of its runs.

    Args:
        names: of the networks.
        predictions: of each network, one or more runs.

    Returns:
        "pairs": for each network how many videos it has right that each other has wrong; "videos": those that not all
        agree on, the most even sides first, as {"id", "path", "class", "label", "networks"}, the last for each network
        {"network", "prediction" and "score" of its first run, "right"}; "example": the first of them, else any.
    """
    common = common_videos(names, predictions)
    first = common[0][0]
    wins = np.array([sum(label_ranks(run.scores, run.labels) < 1 for run in runs) for runs in common])  # (networks, V)
    share = wins / np.array([[len(runs)] for runs in common])
    right = share > 0.5
    disputed = right.any(0) & ~right.all(0)
    order = np.lexsort((-share.std(0), ~disputed))[: max(1, disputed.sum())].tolist()
    classes = first.classes or [str(k) for k in range(first.scores.shape[1])]
    videos = []
    for i in order:
        networks = []
        for name, runs, won in zip(names, common, wins[:, i], strict=True):
            scores, said = runs[0].scores[i], f"{won} of {len(runs)} runs" if len(runs) > 1 else "yes" if won else "no"
            row = {"network": name, "prediction": classes[scores.argmax()], "score": float(scores.max()), "right": said}
            networks.append(row)
        path, label = (first.paths or first.ids)[i], int(first.labels[i])
        own = {"id": first.ids[i], "path": path, "class": classes[label], "label": label, "networks": networks}
        videos.append(own)
    pairs = [
        {"right": name, **{f"{other} wrong": int((a & ~b).sum()) for other, b in zip(names, right, strict=True)}}
        for name, a in zip(names, right, strict=True)
    ]
    return {"pairs": pairs, "videos": videos if disputed.any() else [], "example": videos[0]}


def _correct(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Correct predictions of each video, and out of how many: (V, 4) each, in the order of ``MEASURES``."""
    ranks = label_ranks(predictions.scores, predictions.labels)
    right = np.stack([predictions.clip_top1, predictions.clip_top5, ranks < 1, ranks < 5], axis=1)
    one = np.ones_like(predictions.views)
    return right.astype(np.float64), np.stack([predictions.views, predictions.views, one, one], axis=1)


def _resample(correct: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], *, seed: int) -> list[np.ndarray]:
    """Accuracies (RESAMPLES, 4) of each network, means over drawn runs; all see the same draws of videos."""
    rng, seeds = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    videos = len(correct[0][0][0])
    drawn: list[list[np.ndarray]] = [[] for _ in correct]
    for _ in range(RESAMPLES):
        times = rng.multinomial(videos, np.full(videos, 1 / videos))  # (V,): how often each is drawn
        for accuracies, runs in zip(drawn, correct, strict=True):
            chosen = [runs[i] for i in seeds.integers(len(runs), size=max(1, len(runs) - 1))]
            accuracies.append(np.mean([(times @ right) / (times @ total) for right, total in chosen], axis=0))
    return [np.stack(accuracies) for accuracies in drawn]


def _interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {"value": float(value), "low": float(low), "high": float(high)}
