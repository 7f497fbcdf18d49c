"""Output files: whole or not at all, valid JSON, refused before the work where they cannot be written; and journals."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import pytest

from gcvideo.arguments import add_options, require_writable_outputs
from gcvideo.errors import ConfigError
from gcvideo.files import Journal, replacing, write_json


def test_json_holds_no_number_that_json_does_not_know(tmp_path: Path) -> None:
    nan, infinity = float("nan"), float("inf")
    write_json(tmp_path / "a.json", {"a": nan, "b": [1.5, (infinity, -infinity)], "c": {"d": nan, "e": "NaN"}, "f": 3})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": None, "b": [1.5, [None, None]], "c": {"d": None, "e": "NaN"}, "f": 3}


def test_rows_of_numbers_stand_on_one_line(tmp_path: Path) -> None:
    value = {"matrix": [[1, -2.5e-07], [3, 4]], "text": 'a": [ 1,  2 ]', "broken": ["[\n 1,\n  2\n]", None], "none": []}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert "    [1, -2.5e-07],\n    [3, 4]\n" in text


def test_outputs_that_cannot_be_written_are_refused_first(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for name, place, kind in (
        ("json", tmp_path, "file"),
        ("html", file / "a.html", "file"),
        ("csv", file / "b" / "c.csv", "file"),
        ("png", file, "folder"),
    ):
        with pytest.raises(ConfigError, match=f"{place} cannot be written as a {kind}") as error:
            require_writable_outputs(argparse.Namespace(**{name: str(place)}))
        assert str(error.value).startswith(f"--{name}: ")
    # Files and folders that are to be made, options that are not given, and flags are fine.
    good = {"json": str(file), "html": str(tmp_path / "new" / "a.html"), "png": str(tmp_path / "x" / "y"), "csv": None}
    require_writable_outputs(argparse.Namespace(**good, maps=True))


def test_an_output_replaces_no_input_and_no_device(tmp_path: Path) -> None:
    names = {name: tmp_path / name for name in ("list.txt", "video.mp4", "pipe", "out", "new.csv")}
    names["list.txt"].write_text("video.mp4 0")
    names["video.mp4"].write_bytes(b"\0\0\0 ftypisom")
    os.mkfifo(names["pipe"])
    names["out"].symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    before = names["video.mp4"].read_bytes()
    for options, reason in (
        ({"csv": "list.txt", "videos": ["list.txt"]}, "--csv: .*list.txt is named by another argument too"),
        ({"out": "list.txt", "annotation": ["list.txt"]}, "--out: .*list.txt is named by another argument too"),
        ({"csv": "new.csv", "json": "new.csv"}, "--json: .*new.csv is named by another argument too"),
        ({"json_lines": "video.mp4"}, "--json-lines: .*video.mp4 is a video, a checkpoint"),
        ({"json": "pipe"}, "--json: .*pipe cannot be written as a file"),
        ({"json": "out"}, "--json: .*out cannot be written as a file"),
    ):
        values = {
            name: [str(names[v]) for v in value] if isinstance(value, list) else str(names[value])
            for name, value in options.items()
        }
        with pytest.raises(ConfigError, match=reason):
            require_writable_outputs(argparse.Namespace(**values))
    assert names["video.mp4"].read_bytes() == before
    require_writable_outputs(argparse.Namespace(json_lines="-", videos=["-"], csv=str(names["list.txt"])))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission_is_refused_first(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        require_writable_outputs(argparse.Namespace(json=str(tmp_path / "a.json")))


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("benchmark blocks", ["--rounds", "0"], "--rounds: must be at least 1, not 0"),
        ("benchmark blocks", ["--batch", "1", "-2"], "--batch: must be at least 1, not -2"),
        ("predict", ["a.mp4", "b.pt", "--fps", "nan"], r"--fps: must be at least 0\.001"),
    ],
)
def test_numbers_out_of_range_are_refused_by_the_name_of_their_option(
    command: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, command)
    with pytest.raises(ConfigError, match=message):
        parser.parse_args(words)
    with pytest.raises(SystemExit):
        parser.parse_args([*words[:-1], "two"])
    assert re.search("invalid (int|float) value: 'two'", capsys.readouterr().err)


def test_a_full_disk_is_reported_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "last.pt"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "last.pt")
    assert not list(tmp_path.iterdir())


def test_rows_come_back_in_the_next_run(tmp_path):
    journal = Journal(tmp_path / "new folder" / "journal", {"size": 256})
    assert not journal.fits
    journal.add("a", {"ok": 1})
    journal.add("b", {"ok": 2}, stamp=[7, 8])
    again = Journal(tmp_path / "new folder" / "journal", {"size": 256})
    assert again.fits
    assert again.rows() == [{"ok": 1}, {"ok": 2}]
    assert (again.find("a"), again.find("b", [7, 8]), again.find("c")) == ({"ok": 1}, {"ok": 2}, None)
    assert again.find("b", [7, 9]) is None  # the item has changed
    again.forget("a")
    assert again.find("a") is None


def test_a_journal_of_other_work_starts_over(tmp_path):
    journal = Journal(tmp_path / "journal", {"size": 256})
    journal.add("a", {})
    other = Journal(tmp_path / "journal", {"size": 320})
    assert (other.fits, other.rows()) == (False, [])
    other.add("b", {"x": 1})
    assert Journal(tmp_path / "journal", {"size": 320}).rows() == [{"x": 1}]
    (tmp_path / "journal").write_bytes(b"\xff\x00")
    assert Journal(tmp_path / "journal", {"size": 320}).rows() == []


def test_a_line_cut_short_by_a_kill_is_lost_alone(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, {})
    journal.add("a", {"x": 1})
    with path.open("a") as file:
        file.write('\n{"path": "torn')
    journal = Journal(path, {})
    journal.add("b", {"x": 2})
    assert Journal(path, {}).rows() == [{"x": 1}, {"x": 2}]


def test_processes_share_a_journal_and_any_number_of_them_resumes(tmp_path):
    path = tmp_path / "jour[n]al"
    for rank in range(3):
        journal = Journal(path, {}, rank=rank)
        journal.add(str(rank), {"rank": rank})
    assert [row["rank"] for row in Journal(path, {}).rows()] == [0, 1, 2]
    journal = Journal(path, {}, rank=1)
    journal.add("3", {"rank": 1})
    assert len(Journal(path, {}, rank=9).rows()) == 4
    Journal(path, {}).remove()
    assert list(tmp_path.iterdir()) == []
