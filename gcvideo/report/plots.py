"""Line and scatter plots, once laid out and then drawn as SVG for a page or as PNG, without a plotting library."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gcvideo.report.pictures import save_picture

# Okabe and Ito's colours, told apart without colour vision too; each series has its own marker besides.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#5C5C5C")
MARKERS = ("circle", "square", "diamond", "triangle")
WIDTH, HEIGHT = 480, 320
RIGHT, BOTTOM, TITLE = 16, 48, 14  # margins of the axes' box, and where the title stands; the legend is between them
FONT, LETTER, ROW = 13, 7.5, 20  # size of letters, about the width of one, and the height of a line
LONGEST_NAME = 34  # letters in the legend; of longer names the end, which tells paths apart


@dataclass(frozen=True)
class Series:
    """Points of one name, with a mark on each if ``marks`` and joined by a line if ``line``.

    ``errors`` are (low, high) of y for each point; ``dots`` are further points, small and without a line, such as the
    single runs behind a mean.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    marks: bool = True
    errors: Sequence[tuple[float, float]] | None = None
    dots: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Plot:
    """A plot; axes with ``log`` need positive values. ``x_ticks``: where to put marks; by default round numbers."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = field(default_factory=tuple)
    log_x: bool = False
    log_y: bool = False
    x_ticks: Sequence[float] | None = None


class _Text(NamedTuple):
    x: float
    y: float
    text: str
    anchor: str = "m"  # l, m, r
    turned: bool = False
    bold: bool = False


class _Line(NamedTuple):
    points: list[tuple[float, float]]
    colour: str  # "axis", "grid" or a hexadecimal colour
    width: float = 1.0


class _Marker(NamedTuple):
    x: float
    y: float
    shape: str
    colour: str
    size: float = 4.0


_Element = _Text | _Line | _Marker


class _Axis:
    """Values to places between ``start`` and ``end``, and the ticks: on a linear axis at most ``most`` intervals."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool, most: int) -> None:
        self.log, self.start, self.end, self.most = log, start, end, most
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        size = 1.0 if log else max(abs(low), abs(high))
        if high - low <= 1e-4 * size:  # as good as one value: the numbers beside the marks have six digits
            around = 0.5 if log else max(size / 2, 0.5)
            low, high = low - around, high + around
        room = 0.06 * (high - low)
        self.low, self.high = low - room, high + room

    def place(self, value: float) -> float:
        position = math.log10(value) if self.log else value
        return self.start + (position - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return _round_numbers(self.low, self.high, self.most)
        steps = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]
        # Values close together, such as 0.115 to 0.124, have no two of these between them.
        return ticks if len(ticks) > 1 else _round_numbers(10**self.low, 10**self.high, self.most)


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, at most ``most`` steps: always several."""
    rough = (high - low) / most
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def svg(plot: Plot) -> str:
    """Inline SVG; text and axes take the colour of the page around it."""
    parts = []
    for element in _layout(plot):
        if isinstance(element, _Text):
            anchor = {"l": "start", "m": "middle", "r": "end"}[element.anchor]
            turn = f' transform="rotate(-90 {element.x:.1f} {element.y:.1f})"' if element.turned else ""
            weight = ' font-weight="600"' if element.bold else ""
            parts.append(
                f'<text x="{element.x:.1f}" y="{element.y:.1f}" text-anchor="{anchor}" dominant-baseline="central"'
                f"{weight}{turn}>{html.escape(element.text)}</text>"
            )
        elif isinstance(element, _Line):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in element.points)
            stroke = {"axis": "currentColor", "grid": "currentColor"}.get(element.colour, element.colour)
            faint = ' stroke-opacity="0.15"' if element.colour == "grid" else ""
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="{element.width:g}"{faint}/>'
            )
        else:
            parts.append(_svg_marker(element))
    label = html.escape(plot.title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" style="max-width:{WIDTH}px;width:100%" '
        f'font-size="{FONT}" font-family="system-ui, sans-serif" fill="currentColor">{"".join(parts)}</svg>'
    )


def save_png(path: str | Path, plot: Plot, *, scale: int = 2) -> None:
    """The same plot as PNG on white, ``scale`` pixels a unit."""
    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=FONT * scale)
    for element in _layout(plot):
        if isinstance(element, _Text):
            place = (element.x * scale, element.y * scale)
            if element.turned:
                _draw_turned(image, element.text, place, font)
            else:
                draw.text(place, element.text, fill="black", font=font, anchor=f"{element.anchor}m")
        elif isinstance(element, _Line):
            colour = {"axis": "black", "grid": "#dddddd"}.get(element.colour, element.colour)
            draw.line([(x * scale, y * scale) for x, y in element.points], colour, max(1, round(element.width * scale)))
        else:
            outline = [(x * scale, y * scale) for x, y in _outline(element)]
            draw.polygon(outline, fill=element.colour)
    save_picture(path, np.asarray(image))


def _draw_turned(image: Image.Image, text: str, place: tuple[float, float], font: Any) -> None:
    """Text that reads upwards, centred on a place."""
    box = font.getbbox(text)
    label = Image.new("RGB", (math.ceil(box[2]) + 4, math.ceil(box[3]) + 4), "white")
    ImageDraw.Draw(label).text((2, 2), text, fill="black", font=font)
    turned = label.rotate(90, expand=True)
    image.paste(turned, (round(place[0] - turned.width / 2), round(place[1] - turned.height / 2)))


def _layout(plot: Plot) -> list[_Element]:
    """All that is to be drawn, in units of the SVG's view box."""
    values = [point for series in plot.series for point in (*series.points, *series.dots)]
    if not values:
        raise ValueError(f"{plot.title}: nothing to plot")
    heights = [y for _, y in values]
    heights += [end for series in plot.series for error in series.errors or () for end in error]
    legend, top = _legend(plot)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    y_axis = _Axis(heights, bottom, top, log=plot.log_y, most=8)
    left = 34 + LETTER * max(len(_number(tick)) for tick in y_axis.ticks())
    x_axis = _Axis([x for x, _ in values], left, right, log=plot.log_x, most=5)
    elements: list[_Element] = [_Text(RIGHT, TITLE, plot.title, "l", bold=True)]
    for tick in plot.x_ticks or x_axis.ticks():
        x = x_axis.place(tick)
        elements += [_Line([(x, top), (x, bottom)], "grid"), _Text(x, bottom + 14, _number(tick))]
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        elements += [_Line([(left, y), (right, y)], "grid"), _Text(left - 7, y, _number(tick), "r")]
    elements += [
        _Line([(left, top), (left, bottom), (right, bottom)], "axis"),
        _Text((left + right) / 2, HEIGHT - 12, plot.x_label),
        _Text(14, (top + bottom) / 2, plot.y_label, turned=True),
    ]
    for number, series in enumerate(plot.series):
        colour, shape = _look(number)
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in series.points]
        if series.line and len(places) > 1:
            elements.append(_Line(places, colour, 1.8))
        for (x, _), (low, high) in zip(places, series.errors or (), strict=bool(series.errors)):
            elements.append(_Line([(x, y_axis.place(low)), (x, y_axis.place(high))], colour, 1.2))
        elements += [_Marker(x_axis.place(x), y_axis.place(y), "circle", colour, 2.2) for x, y in series.dots]
        if series.marks:
            elements += [_Marker(x, y, shape, colour) for x, y in places]
    return elements + legend


