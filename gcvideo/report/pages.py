"""The pages that people read: the report of a test, the report of a run, and the predictions of videos.

Each function gathers plain values for one template of ``templates/``, which says how they are shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gcvideo.analysis.statistics import Scoring, calibration, confusion_matrix, per_class, score, worst_pairs
from gcvideo.config import config_to_dict, load_config
from gcvideo.console import printable
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.predictor import Predictor
from gcvideo.report.maps import FROM_THE_RING, explain, label_in_the_middle, middle_clip
from gcvideo.report.page import percent, plain, write_page
from gcvideo.report.pictures import data_uri, scale_in_css, thumbnails
from gcvideo.report.plots import Series, calibration_plot, line_plot
from gcvideo.train.logger import read_metrics

MOST_CLASSES = 24  # of a confusion matrix that can be read; of more classes only the most confused ones are shown
MOST_MISTAKES = 12
MOST_POINTS = 200  # of a curve; more are averaged
MOST_MAPS = 20  # videos with attention maps: each adds some 100 kB to the page, and two passes through the network

# Title -> label of y, its factor, and the curves: name -> kind of the lines in metrics.jsonl and their key.
CURVES = {
    "Loss": ("cross-entropy", 1, {"training": "train.loss"}),
    "Accuracy": (
        "top-1, %",
        100,
        {"training clips": "train.top1", "validation clips": "val.clip_top1", "validation videos": "val.video_top1"},
    ),
    "Learning rate": ("", 1, {"learning rate": "train.lr"}),
    "Time of a step": ("ms", 1000, {"waiting for clips": "train.data_seconds", "computing": "train.compute_seconds"}),
}


def write_test_report(path: str | Path, results: dict[str, Any], predictions: Predictions) -> None:
    """Write the report of a test: accuracy, classes, confusions, calibration, mistakes, failures, config.

    Args:
        path: of the HTML file.
        results: the content of ``results.json`` of ``gcvideo test``.
        predictions: of the same test.
    """
    config = _flat(results.get("config", {}))
    write_page(path, "test.html.j2", title="Test report", results=results, scored=_score(predictions), config=config)


def write_run_report(folder: str | Path) -> Path:
    """Write the report of a run, ``report.html``, from the files in its folder: curves, accuracy, failures, config.

    Args:
        folder: ``runs/NAME`` of a training, finished or stopped. If ``gcvideo test`` has left its results there, the
            report shows the test instead of the last validation.

    Returns:
        the file.
    """
    folder = Path(folder)
    config = load_config(folder / "config.yaml")
    results = _read_json(folder / "results.json")
    tested = "answered" in results and (folder / "predictions.npz").exists()
    file = folder / ("predictions.npz" if tested else "predictions_val.npz")
    predictions = Predictions.load(file) if file.exists() else None
    write_page(
        folder / "report.html",
        "run.html.j2",
        title=f"Run {config.name}",
        training=results.get("training"),
        curves=_curves(read_metrics(folder / "metrics.jsonl")),
        tested=tested,
        results=results,
        predictions=predictions,
        scored=_score(predictions) if predictions else None,
        config=_flat(config_to_dict(config)),
        tested_config=_flat(results.get("config", {})),
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
        video: dict[str, Any] = {"entry": entry, "name": _name(entry["video"])}
        if entry["error"] is None:
            labelled += 1
            is_file = Path(entry["video"]).is_file()
            video["pictures"] = thumbnails(entry["video"], 16 if "timeline" in entry else 8) if is_file else []
            video["slider"] = _slider(entry) if "timeline" in entry else None
            video["maps"] = _maps(entry, predictor) if video["pictures"] and labelled <= MOST_MAPS else []
        videos.append(video)
    write_page(
        path,
        "predictions.html.j2",
        title="Predictions",
        videos=videos,
        labelled=labelled,
        checkpoint=predictor.source,
        most_maps=MOST_MAPS,
        ring=FROM_THE_RING,
        scale=scale_in_css(),
    )


def _score(predictions: Predictions) -> dict[str, Any] | None:
    """Classes, confusions, calibration and mistakes; None if no video has a label."""
    if not (predictions.labels >= 0).any():
        return None
    scoring = score(predictions)
    found = calibration(scoring)
    return {
        "classes": per_class(scoring),
        "confusion": _confusion(scoring),
        "worst_pairs": worst_pairs(scoring),
        "calibration": found,
        "reliability": calibration_plot(found["bins"]),
        "mistakes": _mistakes(scoring),
    }


def _confusion(scoring: Scoring) -> dict[str, Any]:
    """The matrix of all classes that occur, or of the most confused ones if these are many."""
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
    """The wrong predictions with the highest confidence, with a picture if the video is still there."""
    confidence = scoring.probabilities.max(axis=1)
    wrong = np.flatnonzero(~scoring.right)
    found = []
    for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES].tolist():
        path = scoring.predictions.paths[i] if scoring.predictions.paths else ""
        mistake = {"id": scoring.predictions.ids[i], "rank": scoring.ranks[i] + 1, "confidence": confidence[i]}
        mistake["class"] = scoring.classes[scoring.labels[i]]
        mistake["taken_for"] = scoring.classes[scoring.predicted[i]]
        mistake["pictures"] = thumbnails(path, 1) if path else []
        found.append(mistake)
    return found


def _curves(lines: Sequence[dict[str, Any]]) -> list[Figure]:
    """Plots of the lines of ``metrics.jsonl`` over the epochs."""
    figures = []
    for title, (label, factor, curves) in CURVES.items():
        series = []
        for name, place in curves.items():
            kind, key = place.split(".")
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
    groups = [np.mean(points[start : start + size], axis=0) for start in range(0, len(points), size)]
    return [(float(x), float(y)) for x, y in groups]


def _name(video: str) -> str:
    """What is shown as the name of a file, a camera or standard input, as they are given to ``gcvideo predict``."""
    if not Path(video).exists() and (video == "-" or video.isdecimal()):
        return "standard input" if video == "-" else f"camera {video}"
    return Path(video).name or video


def _slider(entry: dict[str, Any]) -> dict[str, Any]:
    """What the page's script needs of a timeline: [start, label] of segments, [middle, text] of windows."""
    windows = []
    for window in entry["windows"]:
        said = ", ".join(f"{printable(p['label'])} {percent(p['score'])}" for p in window["predictions"])
        windows.append([(window["start"] + window["end"]) / 2, said])
    return {"segments": [[s["start"], printable(s["label"])] for s in entry["timeline"]], "windows": windows}


def _maps(entry: dict[str, Any], predictor: Predictor) -> list[tuple[str, list[str]]]:
    """Name and pictures of Grad-CAM of the best label and the attention of each block, then of the frames alone."""
    clip = middle_clip(predictor, entry["video"])
    if clip is None:
        return []
    (_, frames), *rows = explain(predictor, clip, label_in_the_middle(entry))
    rows.append(("the frames alone", frames))
    return [(name, [data_uri(frame, height=112) for frame in shown]) for name, shown in rows]


def _flat(config: dict[str, Any], prefix: str = "") -> list[list[str]]:
    """Dotted key and value of every field of a config."""
    rows = []
    for key, value in config.items():
        nested = isinstance(value, dict) and bool(value)
        rows += _flat(value, f"{prefix}{key}.") if nested else [[f"{prefix}{key}", plain(value)]]
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
