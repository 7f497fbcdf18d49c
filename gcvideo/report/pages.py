"""The pages that people read: reports of tests and runs, predictions of videos, and comparisons of networks.

Each function gathers plain values for one template of ``templates/``, which says how they are shown.
"""

import base64
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gcvideo.config import config_to_dict, load_config
from gcvideo.errors import CheckpointError
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.scoring import details, score, summary, video_row
from gcvideo.files import read_yaml
from gcvideo.predict.predictor import Predictor, load
from gcvideo.report.maps import Explanation, Place, explain_video, map_stems, save_maps
from gcvideo.report.page import Series, line_plot, write_page
from gcvideo.report.pictures import data_uri
from gcvideo.train.logger import read_metrics

MOST_CLASSES = 24  # of a confusion matrix that can be read; of more classes only the most confused ones are shown
MOST_MISTAKES = 12
MOST_POINTS = 200  # of a curve; more are averaged
MOST_MAPS = 20  # videos with attention maps: each adds some 100 kB to the page, and two passes through the network
MOST_CHANGED = 8  # videos of a comparison, each of some 150 kB
AXES = {"frames": (0, "T x {1} x {2}", "frames T"), "size": (1, "{0} x S x S", "height and width S")}

# Title -> "y", "factor" and "curves"; the file says more.
CURVES = read_yaml(__file__, "curves.yaml")


def write_test_report(path: str | Path, results: dict[str, Any], predictions: Predictions) -> None:
    """Write the report of a test: accuracy, classes, confusions, calibration, mistakes, failures, config.

    Args:
        path: of the HTML file.
        results: the content of ``results.json`` of ``gcvideo test``.
        predictions: of the same test.
    """
    write_page(path, "test.html.j2", title="Test report", results=results, scored=score_for_page(predictions))


def write_run_report(folder: str | Path) -> Path:
    """Write the report of a run, ``report.html``, from the files in its folder: curves, accuracy, failures, config.

    Args:
        folder: ``runs/NAME`` of a training, finished or stopped. If ``gcvideo test`` has left its results there, the
            report shows the test instead of the last validation.

    Returns:
        the file.
    """
    folder = Path(folder)
    config, written = load_config(folder / "config.yaml"), folder / "results.json"
    results = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    tested = "answered" in results and (folder / "predictions.npz").exists()
    file = folder / ("predictions.npz" if tested else "predictions_val.npz")
    predictions = Predictions.load(file) if file.exists() else None
    values = {"results": results, "tested": tested, "predictions": predictions, "config": config_to_dict(config)}
    values |= {"scored": score_for_page(predictions) if predictions else None}
    values |= {"curves": list(_curves(read_metrics(folder / "metrics.jsonl")))}
    write_page(folder / "report.html", "run.html.j2", title=f"Run {config.name}", **values)
    return folder / "report.html"


def write_prediction_page(
    path: str | Path, predictor: Predictor, entries: Sequence[dict[str, Any]], *, refresh: int | None = None
) -> None:
    """Write the page of ``gcvideo predict --html``: thumbnails, predictions, timelines, and where the network looked.

    Args:
        path: of the HTML file.
        predictor: made the predictions.
        entries: one for each video, as ``gcvideo predict --json`` writes them: ``video``, ``error``, ``predictions``,
            and with a timeline ``duration``, ``timeline``, ``windows`` and ``warning``.
        refresh: seconds after which the page loads itself again: the page of a live source that is still running.
    """
    videos: list[dict[str, Any]] = []
    for entry in entries:
        shown = entry["error"] is None and len(videos) < MOST_MAPS
        explanation = explain_video(predictor, entry) if shown else None
        videos.append({**entry, "maps": maps_for_page(explanation) if explanation else None})
    values = {"videos": videos, "predictor": predictor, "most_maps": MOST_MAPS, "refresh": refresh}
    write_page(path, "predictions.html.j2", title="Predictions", **values)


