"""Several labels a video: a tiny set trains, tests and predicts, and everything that is made of it says so."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gcvideo
from gcvideo.cli import main
from gcvideo.config import RunConfig
from gcvideo.eval.predictions import Predictions
from gcvideo.predict.ensemble import Ensemble
from gcvideo.train.checkpoint import load_checkpoint
from tests.tiny import tiny_checkpoint
from tests.training import metrics, run_train, train_config
from tests.videos import write_video

COLOURS = ("blue", "green", "red")


def paint(folder: Path, count: int) -> Path:
    """``list.txt``: videos of bars in red, green and blue, one, two, all or none of them, and as many labels each."""
    rng = np.random.default_rng(count)
    lines = ["path\tlabels\n"]
    for i in range(count):
        frames = rng.integers(0, 60, (8, 48, 48, 3), dtype=np.uint8)
        shown = [k for k in range(3) if (i >> k) & 1]
        for k in shown:
            frames[:, 16 * k : 16 * k + 12, :, 2 - k] = 230
        write_video(folder / f"{i}.mp4", frames)
        lines.append(f"{i}.mp4\t{','.join(COLOURS[k] for k in shown)}\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder


def config_for(folder: Path, name: str = "several", **sections: Any) -> RunConfig:
    values: dict[str, dict[str, Any]] = {
        "model": {"arch": "tests.own_parts:tiny_net", "options": {"width": 8}, "num_classes": 3, "multi_label": True},
        "data": {"stride": 1, **{split: {"annotation": str(folder / "list.txt")} for split in ("train", "val")}},
        "test": {"clips": 2, "crops": 1},
        "optim": {"optimizer": "adamw", "lr": 0.02, "warmup_epochs": 0, "nesterov": False},
        "train": {"epochs": 8, "batch_size": 8, "val_every": 4, "label_smoothing": 0.02},
    }
    values["model"]["context"] = {"kind": "none", "stages": {}}
    values["data"]["augment"] = {"clips_per_video": 4, "mixup": 0.2, "mix_chance": 0.2}
    return train_config(folder, name, **{key: values[key] | sections.get(key, {}) for key in values})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("several"), 8)


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A finished and tested run."""
    config = config_for(place)
    assert run_train(config) == 0
    assert main(["test", str(config.run_dir), "--html", str(place / "test.html")]) == 0
    return config.run_dir


