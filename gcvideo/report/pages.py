"""The pages that people read: the report of a test, the report of a run, and the predictions of videos.

Each function gathers plain values and writes one template of ``templates/``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.analysis.statistics import Scoring, calibration, confusion_matrix, per_class, score, worst_pairs
from gcvideo.config import config_to_dict, load_config
from gcvideo.console import clock, duration, printable
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.predictor import Predictor
from gcvideo.report.maps import FROM_THE_RING, explain, label_in_the_middle, middle_clip
from gcvideo.report.page import percent, write_page
from gcvideo.report.pictures import data_uri, scale_in_css, thumbnails
from gcvideo.report.plots import Series, calibration_plot, line_plot
from gcvideo.train.logger import read_metrics

# A matrix of more classes than this is too wide to read: only the most confused ones are shown.
MOST_CLASSES = 24
MOST_MISTAKES = 12
MOST_POINTS = 200  # of a curve; more are averaged
# Attention maps add some hundred kilobytes a video to the page, and a forward and a backward pass to the work.
MOST_OVERLAYS = 20

# Title -> label of y, its factor, and the curves: name -> kind of the lines in metrics.jsonl and their key.
CURVES: dict[str, tuple[str, float, dict[str, tuple[str, str]]]] = {
    "Loss": ("cross-entropy", 1, {"training": ("train", "loss")}),
    "Accuracy": (
        "top-1, %",
        100,
        {
            "training clips": ("train", "top1"),
            "validation clips": ("val", "clip_top1"),
            "validation videos": ("val", "video_top1"),
        },
    ),
    "Learning rate": ("", 1, {"learning rate": ("train", "lr")}),
    "Time of a step": (
        "ms",
        1000,
        {"waiting for clips": ("train", "data_seconds"), "computing": ("train", "compute_seconds")},
    ),
}


def write_test_report(path: str | Path, results: dict[str, Any], predictions: Predictions) -> None:
    """Write the report of a test: accuracy, classes, confusions, calibration, mistakes, failures, config.

    Args:
        path: of the HTML file.
        results: the content of ``results.json`` of ``gcvideo test``.
        predictions: of the same test.
    """
    write_page(path, "test", title="Test report", values=_test_values(results, predictions))


def write_run_report(folder: str | Path) -> Path:
    """Write the report of a run, ``report.html``, from the files in its folder: curves, accuracy, failures, config.

    Args:
        folder: ``runs/NAME`` of a training, finished or stopped. Where ``gcvideo test`` has left its results there,
            the report shows the test instead of the last validation.

    Returns:
        the file.
    """
    folder = Path(folder)
    config = load_config(folder / "config.yaml")
    results = _read_json(folder / "results.json")
    training = results.get("training", {})
    tested = validation = None
    if "answered" in results and (folder / "predictions.npz").exists():
        tested = _test_values(results, Predictions.load(folder / "predictions.npz"))
    elif (folder / "predictions_val.npz").exists():
        validation = _validation_values(Predictions.load(folder / "predictions_val.npz"))
    write_page(
        folder / "report.html",
        "run",
        title=f"Run {config.name}",
        training=training,
        summary=_training_summary(training) if training else [],
        curves=_curves(read_metrics(folder / "metrics.jsonl")),
        tested=tested,
        validation=validation,
        unread=_failure_rows(training["failures"]["videos"]) if training else [],
        config_rows=_config_rows(config_to_dict(config)),
    )
    return folder / "report.html"


def write_prediction_page(path: str | Path, predictor: Predictor, entries: Sequence[dict[str, Any]]) -> None:
    """Write the page of ``gcvideo predict --html``: thumbnails, predictions, timelines, and where the network looked.

    Args:
        path: of the HTML file.
        predictor: made the predictions.
        entries: one for each video, as ``gcvideo predict --json`` writes them: ``video``, ``error``, ``predictions``,
            and with a timeline ``duration``, ``timeline``, ``windows`` and ``warning``.
    """
    videos, labelled = [], 0
    for entry in entries:
        labelled += entry["error"] is None
        videos.append(_video_values(entry, predictor if labelled <= MOST_OVERLAYS else None))
    write_page(
        path,
        "predictions",
        title="Predictions",
        videos=videos,
        labelled=labelled,
        checkpoint=predictor.source,
        most_overlays=MOST_OVERLAYS,
        scale=scale_in_css(),
    )


def _test_values(results: dict[str, Any], predictions: Predictions) -> dict[str, Any]:
    explained = {
        "video": "of videos, their views ensembled: the accuracy that papers report",
        "clip": "of views, each on its own",
        "video_of_all": "of videos, those that could not be read counted as wrong",
    }
    if not results["failed"]:
        del explained["video_of_all"]
    facts = ("annotation", "fingerprint", "train_fingerprint", "checkpoint", "precision", "processes", "views")
    return {
        "results": results,
        "accuracy": [
            (f"{name.split('_')[0]} top-{k}", percent(results[name][f"top{k}"], 2), meaning)
            for name, meaning in explained.items()
            if name in results
            for k in (1, 5)
        ],
        "scored": _score_values(predictions),
        "failures": _failure_rows(results["failures"]),
        "facts": [[name, _plain(results[name])] for name in facts if results.get(name) is not None],
        "config": _config_rows(results.get("config", {})),
    }


def _validation_values(predictions: Predictions) -> dict[str, Any]:
    info, views = predictions.info, int(predictions.views.max()) if len(predictions) else 0
    each = f"{views} view{'s' * (views != 1)} each"
    return {
        "facts": f"{len(predictions)} videos of {info['annotation']}, {each}, after epoch {info['epoch']:g}",
        "scored": _score_values(predictions),
        "failures": _failure_rows([failure._asdict() for failure in predictions.failures]),
    }


def _score_values(predictions: Predictions) -> dict[str, Any] | None:
    """Classes, confusions, calibration and mistakes; None where no video has a label."""
    if not (predictions.labels >= 0).any():
        return None
    scoring = score(predictions)
    found = calibration(scoring)
    return {
        "classes": per_class(scoring),
        "confusion": _confusion_values(scoring),
        "worst_pairs": [[p["class"], p["taken_for"], p["videos"], p["of"]] for p in worst_pairs(scoring)],
        "calibration": {
            "error": found["expected_calibration_error"],
            "figure": calibration_plot(found["bins"]),
            "rows": [
                [f"{b['from']:.2f} to {b['to']:.2f}", b["videos"], f"{b['confidence']:.3f}", f"{b['accuracy']:.3f}"]
                for b in found["bins"]
            ],
        },
        "mistakes": _mistakes(scoring),
    }


def _confusion_values(scoring: Scoring) -> dict[str, Any]:
    """The matrix of all classes that occur, or of the most confused ones where these are many."""
    confusion = confusion_matrix(scoring)
    wrong = confusion - np.diag(np.diag(confusion))
    occurs = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    involved = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:MOST_CLASSES]
    chosen = np.sort(involved) if len(occurs) > MOST_CLASSES else occurs
    return {
        "names": [scoring.classes[k] for k in chosen],
        "counts": confusion[np.ix_(chosen, chosen)].tolist(),
        "totals": confusion[chosen].sum(axis=1).tolist(),
        "of": len(occurs),
    }


def _mistakes(scoring: Scoring) -> list[dict[str, Any]]:
    """The wrong predictions with the highest confidence, with a picture where the video is still there."""
    confidence = scoring.probabilities.max(axis=1)
    wrong = np.flatnonzero(~scoring.right)
    found = []
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]:
        path = scoring.predictions.paths[i] if scoring.predictions.paths else ""
        pictures = thumbnails(path, 1) if path else []
        found.append(
            {
                "id": scoring.predictions.ids[i],
                "class": scoring.classes[scoring.labels[i]],
                "taken_for": scoring.classes[scoring.predicted[i]],
                "rank": int(scoring.ranks[i]) + 1,
                "confidence": float(confidence[i]),
                "picture": pictures[0][1] if pictures else None,
            }
        )
    return found


def _training_summary(training: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Title, value and meaning of what one looks for first."""
    found = []
    explained = {"video_top1": "at the end, views ensembled", "clip_top1": "at the end, each view on its own"}
    for key, meaning in explained.items() if training["validation"] else ():
        share = training["validation"][key]
        value = "–" if share is None else percent(share, 2)
        found.append((f"validation {key.split('_')[0]} top-1", value, meaning))
    if training["best"]:
        best = training["best"]
        found.append(("best video top-1", percent(best["top1"], 2), f"after epoch {best['epoch']}: best.pt"))
    found.append(("training time", duration(training["seconds"]), f"{training['steps']:,} steps"))
    waited = training["data_seconds"] / max(training["data_seconds"] + training["compute_seconds"], 1e-9)
    found.append(("bound by", training["bound_by"], f"{percent(waited, 0)} of the time spent waiting for clips"))
    return found


