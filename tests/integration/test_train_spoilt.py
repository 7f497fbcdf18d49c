"""A training whose weights, answers or labels are no use: it stops or says so, and never counts them as the best."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gcvideo.cli import main
from gcvideo.config import save_config
from gcvideo.errors import DataError, TrainingError
from gcvideo.train.step import TrainStep
from gcvideo.train.trainer import Parts, Trainer
from tests.training import last_state, make_videos, metrics, train_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("spoilt"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_answers_no_numbers_is_not_the_best(
    place: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are sound, as those are whose products no longer fit into a float32."""
    config = train_config(place, f"answers-{value}", train={"epochs": 1})

    def spoil(self: Trainer, parts: Parts) -> None:
        parts.step.tested_network.register_forward_hook(lambda *args: args[-1] * value)

    monkeypatch.setattr(Trainer, "_measure_batch_norms", spoil)
    with pytest.raises(TrainingError, match="scores of 8 of 8 validation videos are not finite"):
        Trainer(config).fit()
    assert last_state(config)["best"] is None
    assert not (config.run_dir / "checkpoints" / "best.pt").exists()
    assert metrics(config, "val") == []


def spoil_after(step: int, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an update does to a weight when the gradient of a finite loss is none."""
    whole = TrainStep.step

    def spoilt(self: TrainStep, batches: Any, *, number: int, lr: float) -> Any:
        used = whole(self, batches, number=number, lr=lr)
        if number == step:
            with torch.no_grad():
                next(self.network.parameters())[0] = value
        return used

    monkeypatch.setattr(TrainStep, "step", spoilt)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_spoilt_weights_are_not_saved(place: Path, value: float, ema: float, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"checkpoint_every": 1, "val_every": 1, "log_every": 2, "ema": ema}
    config = train_config(place, f"weights-{value}-{ema}", train=train)
    spoil_after(3, value, monkeypatch)  # the last step of the second epoch: no loss comes after it
    with pytest.raises(TrainingError, match=r"the weights are not finite after 4 steps\. Lower optim\.lr"):
        Trainer(config).fit()
    saved = last_state(config)
    assert (saved["step"], saved["best"]["epoch"]) == (3, 1)
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_where_nothing_was_saved_the_run_starts_from_the_beginning(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(place, "unsaved")
    spoil_after(0, math.nan, monkeypatch)
    with pytest.raises(TrainingError, match=r"not finite at step 1; .*Lower optim\.lr .*, then --resume"):
        Trainer(config).fit()
    monkeypatch.undo()
    Trainer(config).fit(resume=True)


def test_weights_too_large_to_go_on_from_are_left_behind_as_the_message_says(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(place, "large", train={"checkpoint_every": 1})
    spoil_after(1, 3e38, monkeypatch)
    with pytest.raises(TrainingError):
        Trainer(config).fit()
    monkeypatch.undo()
    with pytest.raises(TrainingError) as caught:  # they are finite, so they were saved
        Trainer(config).fit(resume=True)
    folder = config.run_dir / "checkpoints"
    assert "remove last.pt and the newest step_*.pt, and --resume" in str(caught.value)
    (folder / "last.pt").unlink()
    max(folder.glob("step_*.pt")).unlink()
    Trainer(config).fit(resume=True)
    assert last_state(config)["step"] == 6


def test_a_validation_list_without_labels_is_refused(place: Path, tmp_path: Path) -> None:
    unlabelled = tmp_path / "unlabelled.txt"
    unlabelled.write_text("".join(f"{place}/video_{i}.mp4\n" for i in range(4)))
    config = train_config(place, "unlabelled", data={"val": {"annotation": str(unlabelled)}})
    with pytest.raises(DataError, match=r"unlabelled\.txt: has no labels to validate on; leave data\.val\.annotation"):
        Trainer(config).fit()
    assert not (config.run_dir / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_validation_without_a_readable_video_is_never_the_best(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"this is no video")
    (tmp_path / "val.txt").write_text("broken.mp4 1\n")
    config = train_config(
        place,
        "unreadable",
        data={"val": {"annotation": str(tmp_path / "val.txt")}},
        train={"val_every": 1, "epochs": 2},
    )
    save_config(config, tmp_path / "run.yaml")
    assert main(["train", str(tmp_path / "run.yaml"), "--json", str(tmp_path / "out.json")]) == 0
    assert "no accuracy, because no video could be decoded, 1 videos could not be read" in capsys.readouterr().out
    assert last_state(config)["best"] is None
    for path in (config.run_dir / "results.json", tmp_path / "out.json"):
        results = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (results["best"], results["validation"]["video_top1"]) == (None, None)
    assert "nan %" not in (config.run_dir / "report.html").read_text()
    (tmp_path / "val.txt").write_text(f"broken.mp4 1\n{place}/video_0.mp4 0\n")  # it is no hindrance later on
    assert main(["train", str(tmp_path / "run.yaml"), "train.epochs=3", "--resume"]) == 0
    assert last_state(config)["best"]["epoch"] == 3
