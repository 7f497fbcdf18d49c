"""The results of ``gcvideo benchmark compare``: tables on the console, and a page with tables and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcvideo import console
from gcvideo.report.page import write_page
from gcvideo.report.plots import Series, line_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COST_COLUMNS = [
    "network",
    "input",
    "params (M)",
    "GMAC",
    "forward ms (quartiles)",
    "x first",
    "train ms (quartiles)",
    "x first",
    "MiB inference",
    "MiB train",
    "clips/s by batch",
]
ACCURACY_COLUMNS = [
    "network",
    "runs",
    "videos",
    "views",
    "clip top-1",
    "clip top-5",
    "video top-1",
    "video top-5",
    "top-1 over first",
    "McNemar p",
]
TIME_NOTE = (
    "Times are of one clip: median and quartiles over the rounds, in CPU time where one CPU thread computes. Networks "
    "alternate; ratios are to the first network in the same round. Forward is what a test runs (batch norms folded), "
    "train is the trainer's whole step."
)
MEMORY_NOTE = (
    "Memory is the peak with weights; on a CPU the growth of a fresh process, on a GPU what torch has allocated."
)
ACCURACY_NOTE = (
    "Mean ± standard deviation over runs, if there are several; in brackets 95 % intervals of the mean by bootstrap "
    "over videos; McNemar's exact test, run by run against the first network."
)
SCALING_NOTE = (
    "Forward pass of one block alone; on a CPU one thread, CPU time. Exponent b of cost ~ positions^b: least squares "
    "over the sizes of at least an eighth of the largest. NL (embedded Gaussian) runs in PyTorch's fused attention and "
    "sub-samples its keys 2 x 2. Exponents stay below 1 (GC) and 2 (NL) where fixed costs and NL's "
    "linear maps weigh."
)


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    for number, part in enumerate(_parts(results)):
        if number:
            console.say()
        console.table(part["rows"], columns=part["columns"], title=part["title"] or None)
        for note in part["notes"]:
            console.say(note)
        for line in part["warnings"]:
            console.warn(line)


def write_comparison(path: str | Path, results: dict[str, Any], plots: dict[str, Figure]) -> None:
    """Write the tables and plots as one self-contained page."""
    title = "Networks side by side"
    write_page(
        path, "comparison", title=title, machine=results["machine"], parts=_parts(results), figures=list(plots.values())
    )


def _parts(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A table each for cost, accuracy and scaling, with its notes; without those that were not measured."""
    networks = results["networks"]
    columns, rows = cost_table(networks)
    notes = [TIME_NOTE] if any(row["forward"] or row["train"] for row in networks) else []
    notes += [MEMORY_NOTE] if any(row["memory"] for row in networks) else []
    parts: list[dict[str, Any]] = [{"title": "", "columns": columns, "rows": rows, "notes": notes, "warnings": []}]
    if any(row["accuracy"] for row in networks):
        parts.append(
            {
                "title": "Accuracy on the same videos",
                "columns": ACCURACY_COLUMNS,
                "rows": accuracy_rows(networks),
                "notes": [ACCURACY_NOTE],
                "warnings": left_out_lines(networks),
            }
        )
    if results["scaling"]:
        parts.append(
            {
                "title": "One block against the size of its features",
                "columns": EXPONENT_COLUMNS,
                "rows": exponent_rows(results["scaling"]),
                "notes": [SCALING_NOTE],
                "warnings": [],
            }
        )
    return parts


