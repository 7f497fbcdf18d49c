"""A real headless browser for pages, skipped with the reason where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)


FRAME = """<body><iframe src="{page}" style="border:0;width:{width}px;height:800px"></iframe>
<script>addEventListener("message", (event) => {{ document.body.dataset.outcome = event.data; }});</script></body>"""


def visit(page: Path, profile: Path, script: str = "", *, width: int | None = None) -> tuple[str, list[str]]:
    """Open a page from its file, run a script of the test's own at its end, and wait.

    A browser's window has a least width. For a smaller ``width`` the page stands in a frame; its script cannot reach
    the document around, whose ``data-outcome`` is what ``parent.postMessage(..., "*")`` says.

    Returns:
        the document as it is then, and what the browser's console said.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs a headless browser: none of " + ", ".join(BROWSERS) + " is installed")
    content = page.read_text(encoding="utf-8")
    if script:
        # The page's policy lets no script but its own run; for the visit alone it is told about the test's.
        content = re.sub(r"script-src [^\"]*", "script-src 'unsafe-inline'", content, count=1)
        content = content.replace("</body>", f"<script>{script}</script></body>")
        page = page.with_name(f"visited {page.name}")
        page.write_text(content, encoding="utf-8")
    if width is not None:
        frame = page.with_name(f"frame of {page.name}")
        frame.write_text(FRAME.format(page=page.resolve().as_uri(), width=width), encoding="utf-8")
        page = frame
    command = [browser, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
