"""Plots: points at their places, text that stays text, readable axes, SVG and PNG."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from gcvideo.report.page import COLOURS, INK, Series, line_plot, png, svg

SERIES = [
    Series("GC", [(4, 1.0), (64, 16.0)], dots=[(8, 1.5), (8, 2.5)]),
    Series("NL $x$", [(4, 2.0), (64, 500.0)], errors=[(1.5, 3.0), (400.0, 600.0)]),
]


def test_points_error_bars_and_dots_are_drawn_as_given() -> None:
    axes = line_plot(SERIES, title="Cost", x="T", y="ms", log=True).axes[0]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "log", "T", "ms")
    first, second = axes.containers
    assert first[0].get_xydata().tolist() == [[4, 1], [64, 16]]
    (bars,) = second[2]
    np.testing.assert_allclose(bars.get_segments(), [[(4, 1.5), (4, 3)], [(64, 400), (64, 600)]])
    (dots,) = [line for line in axes.lines if line.get_marker() == "."]
    assert dots.get_xydata().tolist() == [[8, 1.5], [8, 2.5]]


def test_lines_and_marks_can_be_left_out() -> None:
    series = [Series("a", [(1, 1), (2, 2)], line=False), Series("b", [(1, 1), (2, 2)], marks=False)]
    points, line = (container[0] for container in line_plot(series, title="", x="", y="").axes[0].containers)
    assert (points.get_linestyle(), points.get_marker()) == ("None", "o")
    assert (line.get_linestyle(), line.get_marker()) == ("-", "None")


def test_svg_is_one_element_in_the_colour_of_the_page_and_its_text_is_escaped() -> None:
    figure = line_plot(SERIES, title='Cost "<of>" blocks\n', x="T & more", y="ms")
    content = svg(figure)
    root = ElementTree.fromstring(content)
    texts = {element.text for element in root.iterfind(".//{*}text")}
    assert {'Cost "<of>" blocks\\n', "T & more", "ms", "GC", "NL $x$"} <= texts
    assert root.get("aria-label") == 'Cost "<of>" blocks\\n'
    assert INK not in content
    assert "currentColor" in content
    assert content == svg(figure), "the same plot gives the same file"


def test_a_series_named_like_its_plot_needs_no_legend() -> None:
    alone = line_plot([Series("learning rate", [(0, 1.0), (1, 0.5)])], title="Learning rate", x="epoch", y="")
    assert alone.axes[0].get_legend() is None
    assert line_plot([Series("training", [(0, 1.0)])], title="Loss", x="", y="").axes[0].get_legend() is not None


def test_a_long_name_is_shortened_to_its_end() -> None:
    path = "configs/kinetics400/of_a_very_long_name/slow_r50_gc_c345_8x8.yaml"
    figure = line_plot([Series(path, [(1, 1)]), Series("b", [(1, 1)])], title="", x="", y="")
    shown = figure.axes[0].get_legend_handles_labels()[1][0]
    assert shown.startswith("…")
    assert path.endswith(shown[1:])


def test_the_legend_is_inside_the_figure_and_above_the_axes() -> None:
    names = [f"validation {what}" for what in ("clips", "videos", "frames", "views", "batches")]
    figure = line_plot([Series(name, [(4, 1.0), (5, 2.0)]) for name in names], title="Title", x="x", y="y")
    figure.draw_without_rendering()
    legend, axes = figure.axes[0].get_legend().get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.x1 < figure.bbox.width
    assert axes.y1 <= legend.y0
    assert legend.y1 < figure.bbox.height
    assert axes.height > 0.3 * figure.bbox.height


def test_no_two_of_many_series_look_alike() -> None:
    series = [Series(f"network {i}", [(1, 1), (2, 2)]) for i in range(3 * len(COLOURS))]
    lines = [container[0] for container in line_plot(series, title="", x="", y="").axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(series)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("low", "high"),
    # Between 0.115 and 0.124 there is no 1, 2 or 5 times a power of ten, between 0.19 and 0.3 only one.
    [(0.115, 0.124), (0.19, 0.3), (0.9, 1.1), (3.0, 3.0), (2.0, 5.0), (6e4, 8e4), (1.0, 1e9)],
)
def test_every_axis_has_ticks_to_read_it_by(low: float, high: float, log: bool) -> None:
    figure = line_plot([Series("", [(low, low), (high, high)])], title="", x="", y="", log=log)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for axis, (start, end) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        texts = [
            label.get_text()
            for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            if start <= place <= end
        ]
        assert 2 <= len(set(texts)) == len(texts) < 12
        assert not any("$" in text for text in texts)


def test_png_shows_the_colours_of_its_series_on_white(tmp_path: Path) -> None:
    png(line_plot(SERIES, title="Cost", x="", y=""), tmp_path / "plot.png")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB"))
    assert (pixels[0, 0] == 255).all()
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels.reshape(-1, 3) == colour).all(axis=1).sum() > 100
