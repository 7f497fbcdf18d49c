"""One self-contained HTML page: no network, no server, everything escaped.

The pieces here are shared by the page of predictions and the report of a test. Each returns HTML; only ``text`` turns
what comes from outside (labels, file names, reasons) into HTML, and everything from outside goes through it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.console import printable
from gcvideo.errors import VideoError
from gcvideo.files import write_atomically
from gcvideo.report.pictures import data_uri
from gcvideo.video.reader import open_video

ASSETS = Path(__file__).parent


def write_page(path: str | Path, title: str, parts: Sequence[str]) -> None:
    """Write a page. Its policy lets the one script of ours run, and nothing else, whatever got into the text."""
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(printable(title))}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>{text(title)}</h1>
{"".join(parts)}
<script>{script}</script>
</body>
</html>
"""
    write_atomically(path, page.encode("utf-8"))


def text(value: object) -> str:
    """Anything from outside as HTML: escaped, on one line, and kept from reversing the text around it."""
    return f"<bdi>{html.escape(printable(str(value)))}</bdi>"


def breakable(value: object) -> str:
    """The same for the name of a file: where it must be broken, then after a slash, dot, dash or underscore."""
    inside = text(value).removeprefix("<bdi>").removesuffix("</bdi>")
    return "<bdi>" + re.sub(r"(?<=[/_.-])(?=\w)", "<wbr>", inside) + "</bdi>"


def percent(share: float, digits: int = 1) -> str:
    """A fraction in [0, 1] for reading."""
    return f"{100 * share:.{digits}f} %"


def bars(rows: Sequence[dict[str, Any]], *, list_id: str = "") -> str:
    """Labelled bars. Each row has ``name``, ``share`` in [0, 1], and maybe ``note`` and ``sort`` (data attributes)."""
    items = []
    for row in rows:
        sort = "".join(f' data-{key}="{value}"' for key, value in row.get("sort", {}).items())
        note = f'<span class="note soft">{row["note"]}</span>' if row.get("note") else ""
        items.append(
            f'<li{sort}><span>{text(row["name"])}</span><span class="track"><span class="fill" '
            f'style="width:{100 * row["share"]:.2f}%"></span></span>'
            f'<span class="number">{percent(row["share"])}</span>{note}</li>'
        )
    identity = f' id="{list_id}"' if list_id else ""
    noted = " noted" if any(row.get("note") for row in rows) else ""
    return f'<ul class="bars{noted}"{identity}>{"".join(items)}</ul>'


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; columns of numbers, also those with a unit, to the right."""
    places = range(len(columns))
    numbers = [all(re.fullmatch(r"(-?\d+(\.\d+)?( s| %)?|–)", str(row[i])) for row in rows) for i in places]
    side = [" class=count" if number else "" for number in numbers]
    head = "".join(f'<th scope="col"{side[i]}>{text(columns[i])}</th>' for i in places)
    body = "".join(f"<tr>{''.join(f'<td{side[i]}>{text(row[i])}</td>' for i in places)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cards(parts: Iterable[str]) -> str:
    """Cards side by side, as many as fit."""
    return '<div class="cards">' + "".join(f'<div class="card">{part}</div>' for part in parts) + "</div>"


def plots(drawings: Iterable[str]) -> str:
    """Drawings (SVG) in cards wide enough to be read, two side by side where they fit."""
    return '<div class="plots">' + "".join(f'<div class="card">{drawing}</div>' for drawing in drawings) + "</div>"


def strip(pictures: Sequence[tuple[str, str]], *, seconds: Sequence[float] | None = None) -> str:
    """Pictures in a row: caption (also what a screen reader says) and ``data:`` address of each."""
    figures = []
    for i, (caption, address) in enumerate(pictures):
        moment = f' data-seconds="{seconds[i]:.3f}"' if seconds is not None else ""
        label = html.escape(printable(caption), quote=True)
        figures.append(
            f'<figure{moment}><img src="{address}" alt="{label}"><figcaption>{text(caption)}</figcaption></figure>'
        )
    return f'<div class="strip">{"".join(figures)}</div>'


def embedded(value: Any, element_id: str) -> str:
    """Data for the script. ``<`` is escaped, so that no label can end the element."""
    content = json.dumps(_shown(value)).replace("<", "\\u003c")
    return f'<script type="application/json" id="{element_id}">{content}</script>'


def thumbnails(path: str, count: int, *, height: int = 120) -> list[tuple[float, str]]:
    """Pictures spread over a video, as seconds and ``data:`` addresses; none where it cannot be read any more."""
    try:
        with open_video(path) as video:
            places = ((np.arange(count) + 0.5) * len(video) / count).astype(int)
            unique = np.unique(np.minimum(places, len(video) - 1))
            times = video.pts[unique] - video.pts[0]
            frames = [video.frames([index])[0] for index in unique]  # one at a time: 4K frames are large
        return [(float(time), data_uri(frame, height=height)) for time, frame in zip(times, frames, strict=True)]
    except VideoError:
        return []


def _shown(value: Any) -> Any:
    """The same value with all its strings as they can be shown."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list) else value
