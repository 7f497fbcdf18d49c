"""Self-contained HTML pages from the jinja2 templates in ``templates/``: no network, no server.

Templates of pages escape every value. Strings are also kept on one line and free of direction characters, so no
label, file name or error message can change the page around it. The content-security policy lets the page run its own
script and nothing else.

This module imports jinja2 and matplotlib: import it only where something is drawn.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from gcvideo import console
from gcvideo.config import flatten
from gcvideo.console import clock, duration, percent, printable
from gcvideo.files import write_atomically
from gcvideo.report.pictures import colour, moving_picture, thumbnails
from gcvideo.report.plots import svg

TEMPLATES = Path(__file__).parent / "templates"


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
