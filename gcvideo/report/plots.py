"""Line and scatter plots with matplotlib: as SVG for pages, or as PNG files.

    plot = line_plot([Series("GC", [(4, 1.0), (64, 16.0)])], title="Cost", x="frames T", y="ms", log=True)
    png(plot, "cost.png")

Only matplotlib's object interface is used, never ``pyplot``, so a plot leaves no global state behind. This module
imports matplotlib: import it only where something is drawn.
"""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from gcvideo.console import printable
from gcvideo.files import write_atomically

# The colours of Okabe and Ito 2008, which people without colour vision can tell apart too. All are readable on white
# and on black. Markers differ as well, so that series can be told apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#808080")
MARKERS = "osD^vP*"  # 7 for 8 colours: the first 56 series differ in one or the other
INK = "#010203"  # text and axes in STYLE; in an SVG it becomes the text colour of the page, light or dark
STYLE = Path(__file__).parent / "templates" / "plots.mplstyle"
LONGEST_NAME = 44  # characters of a name in the legend; the end of a longer one is kept, which tells paths apart


@dataclass(frozen=True)
class Series:
    """A named series of points.

    Attributes:
        name: shown in the legend.
        points: (x, y) of each point.
        line: join the points by a line.
        marks: draw a marker at each point.
        errors: (low, high) of y for each point, drawn as error bars.
        dots: more (x, y), drawn small and without a line, such as the single runs behind a mean.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    marks: bool = True
    errors: Sequence[tuple[float, float]] | None = None
    dots: Sequence[tuple[float, float]] = ()


@matplotlib.rc_context(fname=STYLE)
def line_plot(series: Sequence[Series], *, title: str, x: str, y: str, log: bool = False) -> Figure:
    """Plot series over common axes.

    Args:
        series: at least one; their colours and markers follow the order.
        title: also the description for screen readers.
        x: label of the x axis.
        y: label of the y axis.
        log: logarithmic axes; all x and y must be positive.
    """
    plot = Figure(figsize=(4.8, 3.3), layout="constrained", facecolor="none")
    plot.suptitle(printable(title), x=0.02, ha="left", weight="bold", size=9)
    axes = plot.subplots()
    names = [printable(one.name) for one in series]
    names = [name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}" for name in names]
    for number, (name, one) in enumerate(zip(names, series, strict=True)):
        colour, line = COLOURS[number % len(COLOURS)], "-" if one.line else "none"
        marker = MARKERS[number % len(MARKERS)] if one.marks else None
        xs, ys = np.transpose(one.points)
        errors = None if one.errors is None else np.abs(np.transpose(one.errors) - ys)  # lengths down and up
        axes.errorbar(xs, ys, yerr=errors, color=colour, label=name, linestyle=line, marker=marker)
        if one.dots:
            axes.plot(*np.transpose(one.dots), ".", color=colour, markersize=4)
    scale = "log" if log else "linear"
    axes.set(xlabel=x, ylabel=y, facecolor="none", xscale=scale, yscale=scale)
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
        if log:  # powers of ten; on a shorter axis 1, 2 and 5 times these; on one of less than a decade round numbers
            if high >= 8 * low:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if [one.name.lower() for one in series] != [title.lower()]:  # a single series named like its plot needs none
        columns = max(1, 54 // (max(map(len, names)) + 7))  # about as many characters fit into a line
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, borderaxespad=0.2)
    return plot


@matplotlib.rc_context(fname=STYLE)
def svg(plot: Figure) -> str:
    """The plot as an SVG element for a page: as wide as there is room, in the text colour of the page."""
    buffer = io.StringIO()
    plot.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    content = buffer.getvalue()
    content = content[content.index("<svg") :].replace(INK, "currentColor")
    content = re.sub(r'(?<=<g) id="[^"]*"', "", content)  # several plots of a page would share these names
    label = html.escape(plot.get_suptitle(), quote=True)
    look = f'role="img" aria-label="{label}" style="width:100%;max-width:{100 * plot.get_figwidth():.0f}px"'
    return re.sub(r'width="[^"]*" height="[^"]*"', lambda _: look, content, count=1)


def png(plot: Figure, path: str | Path) -> None:
    """Write the plot as a PNG file on white, 200 pixels an inch."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=200, facecolor="white")
    write_atomically(path, buffer.getvalue())
