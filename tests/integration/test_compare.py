"""``gcvideo benchmark compare`` from the command line, on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gcvideo.cli import main
from gcvideo.config import save_config
from gcvideo.eval.predictions import Predictions, VideoScores
from tests.tiny import tiny_checkpoint, tiny_config, tiny_videos
from tests.training import make_videos, train_config

TINY = ["model.depth=18", "model.width=4", "model.num_classes=4", "--frames", "2", "--size", "64", "--rounds", "2"]
SMALL_BLOCKS = ["--block-channels", "8", "--block-frames", "2", "4", "--block-sizes", "4", "6", "--block-at", "2", "4"]


@pytest.mark.slow
def test_one_table_for_all_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, html = tmp_path / "out.json", tmp_path / "page.html"
    networks = ["slow_r34", "slow_r34_nl5", "slow_r34_gc5"]
    sizes = ["--frames", "2", "--size", "64", "--rounds", "2", "--batches", "1", "2", *SMALL_BLOCKS]
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


@pytest.fixture
def tested(tmp_path: Path) -> dict[str, str]:
    """Two networks of one block each: config and checkpoint of both, and six videos."""
    tiny_videos(tmp_path)
    places = {}
    for kind in ("gc", "se"):
        model = {"context": {"kind": kind, "stages": {"res3": "all"}}}
        checkpoint = tiny_checkpoint(tmp_path, model=model)
        places[f"{kind}.pt"] = str(checkpoint.rename(tmp_path / f"{kind}.pt"))
        places[kind] = str(tmp_path / f"{kind}.yaml")
        save_config(tiny_config(tmp_path, model=model), tmp_path / f"{kind}.yaml")
    return places


@pytest.mark.slow
def test_accuracy_of_checkpoints_on_the_same_videos(
    tmp_path: Path, tested: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    command = ["benchmark", "compare", tested["gc"], tested["se"], "--frames", "2", "--size", "64", "--rounds", "2"]
    command += ["--skip", "train", "memory", "throughput", "scaling", "--device", "cpu"]
    command += ["--json", str(out), "--html", str(page), "--png", str(tmp_path / "png")]
    places = ["--checkpoints", tested["gc.pt"], tested["se.pt"], "--data", str(tmp_path / "val.txt")]
    assert main([*command, *places]) == 0
    rows = json.loads(out.read_text())["networks"]
    assert [row["accuracy"]["videos"] for row in rows] == [6, 6]
    assert [row["accuracy"]["views"] for row in rows] == [[6, 6], [6, 6]]
    assert [test["videos"] for test in rows[1]["accuracy"]["mcnemar"]] == [6]
    said = capsys.readouterr().out
    assert "McNemar p" in said
    assert f"2 plots: {tmp_path / 'png'}" in said
    assert page.read_text().count("<svg") == 2  # against multiply-adds and against time


def test_a_video_that_cannot_be_read_is_named(
    tmp_path: Path, tested: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = tmp_path / "broken.txt"
    broken.write_text("broken.mp4 0\n")
    mixed = tmp_path / "mixed.txt"
    mixed.write_text((tmp_path / "val.txt").read_text() + broken.read_text())
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    command = ["benchmark", "compare", tested["gc"], *SKIPPED, "--checkpoints", tested["gc.pt"], "--json", str(out)]
    assert main([*command, "--html", str(page), "--png", str(tmp_path / "png"), "--data", str(mixed)]) == 0
    accuracy = json.loads(out.read_text())["networks"][0]["accuracy"]
    assert accuracy["videos"] == 6
    assert [Path(failure["path"]).name for failure in accuracy["failures"]] == ["broken.mp4"]
    said = capsys.readouterr()
    assert "broken.mp4: " in said.err
    assert "broken.mp4: " in page.read_text()
    assert main([*command, "--data", str(broken)]) == 2
    assert "broken.mp4: " in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_refused_before_anything_is_measured(
    tmp_path: Path, tested: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["benchmark", "compare", tested["gc"], tested["se"], "--device", "cpu"]
    assert main([*command, "--checkpoints", tested["se.pt"], tested["gc.pt"]]) == 2
    said = capsys.readouterr()
    assert "gc: " in said.err
    assert "se.pt holds another network; give the config of that run" in said.err
    assert "forward" not in said.err
    assert main([*command, "--predictions", "none.npz", "none.npz"]) == 2
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


@pytest.mark.slow
def test_each_config_is_trained_and_tested(tmp_path: Path) -> None:
    make_videos(tmp_path)
    files = []
    for kind in ("gc", "se"):
        config = train_config(tmp_path, kind, model={"context": {"kind": kind, "stages": {"res3": "all"}}})
        config.train.epochs, config.optim.warmup_epochs = 1, 0
        save_config(config, tmp_path / f"{kind}.yaml")
        files.append(str(tmp_path / f"{kind}.yaml"))
    out = tmp_path / "out.json"
    command = ["benchmark", "compare", *files, "--train", "--device", "cpu", "--rounds", "1", "--json", str(out)]
    assert main([*command, *SKIPPED]) == 0
    rows = json.loads(out.read_text())["networks"]
    assert [row["accuracy"]["videos"] for row in rows] == [8, 8]
    checkpoint = tmp_path / "runs/se/checkpoints/best.pt"
    written = checkpoint.stat().st_mtime_ns
    assert main([*command, *SKIPPED]) == 0
    assert checkpoint.stat().st_mtime_ns == written, "a finished run is not trained again"
    assert json.loads(out.read_text())["networks"] == rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slow_r5"], "unknown model 'slow_r5'"),
        (["model.width=4"], "give at least one config"),
        (["slow_r18", "--rounds", "0"], "--rounds: must be at least 1"),
        (["slow_r18", "--batches", "4", "0"], "--batches: must be at least 1, not 0"),
        (["slow_r18", "--block-sizes", "1"], "--block-sizes: must be at least 2"),
        (["slow_r18", "model.wide=4"], "model.wid"),
        (["slow_r18", "slow_r34", "--predictions", "a.npz"], "1 places for 2 configs"),
        (["slow_r18", "--size", "16"], "too small"),
        (["slow_r18", "slow_r18", "--train"], "would train in one folder"),
        (["slow_r18", "--train", "--predictions", "a.npz"], "only one of"),
        (["slow_r18", "--data", "a.csv"], "--data: says what --checkpoints or --train are tested on"),
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
