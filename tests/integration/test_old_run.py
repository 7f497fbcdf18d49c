"""The run that version 0.1.0 left in ``tests/data/run_0_1`` is read, tested, and goes on with the present version."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gcvideo
from gcvideo.cli import main
from gcvideo.config import config_to_dict, load_config
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.train.trainer import Trainer
from tests.golden import STOP_AT, exact_videos
from tests.old_run import STORED, clip_scores


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder holds a copy of the run and its videos, made anew."""
    monkeypatch.chdir(tmp_path)
    exact_videos(Path("videos"))
    return Path(shutil.copytree(STORED, "runs/run_0_1"))


def test_it_names_no_place_on_a_machine() -> None:
    config = config_to_dict(load_config(STORED / "config.yaml"))
    for values in (config, load_checkpoint(STORED / "checkpoints" / "last.pt")["config"]):
        assert values["output"] == "runs"
        assert values["data"]["train"]["annotation"] == "videos/val.txt"
    for name in ("config.yaml", "results.json", "metrics.jsonl"):
        text = (STORED / name).read_text()
        assert not any(place in text for place in ("/home", "/tmp", "/root", "/work")), name


def test_its_config_resolves_to_that_of_its_checkpoint() -> None:
    config = load_config(STORED / "config.yaml")
    stored = load_checkpoint(STORED / "checkpoints" / "last.pt")["config"]
    now = config_to_dict(config)

    def known(now: Any, stored: Any) -> Any:  # later versions may have more keys
        if not isinstance(stored, dict):
            return now
        return {key: known(now[key], value) for key, value in stored.items()}

    for section, values in stored.items():
        assert known(now[section], values) == values, section


def test_its_checkpoint_answers_as_it_did(tmp_path: Path) -> None:
    assert gcvideo.load(STORED / "checkpoints" / "last.pt", device="cpu").config.name == "run_0_1"
    scores = clip_scores(STORED / "checkpoints" / "last.pt", tmp_path)
    assert scores == pytest.approx(json.loads((STORED / "scores.json").read_text()), abs=1e-4)


def test_its_predictions_are_scored_again(tmp_path: Path) -> None:
    stored = json.loads((STORED / "results.json").read_text())
    again = tmp_path / "again.json"
    assert main(["test", "--from-predictions", str(STORED / "predictions.npz"), "--json", str(again)]) == 0
    results = json.loads(again.read_text())
    for key in ("clip", "video", "video_of_all", "ensemble", "videos", "answered", "views", "checkpoint"):
        assert results[key] == stored[key], key


def test_its_results_are_averaged_with_those_of_other_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = json.loads((STORED / "results.json").read_text())
    for split, top1 in enumerate((0.5, 0.6, 0.75), start=1):
        results = {**stored, "annotation": f"testlist0{split}.txt", "video": {"top1": top1, "top5": 0.9}}
        (tmp_path / str(split)).mkdir()
        (tmp_path / str(split) / "results.json").write_text(json.dumps(results))
    runs = [str(tmp_path / name) for name in ("1", "2", "3/results.json")]
    assert main(["test", "--mean", *runs, "--json", str(tmp_path / "mean.json")]) == 0
    mean = json.loads((tmp_path / "mean.json").read_text())
    assert (mean["mean"]["top1"], mean["mean"]["top5"]) == (pytest.approx(0.185 / 0.3), pytest.approx(0.9))
    assert (mean["sd"]["top1"], mean["sd"]["top5"]) == (pytest.approx(0.125831, abs=1e-6), pytest.approx(0))
    shown = capsys.readouterr().out
    assert "testlist02.txt" in shown
    assert "61.67 %" in shown
    (tmp_path / "other.json").write_text(json.dumps({**stored, "protocol": "1 clips x 1 crops of 32"}))
    (tmp_path / "training.json").write_text('{"training": {}}')
    for arguments, message in [
        ([runs[0]], "--mean: give at least two runs, each once"),
        ([runs[0], runs[1], runs[0]], "--mean: give at least two runs, each once"),
        ([runs[0], str(tmp_path / "other.json")], "was tested by 1 clips x 1 crops of 32, softmax, but"),
        ([*runs, "--html", str(tmp_path / "mean.html")], "--html: is the page of one test"),
        ([runs[0], str(tmp_path / "training.json")], "training.json: holds no results of a test; run gcvideo test"),
    ]:
        assert main(["test", "--mean", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_test_of_it_gives_its_predictions(run: Path, tmp_path: Path) -> None:
    assert main(["test", str(run), "--output", str(tmp_path / "test")]) == 0
    with np.load(STORED / "predictions.npz") as old, np.load(tmp_path / "test" / "predictions.npz") as new:
        assert old["ids"].tolist() == new["ids"].tolist()
        assert old["paths"].tolist() == new["paths"].tolist()
        for name in ("scores", "softmax", "logits", "max"):
            np.testing.assert_allclose(new[name], old[name], atol=1e-4)
    results = json.loads((tmp_path / "test" / "results.json").read_text())
    assert results["fingerprint"] == json.loads((STORED / "results.json").read_text())["fingerprint"]


def test_it_goes_on_to_the_end(run: Path) -> None:
    before = (run / "metrics.jsonl").read_text().splitlines()
    Trainer(load_config(run / "config.yaml")).fit(resume=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[: len(before)] == [json.loads(line) for line in before]
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 2 * STOP_AT + 1))
    assert all(math.isfinite(line["loss"]) for line in train)
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == 2 * STOP_AT
    log = (run / "train.log").read_text()
    assert "resuming from runs/run_0_1/checkpoints/last.pt: epoch 2, step 3" in log
    assert "fingerprint of the training videos" not in log
