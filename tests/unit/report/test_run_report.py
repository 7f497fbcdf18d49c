"""The page that a run leaves: curves, the last validation or the test, and nothing that cannot be explained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gcvideo.config import save_config
from gcvideo.files import write_json
from gcvideo.report import pages
from gcvideo.report.pages import write_run_report
from tests.browser import visit
from tests.training import train_config
from tests.unit.report.test_pages import EVIL, Elements, predictions, results


def lines(steps: int) -> list[dict[str, Any]]:
    """A loss that falls from 3 in steps of 1 / steps, and a validation in the middle and at the end."""
    train = []
    for i in range(1, steps + 1):
        figures = {"loss": 3 - i / steps, "top1": i / steps, "lr": 0.1, "data_seconds": 0.01, "compute_seconds": 0.04}
        train.append({"kind": "train", "step": i, "epoch": 4 * i / steps, **figures})
    val = [{"kind": "val", "step": s, "epoch": e, "clip_top1": 0.25, "video_top1": 0.5} for s, e in ((50, 2), (100, 4))]
    return train + val


TRAINING: dict[str, Any] = {
    "validation": {"video_top1": 0.5, "clip_top1": 0.25},
    "best": {"top1": 0.75, "epoch": 3, "step": 75},
    "seconds": 3723.0,
    "steps": 100,
    "data_seconds": 10.0,
    "compute_seconds": 30.0,
    "bound_by": "data",
    "failures": {"count": 1, "videos": [{"id": EVIL[0], "path": "bad.mp4", "reason": EVIL[1]}]},
    "versions": {"torch": "1.2.3"},
}


def leave_run(folder: Path, *, steps: int = 100) -> Path:
    """What a training leaves that the report is made from."""
    config = train_config(folder.parent, folder.name)
    config.data.about = {"ordinary": f"what everyone does {EVIL[0]}"}
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(steps)))
    found = predictions()
    found.info = {"annotation": f"val {EVIL[0]}", "epoch": 4.0}
    found.save(folder / "predictions_val.npz")
    write_json(folder / "results.json", {"training": TRAINING})
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_report(leave_run(tmp_path_factory.mktemp("report") / "run"))


def test_the_curves_are_those_of_the_metrics() -> None:
    figures = {figure.get_suptitle(): figure.axes[0] for figure in pages._curves(lines(100))}
    curves = {
        title: {one.get_label(): one[0].get_xydata() for one in axes.containers} for title, axes in figures.items()
    }
    assert {title: list(of) for title, of in curves.items()} == {
        "Loss": ["training"],
        "Accuracy": ["training clips", "validation clips", "validation videos"],
        "Learning rate": ["learning rate"],
        "Time of a step": ["waiting for clips", "computing"],
    }
    np.testing.assert_allclose(curves["Loss"]["training"], [(i / 25, 3 - i / 100) for i in range(1, 101)])
    np.testing.assert_allclose(curves["Accuracy"]["validation clips"], [(2, 25), (4, 25)])
    np.testing.assert_allclose(curves["Accuracy"]["training clips"][49], (2, 50))
    np.testing.assert_allclose(curves["Time of a step"]["computing"][:, 1], 40)


def test_long_curves_are_averaged() -> None:
    rows = [{"kind": "train", "epoch": float(i), "loss": float(i % 2)} for i in range(1001)]
    (figure,) = pages._curves(rows)
    short = figure.axes[0].containers[0][0].get_xydata().tolist()
    assert len(short) == 167
    assert short[0] == [2.5, 0.5]
    assert short[-1] == [998, 0.4]  # the last five alone


def test_it_says_what_the_training_came_to(report: Path) -> None:
    text = re.sub(r"<[^>]*>", " ", report.read_text(encoding="utf-8"))
    for words in ("Run run", "50.00 %", "25.00 %", "75.00 %", "after epoch 3", "1:02:03", "100 steps", "25 % of the"):
        assert words in text, words
    assert re.search(r"what everyone does .*script.*; *\d+ video", text), "what a class shows, beside its accuracy"
    for words in ("60 videos", "after epoch 4", "Confusions", "Expected calibration error", "could not be read (1)"):
        assert words in text, words
    assert "1.2.3" in text
    assert "optim.lr" in text


def test_nothing_from_outside_becomes_markup(report: Path) -> None:
    content = report.read_text(encoding="utf-8")
    elements = Elements(content).found
    assert not {key for _, attributes in elements for key in attributes if key.startswith("on")}
    assert [attributes for tag, attributes in elements if tag == "script"] == [{}]
    links = {attributes["href"] or "" for _, attributes in elements if "href" in attributes}
    assert {link for link in links if not link.startswith("#")} == {"data:,"}  # "#": parts of a plot
    assert "https://" not in content
    assert "\u202e" not in content


def test_a_test_takes_the_place_of_the_validation(tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run")
    found = predictions(skill=4)
    found.save(folder / "predictions.npz")
    write_json(folder / "results.json", {**results(found), "training": TRAINING})
    content = write_run_report(folder).read_text(encoding="utf-8")
    assert "<h2>Test</h2>" in content
    assert "10 clips x 3 crops of 256" in content
    assert "Last validation" not in content
    write_json(folder / "results.json", {"training": TRAINING})  # trained further: the test was of other weights
    assert "Last validation" in write_run_report(folder).read_text(encoding="utf-8")


def test_a_training_that_was_stopped_has_curves(tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run")
    for name in ("results.json", "predictions_val.npz"):
        (folder / name).unlink()
    content = write_run_report(folder).read_text(encoding="utf-8")
    assert "has not finished" in content
    assert 'aria-label="Loss"' in content
    (folder / "metrics.jsonl").write_text("")
    assert "Not one step was recorded" in write_run_report(folder).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_browser_finds_no_fault(report: Path, tmp_path: Path) -> None:
    script = """document.title = document.documentElement.scrollWidth > document.documentElement.clientWidth;"""
    dom, console = visit(report, tmp_path, script)
    assert console == []
    assert "<title>false</title>" in dom  # it does not scroll sideways
