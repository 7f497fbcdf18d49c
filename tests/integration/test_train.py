"""``gcvideo train`` from the command line: what it leaves, what it refuses, what it says."""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gcvideo.cli import main
from gcvideo.config import RunConfig, load_config
from gcvideo.data.dataset import ClipBatch, ClipDataset
from gcvideo.data.loader import Prefetcher, epoch_order, eval_loader, train_loader
from gcvideo.data.splits import load_split
from gcvideo.errors import ConfigError
from gcvideo.eval.metrics import TrainMeter
from gcvideo.eval.predictions import Predictions
from gcvideo.models.resnet3d import build_model
from gcvideo.report.pages import write_run_report
from gcvideo.train import checkpoint
from gcvideo.train import dry_run as trials
from gcvideo.train import trainer as trainer_module
from gcvideo.train.batch_norm import measure_batch_norms
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.train.optimizer import learning_rate
from gcvideo.train.schedule import Position, Schedule
from gcvideo.train.step import TrainStep
from gcvideo.train.trainer import Trainer
from tests.training import EVERYTHING, last_state, make_videos, metrics, run_train, same_tensors, train_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def finished(place: Path) -> RunConfig:
    """A run to look at."""
    config = train_config(place, "finished", train={"val_every": 2, "val_clips": 2})
    assert run_train(config, "--json", str(place / "finished.json")) == 0
    return config


def test_a_run_leaves_what_the_documentation_says(finished: RunConfig, place: Path) -> None:
    folder = finished.run_dir
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "train.log", "metrics.jsonl", "results.json", "checkpoints", "report.html"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {"last.pt", "best.pt"} <= {path.name for path in (folder / "checkpoints").iterdir()}
    assert load_config(folder / "config.yaml") == finished
    results = json.loads((place / "finished.json").read_text())
    assert json.loads((folder / "results.json").read_text()) == {"training": results}
    assert results["steps"] == 6
    assert results["failures"] == {"count": 0, "videos": []}
    assert {"clip_top1", "clip_top5", "video_top1", "video_top5"} <= results["validation"].keys()
    assert results["bound_by"] in ("data", "compute")


def test_a_test_of_the_run_leaves_the_training_s_results_in_place(finished: RunConfig) -> None:
    path = finished.run_dir / "results.json"
    before = json.loads(path.read_text())["training"]
    assert main(["test", str(finished.run_dir)]) == 0
    results = json.loads(path.read_text())
    assert results["training"] == before
    assert results["answered"] == 8
    assert "<h2>Test</h2>" in (finished.run_dir / "report.html").read_text()
    path.write_text(json.dumps({"training": before}))


def test_metrics_have_the_documented_keys(finished: RunConfig) -> None:
    lines = metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    keys = "kind step epoch loss top1 lr clips_per_second data_seconds compute_seconds seconds"
    assert set(lines[0]) == set(keys.split())
    assert [line["epoch"] for line in lines] == [0.5, 1, 1.5, 2, 2.5, 3]
    expected = [learning_rate(finished.optim, epoch=e / 2, epochs=3, batch_size=4) for e in range(6)]
    assert [line["lr"] for line in lines] == expected
    keys = "kind step epoch clip_top1 clip_top5 video_top1 video_top5 videos failures seconds"
    validations = metrics(finished, "val")
    assert [line["step"] for line in validations] == [4, 6]  # every second epoch, and at the end
    assert set(validations[0]) == set(keys.split())


def test_the_log_tells_the_story(finished: RunConfig) -> None:
    log = (finished.run_dir / "train.log").read_text()
    for words in ("clips/s", "loss", "video top-1", str(finished.run_dir), "-bound: ", "guessing reaches 25.00 %"):
        assert words in log


def test_the_checkpoint_holds_a_network_to_test_with(finished: RunConfig) -> None:
    state = load_checkpoint(finished.run_dir / "checkpoints" / "best.pt")
    build_model(finished.model).load_state_dict(state["model"])
    assert len(state["fingerprint"]) == 64
    assert (state["classes"], state["records"]) == (None, 8)  # a list of numbers gives no names
    assert state["best"]["top1"] == max(line["video_top1"] for line in metrics(finished, "val"))
    assert state["versions"]["torch"] == torch.__version__


