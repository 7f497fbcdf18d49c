"""MkDocs hook: the reference of config fields, made from the docstrings of the config dataclasses."""

from typing import Any

from gcvideo.config.load import reference_markdown


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker of ``docs/config.md`` by the reference."""
    return markdown.replace("<!-- config reference -->", reference_markdown())
