"""Words that the project's prose avoids, with the plain ones. CONTRIBUTING.md asks for plain technical English."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {
    r"answer(s|ed|ing)?": "prediction, predict, result",
    r"(?<!matplotlib )figures?(?! \d)": "metric, number",
    r"number formats?": "dtype, precision",
    r"(go|goes|going|went|gone) on": "resume, continue",
    r"spoil(t|s|ed)?": "corrupted, non-finite",
    r"anew": "again",
    r"by heart": "overfit",
    r"whatever": "any, regardless of",
    r"learnt": "learned",
}
AVOIDED = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in PLAIN), re.IGNORECASE)


def python_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and messages of a Python file: (line, text)."""
    text = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


def markdown_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a Markdown file outside code blocks, without `code`."""
    code = False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield number, re.sub(r"`[^`]*`", "", line)


def yaml_prose(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        yield number, line.partition("#")[2]


READERS = {".py": python_prose, ".md": markdown_prose, ".yaml": yaml_prose}
FILES = sorted(
    path
    for place in ("gcvideo", "configs", "tools", "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    for path in ([ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*"))
    if path.suffix in READERS
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_uses_plain_words(path):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}"
        for number, line in READERS[path.suffix](path)
        for match in AVOIDED.finditer(line)
    ]
    assert not found, "\n".join([*found, "plain words: " + "; ".join(PLAIN.values())])


@pytest.mark.parametrize("line", ["Start anew.", "a run that goes on", "these figures", "what was learnt by heart"])
def test_avoided_words_are_found(line):
    assert AVOIDED.search(line)


@pytest.mark.parametrize("line", ["figure 3 of the paper", "a matplotlib figure", "go one step", "configured"])
def test_other_words_are_allowed(line):
    assert not AVOIDED.search(line)
