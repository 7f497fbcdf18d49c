"""``gcvideo prepare``, from its arguments to its exit code."""

import json
import shutil

import pytest

from gcvideo.arguments import read_options
from gcvideo.cli import main
from gcvideo.prepare.download import BASE, EDITIONS
from gcvideo.prepare.transcode import PRESETS
from tests.videos import moving_frames, write_video


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    clip = write_video(tmp_path / "videos" / "a.mp4", moving_frames(10))
    shutil.copy(clip, tmp_path / "videos" / "extra.mp4")
    (tmp_path / "videos" / "list.txt").write_text("a.mp4 0\n")
    return tmp_path / "videos"


def test_index_writes_its_lists_and_its_json(videos, capsys):
    assert main(["prepare", "index", str(videos / "list.txt"), "--workers", "1", "--json", str(videos / "j.json")]) == 0
    result = json.loads((videos / "j.json").read_text())
    assert (result["videos"], result["unreadable"], result["missing"]) == (1, 0, 0)
    assert not (videos / "list.missing.txt").exists()
    assert result["fingerprint"] in capsys.readouterr().out


def test_verify_transcode_and_shard_report_what_they_did(videos, tmp_path):
    note = tmp_path / "note.json"
    tail = ["--workers", "1", "--json", str(note)]
    assert main(["prepare", "verify", str(videos / "list.txt"), *tail]) == 0
    assert json.loads(note.read_text())["videos"] == 1
    assert (videos / "list.txt.quarantine.jsonl").read_text() == ""
    out = str(tmp_path / "out")
    assert main(["prepare", "transcode", str(videos), out, "--annotation", str(videos / "list.txt"), *tail]) == 0
    assert json.loads(note.read_text())["clip"]["videos"] == 2
    assert (tmp_path / "out" / "list.txt").read_text() == "path\tstart\tend\tlabel\na.mp4\t\t\t0\n"
    assert main(["prepare", "shard", str(videos / "list.txt"), str(tmp_path / "shards"), *tail]) == 0
    assert json.loads(note.read_text())["videos"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "nowhere.csv"], "no such annotation"),
        (["verify", "nowhere.csv"], "no such annotation"),
        (["transcode", "nowhere", "out"], "no folder of videos"),
        (["transcode", "nowhere"], "give a folder for the copies"),
        (["synthetic", "set", "--val", "0"], "--val: must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_video_that_fails_to_transcode_is_named_and_exits_1(videos, tmp_path, capsys):
    (videos / "bad.mp4").write_bytes(b"nothing")
    assert main(["prepare", "transcode", str(videos), str(tmp_path / "out"), "--workers", "1"]) == 1
    assert f"not transcoded: {videos / 'bad.mp4'}" in capsys.readouterr().err


def test_the_options_know_what_the_tables_have():
    options = read_options()
    assert options["prepare download"]["name"]["choices"] == [*EDITIONS]
    assert options["prepare download"]["--base"]["default"] == BASE
    assert options["prepare transcode"]["--preset"]["choices"] == [*PRESETS]


@pytest.mark.parametrize("option", ["workers", "seconds", "gigabytes"])
def test_numbers_out_of_range_get_one_line(videos, capsys, option):
    assert main(["prepare", "verify", str(videos / "list.txt"), f"--{option}", "-1"]) == 2
    assert f"--{option}: must be at least" in capsys.readouterr().err
