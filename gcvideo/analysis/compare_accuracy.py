"""Accuracy of several networks on the same videos: intervals by bootstrap, and whether they differ at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcvideo import console
from gcvideo.analysis.scoring import mcnemar, score
from gcvideo.config import ModelConfig, SplitConfig, TestConfig
from gcvideo.data.dataset import ViewDataset
from gcvideo.data.loader import eval_loader
from gcvideo.errors import ConfigError, DataError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.metrics import label_ranks
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.test_run import test_records
from gcvideo.eval.trained import load_trained

RESAMPLES = 10_000
LEVEL = 0.95
# Keys of a network's config that change nothing of its cost, or next to nothing.
NOT_COMPARED = ("num_classes", "dropout", "drop_path", "zero_init_last_norm", "weights")
MEASURES = ("clip_top1", "clip_top5", "video_top1", "video_top5")


def predict_checkpoint(
    place: str,
    name: str,
    expected: ModelConfig,
    *,
    data: str | None,
    device: torch.device,
    precision: str,
    views: TestConfig | None = None,
) -> Predictions:
    """Test a checkpoint.

    Args:
        place: a checkpoint or the folder of a run.
        name: what the network is called in the table.
        expected: the network that it must hold, but for ``NOT_COMPARED``.
        data: an annotation or a folder of class folders; by default the run's test (or val) split.
        views: by default the run's.

    Raises:
        ConfigError: the checkpoint is of another network, so that its accuracy would stand beside the wrong cost.
    """
    network = load_trained(place, device=device)
    config = network.config
    for key, (theirs, ours) in different_keys(config.model, expected).items():
        raise ConfigError(
            f"{name}: {network.path} holds another network: model.{key} is {theirs} there and {ours} here; "
            "give the config of that run, its config.yaml"
        )
    if data is not None:
        config.data.test = SplitConfig(annotation=data)
    records = test_records(config, network.classes)
    model = optimize_for_inference(network.model, precision=precision)
    test = views or config.test
    dataset = ViewDataset(records, data=config.data, test=test)
    loader = eval_loader(dataset, rank=0, world_size=1, workers=min(config.data.workers, len(records)))
    with console.Progress(f"test {Path(place).name}", total=len(records), unit="videos") as progress:
        return evaluate(
            model, loader, test=test, data=config.data, device=device, on_video=lambda _: progress.advance()
        )


def different_keys(theirs: ModelConfig, ours: ModelConfig) -> dict[str, tuple[object, object]]:
    """Key -> both values, of what makes two networks cost differently."""
    both = {key: (value, getattr(ours, key)) for key, value in vars(theirs).items() if key not in NOT_COMPARED}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def load_predictions(place: str) -> Predictions:
    """The predictions of an earlier test: the file, or the folder of its run."""
    path = Path(place).expanduser()
    return Predictions.load(path / "predictions.npz" if path.is_dir() else path)


def compare_accuracy(
    names: Sequence[str], predictions: Sequence[Sequence[Predictions]], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy of each network on the labelled videos that all of them answered, with intervals.

    Intervals are percentiles of a bootstrap over videos (Efron 1979), 95 %: the views of a video stand or fall
    together, so that they are no independent trials. The same resamples serve all networks, which makes the interval
    of a difference a paired one. Where a network was trained several times, accuracies are means over its runs and
    intervals those of the mean for these runs: they say how far other videos could move it, and the standard deviation
    says how far other seeds do.

    Args:
        predictions: of each network, one or more runs that differ in nothing but the seed.

    Returns:
        for each network: "videos"; "views", the fewest and the most of a video; "left_out", how many of its answers not
        all others have; "failures", the videos that it could not read; "runs", their number; each of ``MEASURES`` as
        {"value", "low", "high", "by_run", "sd"}, fractions in [0, 1], where "sd" is the standard deviation over runs
        (n - 1), or None for one run; for all but the first also "minus_first" (video top-1: "value", "low", "high") and
        "mcnemar", a list that sets the first network's k-th run against this one's k-th.

    Raises:
        DataError: the networks have no labelled video in common, or disagree on labels or classes.
    """
    everyone = [run for runs in predictions for run in runs]
    common = [[_on_common_videos(run, everyone) for run in runs] for runs in predictions]
    reference = common[0][0]
    if not len(reference):
        failures = [failure for run in everyone for failure in run.failures]
        reason = f"; {failures[0].path}: {failures[0].reason}" if failures else ""
        raise DataError(f"{' and '.join(names)}: have no labelled video in common{reason}")
    for name, runs in zip(names, common, strict=True):
        counts = {run.scores.shape[1] for run in (reference, *runs)}
        if len(counts) > 1 or any(
            run.classes and reference.classes and run.classes != reference.classes for run in runs
        ):
            raise DataError(
                f"{name}: its classes are not those of {names[0]}, so the predictions are of different tests"
            )
        if any((run.labels != reference.labels).any() for run in runs):
            raise DataError(
                f"{name}: labels differ from those of {names[0]}, so the predictions are of different tests"
            )
    hits = [[_hits(run) for run in runs] for runs in common]  # each (V, measures): right answers, and out of how many
    values = [np.stack([right.sum(0) / total.sum(0) for right, total in runs]) for runs in hits]  # (runs, measures)
    drawn = _resample(hits, resamples=resamples, seed=seed)
    rows: list[dict[str, Any]] = []
    for number, own in enumerate(common):
        row: dict[str, Any] = {
            "videos": len(reference),
            "runs": len(own),
            **_left_out(predictions[number], len(reference)),
        }
        row["views"] = [int(min(run.views.min() for run in own)), int(max(run.views.max() for run in own))]
        for column, measure in enumerate(MEASURES):
            by_run = values[number][:, column]
            deviation = float(by_run.std(ddof=1)) if len(own) > 1 else None
            interval = _interval(by_run.mean(), drawn[number][:, column])
            row[measure] = {**interval, "sd": deviation, "by_run": by_run.tolist()}
        if number:
            video = MEASURES.index("video_top1")
            difference = values[number][:, video].mean() - values[0][:, video].mean()
            row["minus_first"] = _interval(difference, drawn[number][:, video] - drawn[0][:, video])
            pairs = zip(common[0], own, strict=False)  # as many as both have
            row["mcnemar"] = [mcnemar(score(first), score(second)) for first, second in pairs]
        rows.append(row)
    return rows


