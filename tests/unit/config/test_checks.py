"""Dotted paths: what they resolve to, and what each mistake is told."""

import json
import sys

import pytest

from gcvideo.config import import_object, is_path
from gcvideo.errors import ConfigError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory; modules imported from it are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_installed_module_is_found():
    assert import_object("json:dumps", key="model.arch") is json.dumps
    assert import_object("json:JSONDecoder.decode", key="model.arch") is json.JSONDecoder.decode


def test_a_module_of_the_current_directory_is_found(folder):
    (folder / "own_blocks_a.py").write_text("class CBAM: pass\n")
    assert import_object("own_blocks_a:CBAM", key="model.context.kind").__name__ == "CBAM"


def test_a_current_module_shadows_no_installed_one(folder):
    (folder / "json.py").write_text("dumps = None\n")
    assert import_object("json:dumps", key="model.arch") is json.dumps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CBAM", "write module:name"),
        ("own:", "write module:name"),
        (":CBAM", "write module:name"),
        ("absent_module:CBAM", "No module named 'absent_module'; install it, run from its folder"),
        ("json.absent:CBAM", "No module named 'json.absent'; install it, run from its folder"),
        ("json:zzzzz", "module 'json' has no attribute 'zzzzz'"),
        (".json:dumps", "ValueError: invalid format"),
        ("own_needs:x", "No module named 'absent_module'; install it"),
        ("own_broken:x", "ZeroDivisionError: division by zero"),
        ("own_syntax:x", "SyntaxError"),
    ],
)
def test_errors_name_the_key_and_the_fix(folder, text, expected):
    (folder / "own_needs.py").write_text("import absent_module\n")
    (folder / "own_broken.py").write_text("1 / 0\n")
    (folder / "own_syntax.py").write_text("def\n")
    with pytest.raises(ConfigError) as caught:
        import_object(text, key="model.context.kind")
    message = str(caught.value)
    assert message.startswith("model.context.kind: ")
    assert expected in message
    assert "\n" not in message


def test_paths_are_told_from_kinds():
    assert is_path("own:CBAM")
    assert not is_path("gc")