def _legend(plot: Plot) -> tuple[list[_Element], float]:
    """Names and marks of the series in as many lines as they need, and where the box below them begins.

    A single series that is named like the plot has none.
    """
    if [series.name.lower() for series in plot.series] == [plot.title.lower()]:
        return [], TITLE + ROW
    elements: list[_Element] = []
    x, y = float(RIGHT), float(TITLE + ROW)
    for number, series in enumerate(plot.series):
        name = _end_of(series.name)
        width = 30 + LETTER * len(name)
        if x > RIGHT and x + width > WIDTH:
            x, y = RIGHT, y + ROW
        colour, shape = _look(number)
        elements += [_Marker(x + 5, y, shape, colour), _Text(x + 16, y, name, "l")]
        x += width
    return elements, y + ROW


def _look(number: int) -> tuple[str, str]:
    """Colour and marker of a series."""
    turn = number // len(COLOURS)  # another marker when the colours begin anew
    return COLOURS[number % len(COLOURS)], MARKERS[(number + turn) % len(MARKERS)]


def _end_of(name: str) -> str:
    """A name as the legend has room for it."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _outline(marker: _Marker) -> list[tuple[float, float]]:
    """Corners of a marker; a circle has many."""
    x, y, r = marker.x, marker.y, marker.size
    if marker.shape == "square":
        return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
    if marker.shape == "diamond":
        return [(x, y - 1.4 * r), (x + 1.4 * r, y), (x, y + 1.4 * r), (x - 1.4 * r, y)]
    if marker.shape == "triangle":
        return [(x, y - 1.3 * r), (x + 1.2 * r, y + r), (x - 1.2 * r, y + r)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 24)]


def _svg_marker(marker: _Marker) -> str:
    if marker.shape == "circle":
        return f'<circle cx="{marker.x:.1f}" cy="{marker.y:.1f}" r="{marker.size:g}" fill="{marker.colour}"/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _outline(marker))
    return f'<polygon points="{points}" fill="{marker.colour}"/>'


def _number(value: float) -> str:
    """A tick's value: plain up to 99,999, else in k, M or G."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor and (factor > 1e3 or abs(value) >= 1e4):
            return f"{value / factor:g}{suffix}"
    return f"{round(value, 10):g}"