def _left_out(runs: Sequence[Predictions], common: int) -> dict[str, Any]:
    """What the common videos lack of a network's: labelled answers, and videos that it could not read."""
    answered = max(int((run.labels >= 0).sum()) for run in runs)
    failures = {(f.path, f.id): f._asdict() for run in runs for f in run.failures}
    return {"left_out": answered - common, "failures": list(failures.values())}


def _on_common_videos(own: Predictions, everyone: Sequence[Predictions]) -> Predictions:
    """The labelled videos that all have, in the order of their ids."""
    labelled = [{name for name, label in zip(p.ids, p.labels, strict=True) if label >= 0} for p in everyone]
    shared = set.intersection(*labelled)
    kept = own.select([name in shared for name in own.ids])
    order = np.argsort(np.array(kept.ids, dtype=np.str_), kind="stable")
    return Predictions(
        ids=[kept.ids[i] for i in order],
        indices=kept.indices[order],
        labels=kept.labels[order],
        averages={name: scores[order] for name, scores in kept.averages.items()},
        views=kept.views[order],
        clip_top1=kept.clip_top1[order],
        clip_top5=kept.clip_top5[order],
        ensemble=kept.ensemble,
        classes=kept.classes,
    )


def _hits(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """How many right answers each video gives, and out of how many: (V, 4) each, in the order of ``MEASURES``."""
    ranks = label_ranks(predictions.scores, predictions.labels)
    right = np.stack([predictions.clip_top1, predictions.clip_top5, ranks < 1, ranks < 5], axis=1)
    one = np.ones_like(predictions.views)
    return right.astype(np.float64), np.stack([predictions.views, predictions.views, one, one], axis=1)


def _resample(
    hits: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], *, resamples: int, seed: int
) -> list[np.ndarray]:
    """Accuracies (resamples, 4) of each network, means over its runs; all see the same draws of videos."""
    rng = np.random.default_rng(seed)
    videos = len(hits[0][0][0])
    portion = max(1, 10_000_000 // videos)  # draws held in memory at a time
    parts: list[list[np.ndarray]] = [[] for _ in hits]
    for start in range(0, resamples, portion):
        count = min(portion, resamples - start)
        times = rng.multinomial(videos, np.full(videos, 1 / videos), count)  # (draws, V): how often each is drawn
        for part, runs in zip(parts, hits, strict=True):
            part.append(np.mean([(times @ right) / (times @ total) for right, total in runs], axis=0))
    return [np.concatenate(part) for part in parts]


def _interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {"value": float(value), "low": float(low), "high": float(high)}
