"""metrics.jsonl, TensorBoard and Weights & Biases: the same figures, each step once."""

from __future__ import annotations

import json
import math
import sys
import types
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gcvideo.config import DataConfig
from gcvideo.errors import ConfigError
from gcvideo.train.logger import MetricsLogger, bounds, read_metrics


def test_figures_are_lines_of_strict_json(tmp_path: Path) -> None:
    with closing(MetricsLogger(tmp_path)) as logger:
        logger.write("train", step=1, loss=2.5, top1=math.nan)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"kind": "train", "step": 1, "loss": 2.5, "top1": None}


def test_tensorboard_has_the_same_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with closing(MetricsLogger(tmp_path)) as logger:
        logger.write("train", step=3, loss=2.5)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 2.5)]


def test_steps_that_will_be_done_again_are_taken_back(tmp_path: Path) -> None:
    with closing(MetricsLogger(tmp_path)) as logger:
        for step in range(1, 6):
            logger.write("train", step=step, epoch=step / 10, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # cut short by a kill
    with closing(MetricsLogger(tmp_path, step=3, epoch=3 / 10)) as logger:
        logger.write("train", step=4, epoch=4 / 10, loss=2.0)
    figures = [(record["step"], record["loss"]) for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert figures == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_a_larger_batch_takes_back_no_epoch_that_was_done(tmp_path: Path) -> None:
    with closing(MetricsLogger(tmp_path)) as logger:
        for step in range(1, 8):
            logger.write("train", step=step, epoch=step / 4, loss=1.0)
    with closing(MetricsLogger(tmp_path, step=3, epoch=6 / 4)) as logger:  # six steps of old, three of twice the batch
        logger.write("train", step=4, epoch=4 / 2, loss=2.0)
    figures = [(record["step"], record["epoch"]) for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert figures == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1), (5, 1.25), (6, 1.5), (4, 2)]


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with closing(MetricsLogger(tmp_path)) as logger:
        logger.write("train", step=1, loss=1.0)
    assert not list(tmp_path.iterdir())


def test_weights_and_biases_gets_the_figures_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append((values, step))

        def finish(self) -> None:
            calls.append("finished")

    def init(**options: Any) -> Run:
        calls.append((options["project"], options["id"], options["resume"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with closing(MetricsLogger(tmp_path / ".." / tmp_path.name, wandb="kinetics")) as logger:
        logger.write("val", step=7, video_top1=0.5)
    assert calls == [("kinetics", tmp_path.name, "allow"), ({"val/video_top1": 0.5}, 7), "finished"]


def test_weights_and_biases_without_the_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install"):
        MetricsLogger(tmp_path, wandb="kinetics")


def test_what_bounds_a_training_is_said_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gcvideo.distributed.cores", lambda: 4)
    line = bounds(8, 2.0, 0.5, data=DataConfig(workers=2))
    assert line.startswith(
        "reading can deliver 4 clips/s (measured here, data.workers=2), computing takes 16: reading is"
    )
    assert "raise data.workers (2 now, of 4 cores), shrink the videos with gcvideo prepare transcode" in line
    assert "raise" not in bounds(8, 2.0, 0.5, data=DataConfig())  # auto: one a core
    assert bounds(8, 0.5, 2.0, data=DataConfig(workers=2)).endswith("computing is the bound")
