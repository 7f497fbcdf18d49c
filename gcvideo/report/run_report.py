"""The report of a run as one page: how the training went, and what the network can do at its end.

Everything on it is read from the files in the run's folder, so it can be written again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gcvideo.config import config_to_dict, load_config
from gcvideo.console import duration
from gcvideo.eval.predictions import Predictions
from gcvideo.report import page
from gcvideo.report.plots import Plot, Series, svg
from gcvideo.report.test_report import config_part, failures_part, scored_parts, test_parts
from gcvideo.train.logger import read_metrics

MOST_POINTS = 200  # of a curve; more are averaged

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


def write_run_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        folder: ``runs/NAME`` of a training that has ended or was stopped. Where ``gcvideo test`` has left its results
            there too, they take the place of the last validation's.

    Returns:
        the page.
    """
    folder = Path(folder)
    config = load_config(folder / "config.yaml")
    results = _read(folder / "results.json")
    training = results.get("training", {})
    parts = [_summary(training), _curves(read_metrics(folder / "metrics.jsonl"))]
    if "answered" in results and (folder / "predictions.npz").exists():
        parts += ["<h2>Test</h2>", *test_parts(results, Predictions.load(folder / "predictions.npz"))]
    elif (folder / "predictions_val.npz").exists():
        predictions = Predictions.load(folder / "predictions_val.npz")
        parts += [_validation(predictions), *scored_parts(predictions)]
        parts.append(failures_part([failure._asdict() for failure in predictions.failures]))
    parts.append(_training(training))
    parts.append(config_part(config_to_dict(config)))
    page.write_page(folder / "report.html", f"Run {config.name}", parts)
    return folder / "report.html"


def _summary(training: dict[str, Any]) -> str:
    """The figures that one looks for first."""
    if not training:
        return "<p>This training has not come to its end: the curves show how far it got.</p>"
    figures = []
    if training["validation"]:
        explained = {"video_top1": "at the end, views together", "clip_top1": "at the end, views each on their own"}
        for key, meaning in explained.items():
            title = f"validation {key.split('_')[0]} top-1"
            share = training["validation"][key]
            figures.append((title, "–" if share is None else page.percent(share, 2), meaning))
    if training["best"]:
        best = training["best"]
        figures.append(("best video top-1", page.percent(best["top1"], 2), f"after epoch {best['epoch']}: best.pt"))
    figures.append(("training time", duration(training["seconds"]), f"{training['steps']:,} steps"))
    waited = training["data_seconds"] / max(training["data_seconds"] + training["compute_seconds"], 1e-9)
    figures.append(("bound by", training["bound_by"], f"{page.percent(waited, 0)} of the time spent waiting for clips"))
    return page.cards(
        f'<div class="whole">{title}</div><div class="figure">{figure}</div><div class="soft">{meaning}</div>'
        for title, figure, meaning in figures
    )


def _curves(lines: Sequence[dict[str, Any]]) -> str:
    """The figures of ``metrics.jsonl`` over the epochs."""
    drawings = []
    for title, (label, factor, curves) in CURVES.items():
        series = []
        for name, (kind, key) in curves.items():
            points = [(line["epoch"], factor * line[key]) for line in lines if line["kind"] == kind and _has(line, key)]
            if points:
                series.append(Series(name, thinned(points, MOST_POINTS), marks=kind == "val"))
        if series:
            drawings.append(svg(Plot(title, "epoch", label, series)))
    return "<h2>Training</h2>" + (page.plots(drawings) if drawings else "<p>Not one step was recorded.</p>")


def _has(line: dict[str, Any], key: str) -> bool:
    return line.get(key) is not None


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: means over neighbours, of equally many each but for the last."""
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _validation(predictions: Predictions) -> str:
    info, views = predictions.info, int(predictions.views.max()) if len(predictions) else 0
    each = f"{views} view{'s' * (views != 1)} each"
    facts = f"{len(predictions)} videos of {info['annotation']}, {each}, after epoch {info['epoch']:g}"
    return f'<h2>Last validation</h2><p class="soft">{page.text(facts)}</p>'


def _training(training: dict[str, Any]) -> str:
    """What the training could not read, and what it ran on."""
    if not training:
        return "<h2>Config</h2>"
    failures = training["failures"]["videos"]
    rows = [[failure["id"], failure["path"], failure["reason"]] for failure in failures]
    unread = f"<h2>Training videos that could not be read ({len(rows)})</h2>" if rows else ""
    versions = [[name, version] for name, version in training["versions"].items()]
    return (
        (unread + page.table(["id", "file", "reason"], rows) if rows else "")
        + "<h2>What it was trained with</h2>"
        + page.table(["software", "version"], versions)
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
