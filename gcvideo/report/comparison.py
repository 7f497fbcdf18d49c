"""Results of ``gcvideo benchmark compare``: tables on the console, and a page with tables and plots."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gcvideo.console import printable
from gcvideo.errors import CheckpointError
from gcvideo.predict.predictor import load
from gcvideo.report.maps import explain_video
from gcvideo.report.page import write_page
from gcvideo.report.pages import maps_for_page
from gcvideo.report.plots import Series, line_plot

MOST_CHANGED = 8  # videos on the page, each of some 150 kB
Row = dict[str, object]  # column -> value; a row that lacks a column of another one shows a dash


def tables_of(results: dict[str, Any]) -> dict[str, list[Row]]:
    """Title -> rows of the tables of cost, accuracy and block scaling, as far as they were measured.

    Args:
        results: what ``gcvideo benchmark compare --json`` writes.
    """
    return {
        "Cost": cost_table(results["networks"]),
        "Accuracy on the same videos, with 95 % intervals": accuracy_table(results["networks"]),
        "One block against the size of its features": exponent_table(results["scaling"] or {}),
    }


def write_comparison(
    path: str | Path, results: dict[str, Any], plots: dict[str, Figure], runs: Sequence[str | Path] = ()
) -> None:
    """Write one self-contained page: tables, plots, the videos that networks differ on, and where they look in one.

    Args:
        path: of the HTML file.
        results: as for ``tables_of``.
        plots: of ``plots_of``.
        runs: of each network the run whose attention is shown; those without a checkpoint are left out.
    """
    changed = results.get("changed") or {"pairs": [], "videos": []}
    looks = []
    for network, run in zip(results["networks"], runs if changed["pairs"] else (), strict=False):
        example = {"video": changed["example"]["path"], "predictions": [{"index": changed["example"]["label"]}]}
        with contextlib.suppress(CheckpointError):
            if found := explain_video(load(run), example, all_queries=True):
                looks.append((network["config"], maps_for_page(found)))
    values: dict[str, Any] = {"results": results, "tables": tables_of(results)}
    values |= {"left_out": left_out_lines(results["networks"]), "plots": plots, "changed": changed, "looks": looks}
    write_page(path, "comparison.html.j2", title="Networks side by side", most=MOST_CHANGED, **values)


def cost_table(networks: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for each network. What was measured for none has no column."""
    rows = []
    for network in networks:
        row: Row = {
            "network": network["config"],
            "input": "×".join(map(str, network["input"][2:])),
            "params (M)": f"{network['params'] / 1e6:.2f}",
            "GMAC": f"{network['macs'] / 1e9:.3f}",
        }
        for kind in ("forward", "train"):
            if times := network[kind]:
                row[f"{kind} ms (quartiles)"] = "{median:.1f} ({q1:.1f}–{q3:.1f})".format(**times["ms_per_clip"])
                row[f"{kind} x first"] = f"{times['ratio']['median']:.2f}"
        row |= {f"MiB {kind}": f"{peak / 2**20:.0f}" for kind, peak in (network["memory"] or {}).items()}
        if rates := network["throughput"]:
            row["clips/s by batch"] = ", ".join(f"{size}: {rate:,.2f}" for size, rate in rates.items())
        rows.append(row)
    return rows


def accuracy_table(networks: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for each network with accuracy."""
    rows = []
    for network in networks:
        if found := network["accuracy"]:
            row: Row = {"network": network["config"], "runs": found["runs"], "videos": found["videos"]}
            row["views"] = "–".join(map(str, sorted(set(found["views"]))))
            for measure in ("clip_top1", "clip_top5", "video_top1", "video_top5"):
                row[measure.replace("_top", " top-")] = _percent(found[measure])
            if "minus_first" in found:
                row["top-1 over first"] = _percent(found["minus_first"], sign="+")
                row["McNemar p"] = ", ".join(f"{test['p_value']:.3g}" for test in found["mcnemar"])
            rows.append(row)
    return rows


def exponent_table(scaling: dict[str, Any]) -> list[Row]:
    """A row for each block and each way of growing."""
    return [
        {
            "block": name,
            "grows with": label,
            "sizes": " to ".join("×".join(map(str, line["points"][end]["shape"])) for end in (0, -1)),
            "ms at the largest": f"{line['points'][-1]['ms']['median']:.2f}",
            "time exponent": f"{line['time_exponent']:.2f}",
            "multiply-adds exponent": f"{line['macs_exponent']:.2f}",
        }
        for way, label in (("frames", "T"), ("size", "H and W"))
        for name, line in scaling.get(way, {}).items()
    ]


def _percent(interval: dict[str, Any], *, sign: str = "") -> str:
    value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
    spread = f" ± {100 * interval['sd']:.1f}" if interval.get("sd") is not None else ""
    return f"{value:{sign}.1f}{spread} ({low:{sign}.1f} to {high:{sign}.1f})"


def left_out_lines(networks: Sequence[dict[str, Any]]) -> list[str]:
    """What the accuracies leave out: videos that could not be read, and those that not all networks have."""
    lines = []
    for network in networks:
        name, found = network["config"], network["accuracy"] or {"failures": [], "left_out": 0}
        lines += [f"{name}: {failure['path'] or failure['id']}: {failure['reason']}" for failure in found["failures"]]
        if found["left_out"]:
            lines.append(f"{name}: {found['left_out']} videos are left out because not all networks have them")
    return [printable(line) for line in lines]


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
    grown = {"frames": 0, "size": 1}[way]  # place in (T, H, W)
    series = []
    for name, line in scaling[way].items():
        points = [(p["shape"][grown], p["ms"]["median"]) for p in line["points"]]
        errors = [(p["ms"]["q1"], p["ms"]["q3"]) for p in line["points"]]
        series.append(Series(f"{name} ~ P^{line['time_exponent']:.2f}", points, errors=errors))
    frames, size, _ = line["points"][0]["shape"]  # the same for all blocks
    positions = f"T x {size} x {size}" if way == "frames" else f"{frames} x S x S"
    title = f"Forward pass of one block: {scaling['channels']} channels, P = {positions} positions"
    label = "frames T" if way == "frames" else "height and width S"
    return line_plot(series, title=title, x=label, y="ms", log=True)