def score_for_page(predictions: Predictions) -> dict[str, Any] | None:
    """Classes, confusions, calibration and mistakes, of several labels classes alone; None if no video has a label."""
    if not predictions.known.any() or predictions.multi_label:
        return details(predictions, thresholds=predictions.info.get("thresholds")) or None
    scoring = score(predictions)
    found, confidence = summary(scoring), scoring.probabilities.max(axis=1)
    wrong = np.flatnonzero(~scoring.right)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    points = [(row["confidence"], row["accuracy"]) for row in found["calibration"]["bins"]]
    series = [Series("videos", points), Series("confidence that is right", [(0, 0), (1, 1)], marks=False)]
    plot = line_plot(series, title="Accuracy by confidence", x="mean confidence", y="accuracy")
    mistakes = [video_row(scoring, i) for i in worst]
    confusion = _most_confused(np.array(found["confusion"]), scoring.classes)
    return {**found, "confusion": confusion, "reliability": plot, "mistakes": mistakes}


def _most_confused(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The part of a confusion matrix (K, K) with the classes that occur, or the most confused ones if many do."""
    both = counts.sum(axis=0) + counts.sum(axis=1)
    order = np.lexsort((2 * counts.diagonal() - both, both == 0))
    chosen = np.sort(order[: min(MOST_CLASSES, np.count_nonzero(both))])
    shown = {"names": [classes[k] for k in chosen], "counts": counts[np.ix_(chosen, chosen)].tolist()}
    return {**shown, "totals": counts[chosen].sum(axis=1).tolist(), "of": np.count_nonzero(both)}


def _curves(lines: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """Plots of the lines of ``metrics.jsonl`` over the epochs."""
    for title, plot in CURVES.items():
        series = []
        for name, place in plot["curves"].items():
            kind, key = place.split(".")
            values = [(line["epoch"], line.get(key)) for line in lines if line["kind"] == kind]
            points = [(epoch, plot["factor"] * value) for epoch, value in values if value is not None]
            if points:
                size = -(-len(points) // MOST_POINTS)
                means = [np.mean(points[start : start + size], axis=0) for start in range(0, len(points), size)]
                series.append(Series(name, means, marks=kind == "val"))
        if series:
            yield line_plot(series, title=title, x="epoch", y=plot["y"])


def write_maps(
    folder: str | Path, predictors: Sequence[Predictor], entries: Sequence[dict[str, Any]], *, query: Place
) -> Iterator[Path]:
    """Write the page and the pictures of ``gcvideo predict --maps``.

    Args:
        folder: for the files.
        predictors: whose layers are shown.
        entries: of the videos, as ``gcvideo predict --json`` writes them; those without a prediction are left out.
        query: whose maps of non-local blocks the pictures show, and the page first.

    Yields:
        the path of the page of each video, without ``.html``, as soon as its files are written.
    """
    labelled = [entry for entry in entries if entry["predictions"] and Path(entry["video"]).exists()]
    for entry, stem in zip(labelled, map_stems(folder, [entry["video"] for entry in labelled]), strict=True):
        found = [(each.source, explain_video(each, entry, query=query, all_queries=True)) for each in predictors]
        explained = [(source, explanation) for source, explanation in found if explanation]
        for number, (_, explanation) in enumerate(explained, start=1):
            save_maps(stem if number == 1 else f"{stem}_network{number}", explanation)
        if explained:
            networks = [(source, maps_for_page(explanation)) for source, explanation in explained]
            write_page(f"{stem}.html", "maps.html.j2", title="Where the network looked", entry=entry, networks=networks)
            yield stem


def maps_for_page(explanation: Explanation) -> dict[str, Any]:
    """Frames, names of layers, and what the page's script draws: the maps in bytes, at the blocks' own resolution."""
    frames, layers = explanation.frames, []
    shown = np.linspace(0, len(frames) - 1, min(len(frames), 8)).round().astype(int).tolist()
    for layer in explanation.layers:
        content = (255 * layer.maps.clamp(0, 1)).round().byte().numpy().tobytes()
        maps = base64.b64encode(content).decode()
        layers.append({"name": layer.name, "size": [*layer.maps.shape[1:]], "byQuery": layer.by_query, "maps": maps})
    data = {"query": explanation.query, "grid": explanation.grid, "length": len(frames), "shown": shown}
    return {"pictures": [data_uri(frames[i], height=160) for i in shown], "data": {**data, "layers": layers}}


def write_comparison(
    path: str | Path, results: dict[str, Any], plots: dict[str, Figure], runs: Sequence[str | Path] = ()
) -> None:
    """Write one self-contained page: tables, plots, the videos that networks differ on, and where they look in one.

    Args:
        path: of the HTML file.
        results: what ``gcvideo benchmark compare --json`` writes.
        plots: of ``plots_of``.
        runs: of each network the run whose attention is shown; those without a checkpoint are left out.
    """
    changed = results.get("changed") or {"pairs": [], "videos": []}
    clips: dict[bytes, Explanation] = {}  # networks that see the same clip share its frames
    for network, run in zip(results["networks"], runs if changed["pairs"] else (), strict=False):
        example = {"video": changed["example"]["path"], "predictions": [{"index": changed["example"]["label"]}]}
        with contextlib.suppress(CheckpointError):
            if found := explain_video(load(run), example, all_queries=True):
                clip = found.frames.tobytes()
                clips[clip] = beside(clips.get(clip, found._replace(layers=[])), network["config"], found)
    looks = [maps_for_page(each) for each in clips.values()]
    values = {"results": results, "plots": plots, "changed": changed, "looks": looks, "most": MOST_CHANGED}
    write_page(path, "comparison.html.j2", title="Networks side by side", **values)


def beside(others: Explanation, name: str, own: Explanation) -> Explanation:
    """The layers of a network with those of others that see the same clip: alike ones follow each other.

    Args:
        others: with layers called NETWORK: LAYER.
        name: of the network.
        own: where it looked. Queries move over its maps if it has the grid of the others.
    """
    grid, layers = others.grid or own.grid, [*others.layers]
    for layer in own.layers:
        layers.append(layer._replace(name=f"{name}: {layer.name}", by_query=layer.by_query and own.grid == grid))
    return others._replace(layers=sorted(layers, key=lambda layer: layer.name.partition(": ")[2]), grid=grid)


def plots_of(results: dict[str, Any]) -> dict[str, Figure]:
    """Name -> plot: block cost against T and against H, W; accuracy against cost where there is accuracy."""
    plots = {}
    if results["scaling"]:
        plots = {f"block_{way}": _block_plot(results["scaling"], way) for way in ("frames", "size")}
    tested = [row for row in results["networks"] if row["accuracy"]]
    if tested:
        plots["accuracy_macs"] = _accuracy_plot([(row, row["macs"] / 1e9) for row in tested], "GMAC a clip")
    if timed := [(row, row["forward"]["ratio"]["median"]) for row in tested if row["forward"]]:
        label = f"time of a forward pass over that of {results['networks'][0]['config']}"
        plots["accuracy_forward"] = _accuracy_plot(timed, label)
    return plots


def _accuracy_plot(networks: Sequence[tuple[dict[str, Any], float]], label: str) -> Figure:
    """The mean accuracy of each network with its interval, and its runs if there are several, against its cost."""
    series = []
    for network, cost in networks:
        top1 = network["accuracy"]["video_top1"]
        dots = [(cost, 100 * value) for value in top1["by_run"]] if len(top1["by_run"]) > 1 else []
        ends = [(100 * top1["low"], 100 * top1["high"])]
        series.append(Series(network["config"], [(cost, 100 * top1["value"])], line=False, errors=ends, dots=dots))
    dotted = "; dots: single runs" if any(one.dots for one in series) else ""
    title = f"Accuracy against cost, with 95 % intervals{dotted}"
    return line_plot(series, title=title, x=label, y="video top-1, %")


def _block_plot(scaling: dict[str, Any], way: str) -> Figure:
    """Cost of the blocks against what grows, "frames" or "size"; the exponents are in the legend."""
    grown, positions, label = AXES[way]  # the first is a place in (T, H, W)
    series = []
    for name, line in scaling[way].items():
        points = [(p["shape"][grown], p["ms"]["median"]) for p in line["points"]]
        errors = [(p["ms"]["q1"], p["ms"]["q3"]) for p in line["points"]]
        series.append(Series(f"{name} ~ P^{line['time_exponent']:.2f}", points, errors=errors))
    positions = positions.format(*line["points"][0]["shape"])  # the same for all blocks
    title = f"Forward pass of one block: {scaling['channels']} channels, P = {positions} positions"
    return line_plot(series, title=title, x=label, y="ms", log=True)