def test_the_best_checkpoint_is_of_the_best_validation(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.2, 0.6, 0.6])
    metrics_of = trainer_module.log.validation_metrics
    monkeypatch.setattr(
        trainer_module.log, "validation_metrics", lambda found: {**metrics_of(found), "video_top1": next(accuracies)}
    )
    config = train_config(place, "best", train={"val_every": 1})
    Trainer(config).fit()
    best = load_checkpoint(config.run_dir / "checkpoints" / "best.pt")
    assert (best["step"], last_state(config)["step"]) == (4, 6)
    assert best["best"] == last_state(config)["best"] == {"top1": 0.6, "epoch": 2, "step": 4}


@pytest.mark.slow
def test_training_stops_when_validations_bring_nothing_better_and_stays_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies = iter([0.6, 0.6, 0.7, 0.5])
    metrics_of = trainer_module.log.validation_metrics
    monkeypatch.setattr(
        trainer_module.log, "validation_metrics", lambda found: {**metrics_of(found), "video_top1": next(accuracies)}
    )
    config = train_config(place, "early", train={"val_every": 1, "early_stop": 1, "epochs": 4})
    for resume in (False, True):
        assert Trainer(config).fit(resume=resume)["stopped_early"]
        assert (last_state(config)["epoch"], last_state(config)["best"]["epoch"]) == (2, 1)
        message = "the last 1 validations brought no better video top-1 than the best, 60.00 % after epoch 1"
        assert f"stopped early after epoch 2: {message} (train.early_stop=1)" in capsys.readouterr().out
    config.train.early_stop = 2  # the next one is better, and the one after it the last
    assert not Trainer(config).fit(resume=True)["stopped_early"]
    assert [last_state(config)[key] for key in ("epoch", "stale")] == [4, 1]
    with pytest.raises(ConfigError, match=r"train\.early_stop: .*train\.val_every"):
        train_config(place, train={"val_every": 0, "early_stop": 2})
    config.data.val.annotation = None
    with pytest.raises(ConfigError, match=r"train\.early_stop: .*data\.val\.annotation"):
        Trainer(config).build()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(place: Path) -> None:
    states = []
    for name, workers, seed in (("one", 0, 1), ("two", 2, 1), ("other", 0, 2)):
        config = train_config(place, name, data={"workers": workers}, seed=seed, model={"dropout": 0.5})
        Trainer(config).fit()
        states.append(last_state(config))
    assert same_tensors(states[0]["model"], states[1]["model"])
    assert same_tensors(states[0]["optimizer"]["state"], states[1]["optimizer"]["state"])
    assert not same_tensors(states[0]["model"], states[2]["model"])


@pytest.mark.parametrize("multigrid", ["none", "long"])
def test_clips_come_in_the_order_of_the_seed_from_as_many_workers_as_asked(place: Path, multigrid: str) -> None:
    train = {"multigrid": multigrid, "multigrid_cycles": 1, "epochs": 7}
    config = train_config(place, "order", seed=3, data={"workers": 2, "crop": 64, "short_side": [64, 72]}, train=train)
    trainer = Trainer(config)
    parts = trainer.build()
    loader = trainer.loader(parts, 0)
    assert loader.workers == 2
    assert isinstance(loader.dataset, ClipDataset)
    assert loader.dataset.seed == 3
    videos = 4 * parts.schedule.shapes[0].batch
    assert [slot for _, slots in loader.tasks for slot in slots] == epoch_order(
        8, seed=3, epoch=0, global_batch=videos
    ).tolist()


