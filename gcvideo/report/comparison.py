"""The page of ``gcvideo benchmark compare``, and its plots."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gcvideo.errors import CheckpointError
from gcvideo.predict.predictor import load
from gcvideo.report.maps import Explanation, explain_video
from gcvideo.report.page import write_page
from gcvideo.report.pages import maps_for_page
from gcvideo.report.plots import Series, line_plot

MOST_CHANGED = 8  # videos on the page, each of some 150 kB
AXES = {"frames": (0, "T x {1} x {2}", "frames T"), "size": (1, "{0} x S x S", "height and width S")}


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
