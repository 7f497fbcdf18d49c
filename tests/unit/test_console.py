"""Lines, tables and progress, as a terminal-less job sees them."""

import re
from pathlib import Path

import pytest

from gcvideo import console
from gcvideo.errors import DataError


def test_say_prints_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with console.log_to(tmp_path / "train.log"):
        console.say("hello")
        console.warn("odd")
    console.say("after")
    assert capsys.readouterr().out == "hello\nafter\n"
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line[21:] for line in lines] == ["hello", "warning: odd"]


def test_the_error_that_ends_a_log_is_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(DataError), console.log_to(tmp_path / "train.log"):
        raise DataError("list.txt: lists no videos")
    assert (tmp_path / "train.log").read_text().endswith("  error: list.txt: lists no videos\n")


def test_only_rank_zero_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    console.say("hello")
    with console.Progress("train", total=2, every=0) as progress:
        progress.advance(1)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_progress_is_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Progress("train", total=40, unit="clips", every=0) as progress:
        progress.advance(10, loss=2.30259, lr=0.1)
        progress.advance(10, loss=2.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"train 10/40 clips \(25 %\)  \S+ clips/s  ETA \S+ s  loss 2.303  lr 0.1", lines[0])
    assert lines[1].endswith("loss 2  lr 0.1")
    assert "took" in lines[2]


def test_sparing_prints_few_lines_of_progress_and_logs_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_last_shown", -1e18)
    with console.log_to(tmp_path / "train.log"), console.sparing(1e9):
        console.say("initial weights")
        console.warn("odd")
        for number in range(3):
            with console.Progress(f"epoch {number}", total=1) as progress:
                progress.advance()
    console.say("after")
    captured = capsys.readouterr()
    assert (captured.out, [line[:7] for line in captured.err.splitlines()]) == ("after\n", ["warning", "epoch 0"])
    log = [line[21:28] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert log == ["initial", "warning", "epoch 0", "epoch 1", "epoch 2"]


def test_progress_rate_leaves_out_what_an_earlier_run_did() -> None:
    progress = console.Progress("train", total=100, start=90, every=1e9)
    progress.advance(1)
    assert progress.done == 91
    progress._began -= 10  # ten seconds ago
    assert progress.rate < 0.2


def test_table_aligns_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    console.table([("plain", 5.0), ("gc", 12.25)], columns=("net", "ms"), title="Steps")
    assert capsys.readouterr().out.splitlines() == [
        "Steps",
        "net       ms",
        "-----  -----",
        "plain      5",
        "gc     12.25",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(8.34, "8.3 s"), (185, "3:05"), (8049, "2:14:09")])
def test_duration(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_a_job_of_unknown_length_that_did_nothing_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.Progress("windows", unit="windows"):
        pass
    assert capsys.readouterr().err == ""
    with console.Progress("windows", unit="windows") as progress:
        progress.advance()
    assert capsys.readouterr().err.startswith("windows 1 windows")