def _curves(lines: Sequence[dict[str, Any]]) -> list[Any]:
    """Figures of ``metrics.jsonl`` over the epochs."""
    figures = []
    for title, (label, factor, curves) in CURVES.items():
        series = []
        for name, (kind, key) in curves.items():
            values = [(line["epoch"], line.get(key)) for line in lines if line["kind"] == kind]
            points = [(epoch, factor * value) for epoch, value in values if value is not None]
            if points:
                series.append(Series(name, thinned(points, MOST_POINTS), marks=kind == "val"))
        if series:
            figures.append(line_plot(series, title=title, x="epoch", y=label))
    return figures


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most ``most`` points: means over neighbours, equally many for each but the last."""
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _video_values(entry: dict[str, Any], predictor: Predictor | None) -> dict[str, Any]:
    """What the page of predictions shows of one video; attention maps where a predictor is given."""
    video = entry["video"]
    is_file = Path(video).is_file()
    known = {"-": "standard input", **({video: f"camera {video}"} if video.isdecimal() else {})}
    name = Path(video).name or video
    found = {
        "name": name if Path(video).exists() else known.get(video, name),
        "path": video if os.sep in video else "",
        "error": entry["error"],
    }
    if entry["error"] is not None:
        return found
    pictures = thumbnails(video, 16 if "timeline" in entry else 8) if is_file else []
    return {
        **found,
        "predictions": entry["predictions"],
        "seconds": [seconds for seconds, _ in pictures],
        "pictures": [(clock(seconds), address) for seconds, address in pictures],
        "segments": [],
        **(_timeline_values(entry) if "timeline" in entry else {}),
        "overlays": _overlays(entry, predictor) if predictor is not None and pictures else [],
    }


def _timeline_values(entry: dict[str, Any]) -> dict[str, Any]:
    # Shares are in thousandths: CSS growth factors that sum to less than 1 would not fill the line.
    segments, windows = entry["timeline"], entry["windows"]
    return {
        "warning": entry.get("warning"),
        "duration": entry["duration"],
        "segments": [{**s, "share": 1000 * (s["end"] - s["start"]) / entry["duration"]} for s in segments],
        "segment_rows": [
            [number, clock(s["start"]), clock(s["end"]), s["label"], percent(s["score"])]
            for number, s in enumerate(segments, start=1)
        ],
        "slider": {
            "segments": [[s["start"], printable(s["label"])] for s in segments],
            "windows": [[(w["start"] + w["end"]) / 2, _spoken(w["predictions"])] for w in windows],
        },
    }


def _spoken(predictions: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{printable(p['label'])} {percent(p['score'])}" for p in predictions)


def _overlays(entry: dict[str, Any], predictor: Predictor) -> list[dict[str, Any]]:
    """Grad-CAM of the best label and the attention of each block over the frames, then the frames alone."""
    clip = middle_clip(predictor, entry["video"])
    if clip is None:
        return []
    plain, *rows = explain(predictor, clip, label_in_the_middle(entry))
    return [
        {
            "name": name,
            "has_ring": name.endswith(FROM_THE_RING),
            "pictures": [(f"frame {t}", data_uri(frame, height=112)) for t, frame in enumerate(shown, start=1)],
        }
        for name, shown in [*rows, ("the frames alone", plain[1])]
    ]


def _failure_rows(failures: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[failure["id"], failure["path"], failure["reason"]] for failure in failures]


def _config_rows(config: dict[str, Any], prefix: str = "") -> list[list[str]]:
    """Dotted key and value of every field."""
    rows = []
    for key, value in config.items():
        nested = isinstance(value, dict) and bool(value)
        rows += _config_rows(value, f"{prefix}{key}.") if nested else [[f"{prefix}{key}", _plain(value)]]
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return value if isinstance(value, str) else json.dumps(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
