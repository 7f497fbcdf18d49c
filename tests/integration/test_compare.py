"""``gcvideo benchmark compare`` from the command line, on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gcvideo.benchmark import compare
from gcvideo.cli import main
from gcvideo.config import load_config, save_config
from gcvideo.data.records import Failure
from gcvideo.eval.predictions import Predictions, VideoScores

TINY = ["model.depth=18", "model.width=4", "model.num_classes=4", "--frames", "2", "--size", "64", "--rounds", "2"]


@pytest.mark.slow
def test_one_table_for_all_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "CHANNELS", 8)
    monkeypatch.setattr(compare, "GROWING", {"frames": [(2, 4, 4), (4, 4, 4)], "size": [(2, 4, 4), (2, 6, 6)]})
    out, html = tmp_path / "out.json", tmp_path / "page.html"
    networks = ["slow_r34", "slow_r34_nl5", "slow_r34_gc5"]
    sizes = ["--frames", "2", "--size", "64", "--rounds", "2", "--batches", "1", "2"]
    command = [
        "benchmark",
        "compare",
        *networks,
        "model.width=4",
        *sizes,
        "--device",
        "cpu",
        "--threads",
        "1",
        "--skip",
        "memory",
    ]
    assert main([*command, "--json", str(out), "--html", str(html), "--png", str(tmp_path / "png")]) == 0
    found = json.loads(out.read_text())
    rows = {row["config"]: row for row in found["networks"]}
    assert list(rows) == networks
    assert rows["slow_r34"]["params"] < rows["slow_r34_gc5"]["params"] < rows["slow_r34_nl5"]["params"]
    assert rows["slow_r34"]["macs"] < rows["slow_r34_gc5"]["macs"] < rows["slow_r34_nl5"]["macs"]
    for row in rows.values():
        assert row["input"] == [1, 3, 2, 64, 64]
        assert row["memory"] is None
        for kind in ("forward", "train"):
            assert set(row[kind]) == {"ms_per_clip", "ratio"}
        assert set(row["throughput"]) == {"1", "2"}
    assert rows["slow_r34"]["forward"]["ratio"]["median"] == 1
    assert found["clock"] == "process_time", "one thread: CPU time"
    assert [point["shape"] for point in found["scaling"]["size"]["GC"]["points"]] == [[2, 4, 4], [2, 6, 6]]
    page = html.read_text()
    assert page.count("<svg") == 2
    assert "://" not in page.replace("http://www.w3.org", ""), "nothing is fetched from anywhere"
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["block_frames.png", "block_size.png"]
    assert "slow_r34_nl5" in capsys.readouterr().out


SKIPPED = ["--skip", "forward", "train", "memory", "throughput", "scaling", "--device", "cpu"]


def test_accuracy_is_in_the_table_the_page_and_the_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = np.array([0.9, 0.1], np.float32)
    videos = [VideoScores(i, f"v{i}", 0, 1, True, 1, *[scores] * 3) for i in range(6)]
    lost = Failure("broken", "broken.mp4", "cannot be opened")
    for name, failures in (("gc", [lost]), ("se", [])):
        Predictions.collect(videos, failures=failures).save(tmp_path / f"{name}.npz")
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    command = ["benchmark", "compare", "slow_r18", "slow_r18_gc_c345", *TINY, "--device", "cpu", "--json", str(out)]
    command += ["--skip", "train", "memory", "throughput", "scaling", "--html", str(page)]
    places = [str(tmp_path / f"{name}.npz") for name in ("gc", "se")]
    assert main([*command, "--png", str(tmp_path / "png"), "--predictions", *places]) == 0
    rows = json.loads(out.read_text())["networks"]
    assert [row["accuracy"]["videos"] for row in rows] == [6, 6]
    assert [test["videos"] for test in rows[1]["accuracy"]["mcnemar"]] == [6]
    said = capsys.readouterr()
    assert "McNemar p" in said.out
    assert f"2 plots: {tmp_path / 'png'}" in said.out
    assert page.read_text().count("<svg") == 2  # against multiply-adds and against time
    assert "broken.mp4: " in said.out
    assert "broken.mp4: " in page.read_text()


def test_predictions_are_read_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "compare", "slow_r18", *TINY, "--device", "cpu", "--predictions", "none.npz"]) == 2
    said = capsys.readouterr()
    assert "none.npz" in said.err
    assert "forward" not in said.err


def test_runs_of_one_config_with_other_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From run folders and from files; a mean over both, one McNemar test for each."""
    scores = {True: np.array([0.9, 0.1], np.float32), False: np.array([0.1, 0.9], np.float32)}
    for name, right in (("plain_0", 4), ("plain_1", 2), ("gc_0", 6), ("gc_1", 5)):
        videos = [VideoScores(i, f"v{i}", 0, 1, i < right, 1, *[scores[i < right]] * 3) for i in range(8)]
        (tmp_path / name).mkdir()
        Predictions.collect(videos).save(tmp_path / name / "predictions.npz")
    plain, gc = (",".join(str(tmp_path / f"{name}_{seed}") for seed in (0, 1)) for name in ("plain", "gc"))
    gc = gc.replace("gc_1", "gc_1/predictions.npz")
    out = tmp_path / "out.json"
    command = ["benchmark", "compare", "slow_r18", "slow_r18_gc_c345", *TINY, "--device", "cpu", "--json", str(out)]
    assert main([*command, *SKIPPED, "--predictions", plain, gc]) == 0
    first, second = (row["accuracy"] for row in json.loads(out.read_text())["networks"])
    assert first["video_top1"]["by_run"] == [0.5, 0.25]
    assert second["video_top1"]["by_run"] == [0.75, 0.625]
    assert second["minus_first"]["value"] == pytest.approx(0.6875 - 0.375)
    assert [test["only_second_right"] for test in second["mcnemar"]] == [2, 3]
    assert "68.8 ± 8.8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slow_r5"], "unknown model 'slow_r5'"),
        (["model.width=4"], "give at least one config"),
        (["slow_r18", "--quick"], "--quick: trains the networks of a --preset"),
        (["slow_r18", "--preset", "paper", "--quick"], "takes no configs"),
        (["slow_r18", "--rounds", "0"], "--rounds: must be at least 1"),
        (["slow_r18", "--batches", "4", "0"], "--batches: must be at least 1, not 0"),
        (["slow_r18", "model.wide=4"], "model.wid"),
        (["slow_r18", "slow_r34", "--predictions", "a.npz"], "1 places for 2 configs"),
        (["slow_r18", "--size", "16"], "too small"),
        (["slow_r18", "--json", "/"], "--json: / cannot be written as a file"),
        (["slow_r18", "--html", f"{__file__}/page.html"], "page.html cannot be written"),
        (["slow_r18", "--png", __file__], "test_compare.py cannot be written as a folder"),
    ],
)
def test_a_wrong_command_gets_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["benchmark", "compare", *arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_runs_of_another_config_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("quick/plain.yaml", ["train.epochs=2"])
    config.run_dir.mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")
    assert main(["benchmark", "compare", "--preset", "paper", "--quick", "--device", "cpu", "--threads", "1"]) == 2
    assert "quick_plain: holds a run of another config; remove it" in capsys.readouterr().err.splitlines()[-1]