def cost_table(networks: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """Columns, and a line a network; parts that were skipped have no column."""
    rows = _cost_rows(networks)
    kept = [i for i in range(len(COST_COLUMNS)) if any(row[i] != "–" for row in rows)]
    return [COST_COLUMNS[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _cost_rows(networks: Sequence[dict[str, Any]]) -> list[list[object]]:
    """A line a network with all columns; a dash for what was not measured."""
    rows: list[list[object]] = []
    for row in networks:
        memory = row["memory"] or {}
        rates = (row["throughput"] or {}).items()
        rows.append(
            [
                row["config"],
                "×".join(map(str, row["input"][2:])),
                f"{row['params'] / 1e6:.2f}",
                f"{row['macs'] / 1e9:.3f}",
                *_time_cells(row["forward"]),
                *_time_cells(row["train"]),
                *(f"{memory[kind] / 2**20:.0f}" if memory.get(kind) else "–" for kind in ("inference", "train")),
                ", ".join(f"{size}: {rate:.3g}" if rate < 1000 else f"{size}: {rate:,.0f}" for size, rate in rates)
                or "–",
            ]
        )
    return rows


def _time_cells(times: dict[str, Any] | None) -> list[str]:
    if times is None:
        return ["–", "–"]
    ms, ratio = times["ms_per_clip"], times["ratio"]
    digits = 1 if ms["q3"] < 1000 else 0
    low, middle, high = (f"{ms[name]:.{digits}f}" for name in ("q1", "median", "q3"))
    return [f"{middle} ({low}–{high})", f"{ratio['median']:.2f}"]


def accuracy_rows(networks: Sequence[dict[str, Any]]) -> list[list[object]]:
    """A line a network with accuracy."""
    rows: list[list[object]] = []
    for row in networks:
        found = row["accuracy"]
        if found is None:
            continue
        minus = found.get("minus_first")
        measures = [_percent(found[name]) for name in ("clip_top1", "clip_top5", "video_top1", "video_top5")]
        difference = _percent(minus, sign="+") if minus else "–"
        tests = ", ".join(f"{test['p_value']:.3g}" for test in found.get("mcnemar", [])) or "–"
        views = "–".join(map(str, sorted(set(found["views"]))))
        rows.append([row["config"], found["runs"], found["videos"], views, *measures, difference, tests])
    return rows


def left_out_lines(networks: Sequence[dict[str, Any]]) -> list[str]:
    """What the accuracies leave out: videos that could not be read, and answers that not all networks have."""
    lines = []
    for row in networks:
        found = row["accuracy"] or {}
        for failure in found.get("failures", []):
            place = console.printable(failure["path"] or failure["id"])
            lines.append(f"{row['config']}: {place}: {console.printable(failure['reason'])}")
        if found.get("left_out"):
            lines.append(f"{row['config']}: {found['left_out']} videos are left out that not all networks answered")
    return lines


def _percent(interval: dict[str, Any], *, sign: str = "") -> str:
    value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
    deviation = interval.get("sd")
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{value:{sign}.1f}{spread} ({low:{sign}.1f} to {high:{sign}.1f})"


EXPONENT_COLUMNS = ["block", "grows with", "sizes", "ms at the largest", "time exponent", "multiply-adds exponent"]


def exponent_rows(scaling: dict[str, Any]) -> list[list[object]]:
    """A line for each block and each way of growing."""
    rows: list[list[object]] = []
    for way, label in (("frames", "T"), ("size", "H and W")):
        for name, line in scaling[way].items():
            first, last = line["points"][0], line["points"][-1]
            sizes = " to ".join("×".join(map(str, point["shape"])) for point in (first, last))
            exponents = [_exponent(line[key]) for key in ("time_exponent", "macs_exponent")]
            rows.append([name, label, sizes, f"{last['ms']['median']:.2f}", *exponents])
    return rows


def _exponent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def plots_of(results: dict[str, Any]) -> dict[str, Figure]:
    """Name -> figure: block cost against T and against H, W; accuracy against cost where there is accuracy."""
    plots = {}
    if results["scaling"]:
        plots = {f"block_{way}": _block_plot(results["scaling"], way) for way in ("frames", "size")}
    answered = [row for row in results["networks"] if row["accuracy"]]
    first = results["networks"][0]["config"] if answered else ""
    costs = {"macs": ("GMAC a clip", _gmac), "forward": (f"time of a forward pass over that of {first}", _ratio)}
    for name, (label, cost_of) in costs.items():
        series = [_accuracy_series(row, cost_of(row)) for row in answered if not math.isnan(cost_of(row))]
        if series:
            dots = "; dots: single runs" if any(of.dots for of in series) else ""
            title = f"Accuracy against cost, with 95 % intervals{dots}"
            plots[f"accuracy_{name}"] = line_plot(series, title=title, x=label, y="video top-1, %")
    return plots


def _accuracy_series(row: dict[str, Any], cost: float) -> Series:
    """A network's mean with its interval, and its runs if there are several."""
    top1 = row["accuracy"]["video_top1"]
    runs = [(cost, 100 * value) for value in top1["by_run"]] if len(top1["by_run"]) > 1 else []
    ends = [(100 * top1["low"], 100 * top1["high"])]
    return Series(row["config"], [(cost, 100 * top1["value"])], line=False, errors=ends, dots=runs)


def _block_plot(scaling: dict[str, Any], way: str) -> Figure:
    """Cost of the blocks against what grows, "frames" or "size"; the exponents stand in the legend."""
    grown = {"frames": 0, "size": 1}[way]  # place in (T, H, W)
    series = []
    for name, line in scaling[way].items():
        points = [(p["shape"][grown], p["ms"]["median"]) for p in line["points"]]
        errors = [(p["ms"]["q1"], p["ms"]["q3"]) for p in line["points"]]
        exponent = line["time_exponent"]
        law = "" if exponent is None else f" ~ P^{exponent:.2f}"
        series.append(Series(f"{name}{law}", points, errors=errors))
    frames, size, _ = line["points"][0]["shape"]  # the same for all blocks
    positions = f"T x {size} x {size}" if way == "frames" else f"{frames} x S x S"
    title = f"Forward pass of one block: {scaling['channels']} channels, P = {positions} positions"
    label = "frames T" if way == "frames" else "height and width S"
    ticks = [x for x, _ in points]
    return line_plot(series, title=title, x=label, y="ms", log_x=True, log_y=True, x_ticks=ticks)


def _gmac(row: dict[str, Any]) -> float:
    return row["macs"] / 1e9


def _ratio(row: dict[str, Any]) -> float:
    return row["forward"]["ratio"]["median"] if row["forward"] else math.nan