def test_a_step_is_what_plain_torch_does(place: Path) -> None:
    """One epoch against a loop written out by hand, with torch's own optimizer and without any of our engine."""
    config = train_config(
        place, "step", train={"epochs": 2, "label_smoothing": 0.1}, optim={"clip_grad_norm": 1.0, "warmup_epochs": 0.0}
    )
    Trainer(config).fit()
    torch.manual_seed(config.seed)
    network = build_model(config.model).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-4)
    records = load_split(config, config.data.train, name="training")
    assert records is not None
    dataset = ClipDataset(records, data=config.data, seed=config.seed)
    step = 0
    for epoch in range(2):
        for batch in train_loader(dataset, batch_size=4, seed=config.seed, epoch=epoch):
            optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 4))
            logits = network((batch.clips.float() / 255 - 0.45) / 0.225)
            optimizer.zero_grad()
            F.cross_entropy(logits, batch.labels, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
    trained = last_state(config)["model"]
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batches", "ema"), [(2, 0.0), (2, 0.9), (99, 0.0)])  # an epoch has two
def test_batch_norms_are_measured_over_the_first_batches_of_the_epoch(place: Path, batches: int, ema: float) -> None:
    """Those of the network that is validated: the averaged one where there is one."""
    config = train_config(place, f"precise{batches}{ema:g}", train={"epochs": 1, "precise_bn": batches, "ema": ema})
    Trainer(config).fit()
    saved = last_state(config)["model"]
    network = build_model(config.model)
    network.load_state_dict(saved)
    records = load_split(config, config.data.train, name="training")
    assert records is not None
    loader = train_loader(ClipDataset(records, data=config.data, seed=0), batch_size=4, seed=0, epoch=0)
    measure_batch_norms(network, ((batch.clips.float() / 255 - 0.45) / 0.225 for batch in loader), 2)
    for name, buffer in network.named_buffers():
        if "running" in name:
            torch.testing.assert_close(saved[name], buffer, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_lines_and_checkpoints_come_when_they_are_due(place: Path) -> None:
    """A line of the log has the means over the steps since the one before it."""
    runs = []
    for every in (1, 3):
        train = {"epochs": 1.5, "batch_size": 1, "log_every": every, "checkpoint_every": 3, "checkpoint_minutes": 60}
        config = train_config(place, f"due{every}", train={**train, "keep_checkpoints": 99, "val_every": 0})
        Trainer(config).fit()
        runs.append(metrics(config))
    each, some = runs
    assert [line["step"] for line in each] == list(range(1, 13))
    assert [line["step"] for line in some] == [3, 6, 8, 9, 12]  # and at the end of each epoch
    for line, steps in zip(some, (each[:3], each[3:6], each[6:8], each[8:9], each[9:]), strict=True):
        for name in ("loss", "top1"):
            assert line[name] == pytest.approx(sum(step[name] for step in steps) / len(steps))
    saved = sorted(path.stem for path in (config.run_dir / "checkpoints").glob("step_*.pt"))
    assert saved == [f"step_{step:08}" for step in (3, 6, 8, 9, 12)]
    assert [line["step"] for line in metrics(config, "val")] == [12]
    # The schedule ends with the training, in the middle of an epoch.
    expected = [learning_rate(config.optim, epoch=step / 8, epochs=1.5, batch_size=1) for step in range(12)]
    assert [line["lr"] for line in each] == expected


def test_validation_has_as_many_workers_as_training(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def look(dataset: Any, **options: Any) -> Any:
        asked.append(options["workers"])
        return eval_loader(dataset, **options)

    monkeypatch.setattr(trainer_module, "eval_loader", look)
    Trainer(train_config(place, "workers", train={"epochs": 1}, data={"workers": 1})).fit()
    assert asked == [1]


def test_weights_and_biases_gets_what_is_recorded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, set[str]]] = []
    run = SimpleNamespace(log=lambda values, step: logged.append((step, set(values))), finish=lambda: None)
    projects: list[str] = []
    wandb = SimpleNamespace(init=lambda *, project, **_: projects.append(project) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    Trainer(train_config(place, "wandb", train={"epochs": 1, "wandb": "kinetics"})).fit()
    assert projects == ["kinetics"]
    assert [step for step, _ in logged] == [1, 2, 2]
    assert "train/loss" in logged[0][1]
    assert "val/video_top1" in logged[2][1]


def test_accumulated_micro_batches_are_one_batch(place: Path) -> None:
    """The gradients of 2 x 2 clips are those of 4, batch norms aside: they are frozen here."""
    gradients = []
    for accumulate in (1, 2):
        config = train_config(place, f"accumulate{accumulate}", train={"accumulate": accumulate})
        learner = TrainStep(config, torch.device("cpu"))
        learner.model.eval()
        records = load_split(config, config.data.train, name="training")
        assert records is not None
        dataset = ClipDataset(records, data=config.data, seed=0)
        loader = train_loader(dataset, batch_size=4 // accumulate, accumulate=accumulate, seed=0, epoch=0)
        gradients.append(_gradients(learner, loader))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def _gradients(learner: TrainStep, loader: Any) -> list[torch.Tensor]:
    """The gradients that the first step works with."""
    seen: list[torch.Tensor] = []

    def look(*_: Any) -> None:
        seen.extend(p.grad.clone() for p in learner.network.parameters() if p.grad is not None)

    learner.optimizer.register_step_pre_hook(look)
    learner.step(iter(loader), number=0, lr=0.1)
    return seen


def test_the_report_is_of_the_last_validation(finished: RunConfig) -> None:
    predictions = Predictions.load(finished.run_dir / "predictions_val.npz")
    last = metrics(finished, "val")[-1]
    assert predictions.accuracy()["video"]["top1"] == last["video_top1"]
    assert predictions.info["epoch"] == last["epoch"] == 3
    assert set(predictions.views) == {2}
    content = write_run_report(finished.run_dir).read_text()
    assert "8 videos of" in content
    assert 'aria-label="Loss"' in content


def test_with_a_gpu_a_log_is_written_with_the_next_one_and_at_the_end_of_an_epoch(
    place: Path, finished: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = SimpleNamespace(**{**vars(trainer_module.runtime), "has_streams": lambda device: True})
    monkeypatch.setattr(trainer_module, "runtime", runtime)
    config, logs = train_config(place, "late"), list[tuple[bool, int]]()

    def reset(self: Prefetcher, *, finish: bool = False) -> float:
        logs.append((finish, len(metrics(config))))
        return 1e-3

    monkeypatch.setattr(Prefetcher, "reset", reset)
    Trainer(config).fit()
    # Two steps an epoch. The time of the last one counts once the device has done its work.
    assert logs == [(False, 0), (True, 0), (False, 2), (True, 2), (False, 4), (True, 4)]
    rows, same = metrics(config), metrics(finished)
    assert [(row["step"], row["epoch"], row["loss"]) for row in rows] == [
        (row["step"], row["epoch"], row["loss"]) for row in same
    ]


def test_a_log_that_waits_is_written_before_an_error_ends_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(**{**vars(trainer_module.runtime), "has_streams": lambda device: True})
    monkeypatch.setattr(trainer_module, "runtime", runtime)
    config, step = train_config(place, "broken", train={"batch_size": 2}), TrainStep.step

    def fail(self: TrainStep, batches: Any, *, number: int, lr: float) -> list[ClipBatch]:
        if number == 2:
            raise ValueError("the loss")
        return step(self, batches, number=number, lr=lr)

    monkeypatch.setattr(TrainStep, "step", fail)
    with pytest.raises(ValueError, match="the loss"):
        Trainer(config).fit()
    assert [row["step"] for row in metrics(config)] == [1, 2]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_left_alone(finished: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished.run_dir / "metrics.jsonl").read_text()
    assert run_train(finished) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "already holds a run" in message
    assert "--resume" in message
    assert "--overwrite" in message
    assert (finished.run_dir / "metrics.jsonl").read_text() == before


def test_a_start_that_failed_over_a_mistake_does_not_count_as_a_run(place: Path) -> None:
    config = train_config(place, "mistaken", train={"epochs": 1})
    assert run_train(config, "data.train.annotation=nowhere.txt") == 2
    assert run_train(config) == 0


@pytest.mark.slow
def test_overwrite_removes_the_old_run_and_nothing_else(place: Path) -> None:
    config = train_config(place, "overwrite", train={"epochs": 1})
    assert run_train(config) == 0
    (config.run_dir / "notes.txt").write_text("mine")
    assert run_train(config) == 2
    assert run_train(config, "--overwrite") == 0
    assert [line["step"] for line in metrics(config)] == [1, 2]
    assert len(list(config.run_dir.glob("events.out.tfevents*"))) == 1
    assert (config.run_dir / "notes.txt").read_text() == "mine"
    with pytest.raises(SystemExit, match="2"):
        run_train(config, "--overwrite", "--resume")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", "unknown key optim.learning_rate"),
        ("data.train.annotation=nowhere.txt", "nowhere.txt: no such annotation"),
        ("data.train.annotation=null", "data.train.annotation: not set"),
        ("train.freeze=[res6]", "no part 'res6'"),
        ("train.freeze=[backbone,head]", "leaves no parameter to train"),
        ("model.num_classes=2", "label"),
        ("model.weights=none.pt", "none.pt: no such checkpoint"),
        ("train.sync_batch_norm=-1", "train.sync_batch_norm"),
        ("train.ema=1.5", "train.ema"),
        ("train.precise_bn=-1", "train.precise_bn"),
        ("train.val_clips=0", "train.val_clips"),
        ("train.multigrid_cycles=0", "train.multigrid_cycles"),
        ("optim.lr_for_batch=0", "optim.lr_for_batch"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(
    place: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(train_config(place, "mistakes"), "--overwrite", override) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"static_graph": True, "accumulate": 2}, "train.static_graph: does not work with"),
        ({"multigrid": "long", "sync_batch_norm": 2}, "train.sync_batch_norm must stay 1"),
    ],
)
def test_switches_that_contradict_each_other_are_refused(place: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config(place, "contradiction", train=values)


def test_a_batch_that_does_not_divide_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"train\.batch_size: must be a multiple of 3 processes x 1"):
        Trainer(train_config(place, "divide"))


@pytest.mark.slow
def test_a_bad_video_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_videos(tmp_path)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with (tmp_path / "val.txt").open("a") as file:
        file.write("empty.mp4 1\n")
    config = train_config(tmp_path, train={"epochs": 2, "batch_size": 3})
    assert run_train(config) == 0
    results = json.loads((config.run_dir / "results.json").read_text())["training"]
    assert results["failures"]["count"] == 1
    assert results["failures"]["videos"][0]["id"] == "empty.mp4"
    assert results["failures"]["videos"][0]["reason"]
    assert results["validation"]["failures"] == 1
    assert "empty.mp4" in (config.run_dir / "quarantine.jsonl").read_text()
    assert "1 training videos could not be read" in capsys.readouterr().err


# --- all at once, and before a long training -------------------------------------------------------------------------


@pytest.mark.slow
def test_every_recipe_at_once(place: Path) -> None:
    many = place / "many.txt"  # for the large batches of multigrid: each video eight times
    many.write_text(8 * (place / "val.txt").read_text())
    data = {**EVERYTHING["data"], "train": {"annotation": str(many)}}
    config = train_config(place, "everything", **{**EVERYTHING, "data": data})
    assert run_train(config) == 0
    lines = metrics(config)
    plan = Schedule(config, 64)
    assert len(set(plan.shapes)) == 4  # of multigrid
    assert [line["step"] for line in lines] == list(range(1, plan.total_steps + 1))
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[0]["lr"] == pytest.approx(config.optim.warmup_start_lr * plan.shapes[0].batch)
    last = plan.time(Position(plan.total_steps - 1, plan.epochs - 1, plan.steps(plan.epochs - 1) - 1))
    rate = learning_rate(config.optim, epoch=last, epochs=7, batch_size=8)  # of a step, not of a micro-batch
    assert lines[-1]["lr"] == pytest.approx(rate * plan.shapes[-1].batch)
    details = json.loads((config.run_dir / "results.json").read_text())["training"]["validation"]
    assert len(details["per_class"]) == 4
    assert 0 <= details["calibration"]["expected_calibration_error"] <= 1


def test_the_next_epoch_is_read_during_the_last_step_of_this_one_by_the_same_workers(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readers = np.frombuffer(mmap.mmap(-1, 16), dtype=np.int64)  # the last process that read in epoch 0, and in 1
    sample, step = ClipDataset.sample, TrainStep.step

    def note(self: ClipDataset, epoch: int, slot: int, *hold: Any) -> ClipBatch:
        readers[epoch] = os.getpid()
        return sample(self, epoch, slot, *hold)

    def wait_for_readers(*arguments: Any, number: int, **options: Any) -> list[ClipBatch]:
        end = time.monotonic() + 60
        while number == 1 and not readers[1] and time.monotonic() < end:
            time.sleep(0.001)
        assert number < 1 or readers[1]
        return step(*arguments, number=number, **options)

    monkeypatch.setattr(ClipDataset, "sample", note)
    monkeypatch.setattr(TrainStep, "step", wait_for_readers)
    config = train_config(place, "ahead", data={"workers": 1}, train={"epochs": 2, "val_every": 0})
    Trainer(config).fit()
    assert readers[0] == readers[1] != os.getpid()
    assert "reading can deliver" in capsys.readouterr().out


def test_a_dry_run_says_what_a_training_would_cost_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_config(place, "dry")
    assert run_train(config, "--dry-run", "--json", str(place / "dry.json")) == 0
    assert not config.run_dir.exists()
    results = json.loads((place / "dry.json").read_text())
    assert results["steps"] == 6
    assert results["parameters"] == sum(p.numel() for p in build_model(config.model).parameters())
    assert results["hours"] * 3600 == pytest.approx(6 * 4 / results["clips_per_second"])
    assert results["bound_by"] == ("data" if results["reading_seconds"] > results["compute_seconds"] else "compute")
    assert re.search(r"reading can deliver .* clips/s .*computing takes .*\n.* steps take", capsys.readouterr().out)


def test_a_dry_run_finds_the_largest_batch_that_fits(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """cuDNN finds no workspace near the limit, and says so without the words of torch's own error."""
    forward, room = TrainStep._forward, 2

    def full(self: TrainStep, clips: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(clips) > room:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")
        return forward(self, clips, targets)

    monkeypatch.setattr(TrainStep, "_forward", full)
    config = train_config(place, "full")
    assert run_train(config, "--dry-run", "--json", str(place / "full.json")) == 0
    out = capsys.readouterr().out
    assert "4 clips at a time do not fit into memory" in out
    assert "the largest batch that fits is 2 clips: set train.accumulate=2" in out
    assert json.loads((place / "full.json").read_text())["largest_batch"] == 2
    room = 0
    assert run_train(config) == 2
    assert "no memory is left" in (error := capsys.readouterr().err)
    assert "--dry-run finds the largest batch that fits" in error


def test_a_dry_run_of_multigrid_takes_the_steps_of_a_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every shape with its batch and its splits; clips and steps are those of the whole training."""
    seen: list[tuple[int, ...]] = []
    forward = TrainStep._forward

    def look(self: TrainStep, clips: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        norm = next(module for module in self.network.modules() if isinstance(module, nn.BatchNorm3d))
        seen.append((getattr(norm, "splits", 1), *clips.shape[:1], *clips.shape[2:4]))
        return forward(self, clips, targets)

    many = place / "many.txt"
    many.write_text(4 * (place / "val.txt").read_text())
    data = {"crop": 64, "short_side": [64, 72], "train": {"annotation": str(many)}}
    train_ = {"multigrid": "long", "multigrid_cycles": 1, "epochs": 7, "batch_size": 2}
    config = train_config(place, "dry_multigrid", data=data, train=train_)
    monkeypatch.setattr(TrainStep, "_forward", look)
    results = trials.dry_run(config)
    plan = Schedule(config, 32)
    expected = []
    for epoch in map(plan.shapes.index, dict.fromkeys(plan.shapes)):
        shape = plan.shapes[epoch]
        expected += min(4, plan.steps(epoch)) * [(shape.batch, 2 * shape.batch, shape.frames, shape.crop)]
    assert seen == expected
    assert results["steps"] == plan.total_steps
    clips = sum(2 * shape.batch * plan.steps(epoch) for epoch, shape in enumerate(plan.shapes))
    assert results["clips_per_second"] * results["hours"] * 3600 == pytest.approx(clips)
    assert f"a step of {clips / plan.total_steps:.4g} clips, averaged over all shapes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loss_of", "lowest", "reason"),
    [
        (lambda n: 2.0 - 0.04 * n if n < 40 else 9.0, 39, "it fell from 1.82 to .* diverged at"),
        (lambda n: 2.0 - 0.04 * n if n < 40 else math.nan, 39, "diverged at"),
        (lambda n: 2.0 + 0.02 * (-1) ** n, None, "no rate lowered the loss in 60 steps"),
        (lambda n: math.nan, None, "no rate lowered the loss in 1 steps"),
    ],
)
def test_the_range_test_suggests_a_tenth_of_the_rate_of_the_lowest_loss(
    place: Path, monkeypatch: pytest.MonkeyPatch, loss_of: Callable[[int], float], lowest: int | None, reason: str
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(TrainStep, "step", lambda self, batches, *, number, lr: rates.append(lr))
    monkeypatch.setattr(TrainMeter, "read", lambda self: {"loss": loss_of(len(rates) - 1)})
    results = trials.find_lr(train_config(place, "range", optim={"lr_for_batch": 2}))  # half of train.batch_size
    assert rates == results["rates"]
    assert results["lr"] == (lowest and pytest.approx(rates[lowest] / 20, rel=0.05))
    assert re.search(reason, results["reason"])


@pytest.mark.slow
def test_the_range_test_repeats_a_small_set_draws_by_the_seed_and_leaves_nothing(place: Path) -> None:
    config = train_config(place, "find_lr", train={"epochs": 1})  # an epoch has two steps
    results = trials.find_lr(config, steps=20)
    assert not config.run_dir.exists()
    assert len(set(results["losses"])) == len(results["rates"]) > 2
    assert trials.find_lr(config, steps=20)["losses"] == results["losses"]


@pytest.mark.slow
def test_a_profile_names_operators_and_leaves_a_trace(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_config(place, "profile")
    assert run_train(config, "--profile") == 0
    assert json.loads((config.run_dir / "profile.json").read_text())["traceEvents"]
    assert "convolution" in capsys.readouterr().out
    assert run_train(config) == 0  # a profile is no run that would be in the way


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "{}/x.json"], "--json: {}/x.json cannot be written"),
        (["--profile", "output={}/runs"], "{}/runs/unwritable: Not a directory"),
        (["output={}/runs"], "{}/runs/unwritable: Not a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_before_the_first_step(
    place: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "build", lambda *_, **__: pytest.fail("began"))
    file = place / "a_file"
    file.touch()
    config = train_config(place, "unwritable")
    assert run_train(config, *(option.format(file) for option in options)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message.format(file) in error
    assert run_train(config, "--json", str(place)) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_few_videos_are_overfitted_until_all_are_learned(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_the_way = {"ema": 0.9999, "multigrid": "long", "precise_bn": 2, "val_every": 0}  # all of it is changed
    config = train_config(place, "overfit", train={"epochs": 200, "batch_size": 2, **in_the_way}, optim={"lr": 0.05})
    assert run_train(config, "--overfit", "2") == 0
    folder = config.run_dir.with_name("overfit-overfit2")
    results = json.loads((folder / "results.json").read_text())["training"]
    assert results["validation"]["videos"] == 2
    assert results["validation"]["video_top1"] == 1.0
    assert results["steps"] < 200
    assert f"overfit: learned all 2 videos after {results['steps']} epochs" in capsys.readouterr().out
    assert run_train(config, "--overfit", "9") == 2


@pytest.mark.slow
def test_what_was_not_learned_is_said_with_what_to_try(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_config(place, "unlearned", train={"epochs": 1, "freeze": ["backbone"]}, optim={"lr": 1e-6})
    config.optim.warmup_epochs = 0.0
    assert run_train(config) == 0
    output = capsys.readouterr().out.splitlines()
    context = "95 % interval of the video top-1 7.15 % to 59.07 %; guessing reaches 25.00 % by chance, 25.00 % with the"
    assert sum(f"({context} largest class alone)" in line for line in output) == 2  # after the epoch, and at the end
    assert output[-1].startswith("not learned: the video top-1 is no better than guessing. Check the labels")
    assert output[-1] in (config.run_dir / "train.log").read_text()
    assert f"{context} largest class alone. <b>{output[-1]}.</b>" in (config.run_dir / "report.html").read_text()
    assert main(["test", str(config.run_dir), "test.clips=1", "test.crops=1", "test.crop=32"]) == 0
    assert "largest class alone" in capsys.readouterr().out
    assert trials.overfitting(config, 8).train.epochs == 100  # of two steps each
    monkeypatch.setattr(trials, "OVERFIT_STEPS", 2)
    assert run_train(config, "--overfit", "8") == 0
    output = capsys.readouterr().out.splitlines()
    said = "overfit: NOT learned: video top-1 25.00 % of 8 videos at the limit of 1 epochs (train.epochs)"
    assert any(line.startswith(said) for line in output)


def test_a_full_disk_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_config(place, "full_disk", train={"epochs": 1})
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "train.log").symlink_to("/dev/full")
    assert run_train(config) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("gcvideo train: ")
    assert "No space left on device" in error[-1]
    assert not any("Traceback" in line for line in error)


@pytest.mark.slow
def test_results_are_told_of_weights_that_are_on_the_disk_only(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_config(place, "full_at_the_end", train={"epochs": 1})
    write = checkpoint.save_checkpoint

    def save(path: Path, state: dict[str, Any]) -> None:
        if state["epoch"] == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, state)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    assert run_train(config) == 2
    output, error = capsys.readouterr()
    assert "trained in" not in output
    assert "step_00000002.pt: No space left on device" in error.splitlines()[-1]
    assert not (config.run_dir / "results.json").exists()
    monkeypatch.undo()
    assert run_train(config, "--resume") == 0
    assert last_state(config)["epoch"] == 1


# --- watchfulness ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_names_the_videos(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_config(place, "nonfinite", train={"log_every": 6, "checkpoint_every": 1})
    inputs, forward = TrainStep._inputs, TrainStep._forward
    calls: list[list[int]] = []

    def note(self: TrainStep, batch: Any) -> Any:
        calls.append(batch.indices.tolist())
        return inputs(self, batch)

    def fails_at_step_3(self: TrainStep, *tensors: torch.Tensor) -> Any:
        loss, logits = forward(self, *tensors)
        return (loss * math.nan if len(calls) == 4 else loss), logits

    monkeypatch.setattr(TrainStep, "_inputs", note)
    monkeypatch.setattr(TrainStep, "_forward", fails_at_step_3)
    assert run_train(config) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not finite at step 3" in error
    (batch,) = json.loads((config.run_dir / "nonfinite.json").read_text())["batches"]
    assert batch["videos"] == [f"video_{index}.mp4" for index in calls[3]]
    assert (batch["step"], batch["epoch"], batch["lr"]) == (3, 1, metrics_lr(config, 3))
    assert last_state(config)["step"] == 3  # the checkpoint before the fatal step, with sound weights
    assert all(tensor.isfinite().all() for tensor in last_state(config)["model"].values())


def metrics_lr(config: RunConfig, step: int) -> float:
    return learning_rate(config.optim, epoch=step / 2, epochs=3, batch_size=4)
