"""Self-contained HTML pages from the jinja2 templates in ``templates/``, and plots: as SVG for pages, or as PNG files.

    plot = line_plot([Series("GC", [(4, 1.0), (64, 16.0)])], title="Cost", x="frames T", y="ms", log=True)
    png(plot, "cost.png")

A page needs no network and no server.

Templates of pages escape every value. Strings are also kept on one line and free of direction characters, so no
label, file name or error message can change the page around it. The content-security policy lets the page run its own
script and nothing else.

Of matplotlib only the object interface is used, never ``pyplot``, so a plot leaves no global state behind. This module
imports jinja2 and matplotlib: import it only where something is drawn.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from gcvideo import console
from gcvideo.config import flatten
from gcvideo.console import clock, duration, percent, printable
from gcvideo.files import replacing, write_atomically
from gcvideo.report.pictures import colour, moving_picture, thumbnails

TEMPLATES = Path(__file__).parent / "templates"

# The colours of Okabe and Ito 2008, which people without colour vision can tell apart too. All are readable on white
# and on black. Markers differ as well, so that series can be told apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#808080")
MARKERS = "osD^vP*"  # 7 for 8 colours: the first 56 series differ in one or the other
INK = "#010203"  # text and axes in STYLE; in an SVG it becomes the text colour of the page, light or dark
STYLE = TEMPLATES / "plots.mplstyle"
LONGEST_NAME = 44  # characters of a name in the legend; the end of a longer one is kept, which tells paths apart


def write_page(path: str | Path, template: str, **values: Any) -> None:
    """Render a template to a file; see ``render``."""
    write_atomically(path, render(template, **values).encode("utf-8"))


def render(template: str, **values: Any) -> str:
    """Render a template.

    Args:
        template: file name in ``templates/``. A page, ``NAME.html.j2``, extends ``base.html.j2``, which needs
            ``title``; ``parts.html.j2`` has macros for tables, bars, cards and pictures.
        values: what the template uses. Plots (matplotlib figures) are drawn by the filter ``svg``. A value
            that is missing is a ``jinja2.UndefinedError``.
    """
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    own = {"style": style, "script": script, "policy": policy}
    return ENVIRONMENT.get_template(template).render({name: Markup(text) for name, text in own.items()}, **values)


def _one_line(value: object) -> object:
    """Every value before it is escaped: strings as they can be shown, on one line."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def text(value: object) -> Markup:
    """Filter: text from outside, isolated so that its direction does not change the text around it."""
    return Markup("<bdi>{}</bdi>").format(printable(str(value)))


def plain(value: object) -> str:
    """Filter: a value of a config or of results as text: strings as they are, dicts as "key value, key value"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return value if isinstance(value, str) else json.dumps(value)


def columns(rows: Sequence[dict[str, object]]) -> dict[str, bool]:
    """Filter: the columns of a table, and whether each holds numbers only, with or without a unit."""
    number = re.compile(r"(-?\d+(\.\d+)?( s| %)?|–)")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: all(number.fullmatch(str(row.get(name, "–"))) for row in rows) for name in names}


def aligned(rows: Sequence[dict[str, object]]) -> Markup:
    """Filter: rows by column name as a table of plain text; a dash for what a row does not have."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_one_line(row.get(name, "–")) for name in names] for row in rows]
    return Markup("\n".join(console.aligned(cells, names)))


class Series(NamedTuple):
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
    label = escape(plot.get_suptitle())
    look = f'role="img" aria-label="{label}" style="width:100%;max-width:{100 * plot.get_figwidth():.0f}px"'
    return re.sub(r'width="[^"]*" height="[^"]*"', lambda _: look, content, count=1)


def png(plot: Figure, path: str | Path) -> None:
    """Write the plot as a PNG file on white, 200 pixels an inch."""
    with replacing(path) as temporary:
        plot.savefig(temporary, format="png", dpi=200, facecolor="white")


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=select_autoescape(["html.j2"]),
    extensions=["jinja2.ext.do"],
    undefined=StrictUndefined,
    finalize=_one_line,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
FILTERS = (aligned, clock, columns, duration, flatten, moving_picture, percent, plain, printable, svg, text, thumbnails)
ENVIRONMENT.filters.update({function.__name__: function for function in FILTERS})
ENVIRONMENT.globals["colours"] = colour(np.linspace(0, 1, 256)).tolist()  # RGB of maps, from 0 to 1
