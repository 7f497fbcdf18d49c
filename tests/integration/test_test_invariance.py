"""A test gives one and the same accuracy however it is run: workers, batch sizes, processes, a kill in the middle.

On the synthetic set, and on a slice of the ten-class UCF-101 set beside the checkout.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gcvideo.cli import main
from gcvideo.eval.predictions import Predictions
from gcvideo.prepare.synthetic import CLASSES, make_synthetic
from tests.processes import gcvideo, killed_after_rows, start_ranks, wait
from tests.tiny import tiny_checkpoint


class Reference(NamedTuple):
    """A data set with a checkpoint, and what a plain test of it gave."""

    checkpoint: str
    videos: int
    results: dict[str, Any]
    predictions: Predictions


@pytest.fixture(scope="module", params=["synthetic", "ucf101_10"])
def tested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "synthetic":
        videos, classes = 16, list(CLASSES)
        data = {"annotation": str(make_synthetic(folder / "set", train=8, val=videos, workers=1)[1])}
        data["root"] = str(folder / "set" / "val")
    else:
        root = request.getfixturevalue("shared") / "datasets/ucf101_10"
        classes = (root / "classes.txt").read_text().splitlines()
        data = {"annotation": str(slice_of(root, folder / "slice.txt")), "root": str(root)}
        videos = 2 * len(classes)
    checkpoint = tiny_checkpoint(folder, classes=classes, data={"val": data, "stride": 5})
    results, predictions = outcome(folder / "reference", [str(checkpoint)])
    assert len(set(predictions.scores.argmax(axis=1))) > 2, "a network that always says the same could not tell"
    assert 0 < results["video"]["top5"] < 1
    return Reference(str(checkpoint), videos, results, predictions)


def slice_of(root: Path, path: Path, each: int = 2) -> Path:
    """The first videos of each class of the test split."""
    with (root / "test.txt").open(newline="") as file:
        rows = list(csv.reader(file, delimiter=" "))
    kept = [row for i, row in enumerate(rows) if [r[1] for r in rows[:i]].count(row[1]) < each]
    path.write_text("".join(f"{root / name} {label}\n" for name, label in kept))
    return path


def outcome(output: Path, arguments: Sequence[str]) -> tuple[Any, Predictions]:
    """Test in this process, and read what it left."""
    assert main(["test", *arguments, "--output", str(output)]) == 0
    return left_in(output)


def left_in(output: Path) -> tuple[Any, Predictions]:
    return json.loads((output / "results.json").read_text()), Predictions.load(output / "predictions.npz")


def assert_same(tested: Reference, results: dict[str, Any], predictions: Predictions) -> None:
    assert results["answered"] == results["videos"] == tested.videos
    for name in ("video", "clip", "video_of_all"):
        assert results[name] == tested.results[name], name
    assert predictions.ids == tested.predictions.ids
    assert np.array_equal(predictions.labels, tested.predictions.labels)
    assert np.array_equal(predictions.scores.argmax(axis=1), tested.predictions.scores.argmax(axis=1))
    np.testing.assert_allclose(predictions.scores, tested.predictions.scores, atol=1e-5)


@pytest.mark.parametrize("override", ["data.workers=2", "test.views_per_batch=1", "test.views_per_batch=16"])
def test_workers_and_batch_sizes(tested: Reference, tmp_path: Path, override: str) -> None:
    assert_same(tested, *outcome(tmp_path, [tested.checkpoint, override]))


@pytest.mark.slow
def test_two_processes(tested: Reference, tmp_path: Path) -> None:
    assert wait(start_ranks(gcvideo, "test", tested.checkpoint, "--output", str(tmp_path), processes=2)) == [0, 0]
    results, predictions = left_in(tmp_path)
    assert results["processes"] == 2
    assert_same(tested, results, predictions)


@pytest.mark.slow
def test_a_kill_in_the_middle(tested: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = tested.videos // 2
    command = ["test", tested.checkpoint, "--output", str(tmp_path)]
    killed_after_rows(half, partial(main, command), tmp_path / "said.txt")
    assert not (tmp_path / "results.json").exists()
    capsys.readouterr()
    results, predictions = outcome(tmp_path, [tested.checkpoint, "data.workers=1", "test.views_per_batch=4"])
    assert f"{half} of {tested.videos} videos were finished" in capsys.readouterr().out
    assert_same(tested, results, predictions)