@pytest.mark.slow
def test_a_set_of_several_labels_is_learned(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["video"]["chance"] == pytest.approx(0.5)
    assert results["video"]["mAP"] > 0.9
    assert "clip" not in results
    assert [row["class"] for row in results["per_class"]] == list(COLOURS)
    assert np.mean([row["ap"] for row in results["per_class"]]) == pytest.approx(results["video"]["mAP"])
    training = results["training"]
    assert training["best"]["mAP"] == max(line["mAP"] for line in metrics(config_for(place), "val"))
    log = (run / "train.log").read_text()
    assert re.search(r"epoch 8: mAP [\d.]+ % of 8 videos \(scores at random reach an mAP of 50.00 %", log)
    assert "top-1" not in log
    best = load_checkpoint(run / "checkpoints" / "best.pt")
    assert results["thresholds"] == best["details"]["thresholds"]
    for page in (run / "report.html", place / "test.html"):
        text = page.read_text()
        assert "<h2>Confusions" not in text
        assert "<h2>Calibration" not in text
        assert f"{100 * results['video']['mAP']:.2f} %" in text
    predictions = Predictions.load(run / "predictions.npz")
    assert predictions.labels.dtype == np.int8
    assert predictions.labels.tolist() == [[(i >> k) & 1 for k in range(3)] for i in range(8)]
    assert predictions.scores.sum(axis=1).max() > 1.5  # no softmax


@pytest.mark.slow
def test_labels_above_their_thresholds_are_the_prediction(run: Path, place: Path, tmp_path: Path) -> None:
    videos = [str(place / f"{i}.mp4") for i in range(8)]
    files = {kind: tmp_path / f"labels.{kind}" for kind in ("csv", "json", "html")}
    options = [option for kind, file in files.items() for option in (f"--{kind}", str(file))]
    assert main(["predict", *videos, "--checkpoint", str(run), *options]) == 0
    tested, limits = (
        Predictions.load(run / "predictions.npz"),
        json.loads((run / "results.json").read_text())["thresholds"],
    )
    want = [sorted(COLOURS[k] for k in range(3) if scores[k] > limits[k]) for scores in tested.scores[:8].astype(float)]
    assert len({len(labels) for labels in want}) > 2
    entries = json.loads(files["json"].read_text())["videos"]
    assert [sorted(found["label"] for found in entry["predictions"]) for entry in entries] == want
    rows = [(row["video"], row["label"]) for row in csv.DictReader(files["csv"].open())]
    assert sorted(rows) == sorted((v, name) for v, names in zip(videos, want, strict=True) for name in names or [""])
    assert ("No label is above its threshold" in files["html"].read_text()) == ([] in want)


@pytest.mark.slow
def test_exported_and_published_networks_give_sigmoids_and_keep_thresholds(
    run: Path, place: Path, tmp_path: Path
) -> None:
    predictor = gcvideo.load(run, device="cpu", precision="fp32")
    scores = next(predictor.score_files([place / "7.mp4"]))
    assert main(["export", str(run), str(tmp_path / "a.pt2")]) == 0
    assert main(["export", str(run), str(tmp_path / "folder")]) == 0
    for made in ("a.pt2", "folder"):
        other = gcvideo.load(tmp_path / made, device="cpu", precision="fp32")
        np.testing.assert_allclose(next(other.score_files([place / "7.mp4"])), scores, atol=1e-4)
        assert other.thresholds.tolist() == predictor.thresholds.tolist()
    about = gcvideo.load(tmp_path / "a.pt2", device="cpu").model.about
    assert (about["activation"], about["model"]["multi_label"]) == ("sigmoid", True)
    assert "mAP" in (tmp_path / "folder" / "README.md").read_text()


@pytest.mark.slow
def test_what_takes_one_label_a_video_says_so(run: Path, place: Path, tmp_path: Path, capsys: Any) -> None:
    video, file = str(place / "7.mp4"), str(run / "predictions.npz")
    assert main(["predict", video, "--checkpoint", str(run), "--timeline"]) == 2
    assert "timeline: its segments have one label" in capsys.readouterr().err
    assert main(["test", "--from-predictions", file, "--compare", file]) == 2
    assert "has several labels a video; only accuracies of one label" in capsys.readouterr().err
    assert main(["test", "--from-predictions", file, file, "--json", str(tmp_path / "again.json")]) == 0
    output = capsys.readouterr().out
    assert ", sigmoid\n" in output
    assert re.search(r"video .views ensembled. +[\d.]+ % +50.00 %", output)
    again, first = (json.loads(path.read_text()) for path in (tmp_path / "again.json", run / "results.json"))
    assert again["per_class"] == first["per_class"]
    assert main(["test", "--mean", file.replace("predictions.npz", "results.json"), str(tmp_path / "again.json")]) in (
        0,
        2,
    )
    assert run_train(config_for(place, "false", model={"multi_label": False})) == 2
    assert "model.multi_label: false, but" in capsys.readouterr().err
    assert run_train(config_for(place, "balanced"), "data.augment.class_balanced=true") == 2
    assert "class_balanced: is for one label a video" in capsys.readouterr().err


@pytest.mark.slow
def test_an_ensemble_averages_scores_and_thresholds(run: Path, place: Path, tmp_path: Path) -> None:
    predictor, single = gcvideo.load(run, device="cpu"), gcvideo.load(tiny_checkpoint(tmp_path, classes=COLOURS))
    other = gcvideo.load(run, device="cpu")
    other.thresholds = predictor.thresholds + 0.2
    both = Ensemble([predictor, other])
    np.testing.assert_allclose(both.thresholds, predictor.thresholds + 0.1)
    np.testing.assert_allclose(
        next(both.score_files([place / "7.mp4"])), next(predictor.score_files([place / "7.mp4"])), atol=1e-6
    )
    for members in ([predictor, single], [single, predictor]):
        with pytest.raises(gcvideo.errors.ConfigError, match="one gives a video several labels"):
            Ensemble(members)
