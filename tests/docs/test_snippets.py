"""Every command and Python snippet of README.md and docs/ runs, on tiny data.

A block that cannot run here is preceded by ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.world import ROOT, Runner, make_world

FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)```", re.DOTALL
)
# Files that a page tells its reader to write: ```python title="my_block.py"
TITLED = re.compile(r'```(?:python|yaml|text) title="(?P<name>[^"]+)"\n(?P<text>.*?)```', re.DOTALL)


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    reason: str | None


def blocks() -> list[Block]:
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match["language"] in ("sh", "bash", "python") and "title=" not in match["info"]:
                line = text.count("\n", 0, match.start()) + 1
                language = "python" if match["language"] == "python" else "sh"
                found.append(Block(page, line, language, match["text"], match["reason"]))
    return found


BLOCKS = [block for block in blocks() if block.reason is None]


def name(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("docs") / "world")


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("runner"))


def link_or_copy(source: str, target: str) -> None:
    """The large files of the world, which no command changes in place, are one for all its copies."""
    (os.link if source.endswith((".pt", ".pyth", ".mp4")) else shutil.copy2)(source, target)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=name)
def test_block_runs(block: Block, world: Path, runner: Runner, tmp_path: Path) -> None:
    place = tmp_path / "world"
    shutil.copytree(world, place, symlinks=True, copy_function=link_or_copy)
    for file in TITLED.finditer(block.page.read_text()):
        (place / file["name"]).write_text(file["text"])
    if block.language == "sh":
        done = runner.shell(block.text, place)
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    else:
        reply = runner.call("python", runner.here(block.text, place), cwd=str(place), env=dict(os.environ))
        assert reply["code"] == 0, f"{block.text}\n{reply['output'][-4000:]}"


def test_blocks_that_are_not_run_say_why() -> None:
    left_out = [block for block in blocks() if block.reason is not None]
    assert all(len(block.reason or "") > 10 for block in left_out)
    assert len(left_out) <= 10
