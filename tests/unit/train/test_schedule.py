"""Steps of a training, and multigrid: shapes, phases, batches and batch norms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gcvideo.config import RunConfig
from gcvideo.data.dataset import ClipBatch
from gcvideo.errors import ConfigError
from gcvideo.train.batch_norm import SubBatchNorm3d, split_batch_norms
from gcvideo.train.optimizer import learning_rate
from gcvideo.train.schedule import Position, Schedule, Shape, long_shapes
from gcvideo.train.step import TrainStep
from gcvideo.train.trainer import Trainer
from tests.processes import wait, wait_for
from tests.training import last_state, make_videos, metrics, same_tensors, start, train_config, train_in_processes


def schedule(folder: Path, records: int, **train: Any) -> Schedule:
    return Schedule(train_config(folder, train=train), records)


def test_incomplete_batches_are_dropped_and_the_last_epoch_may_be_partial(tmp_path: Path) -> None:
    plan = schedule(tmp_path, 100, batch_size=16, epochs=2.5)
    assert [plan.steps(epoch) for epoch in range(plan.epochs)] == [6, 6, 3]
    assert plan.total_steps == 15
    assert schedule(tmp_path, 3, batch_size=16, epochs=4).total_steps == 4  # a set smaller than a batch
    assert schedule(tmp_path, 100, batch_size=16, epochs=4).total_steps == 24


def test_validation_comes_every_so_many_epochs_and_at_the_end(tmp_path: Path) -> None:
    for every, expected in ((0, [4]), (2, [1, 3, 4]), (1, [0, 1, 2, 3, 4])):
        plan = schedule(tmp_path, 8, epochs=5, val_every=every)
        assert [epoch for epoch in range(5) if plan.validates_after(epoch)] == expected


def test_a_run_resumes_at_the_same_time_under_another_schedule(tmp_path: Path) -> None:
    old = schedule(tmp_path, 100, batch_size=10, epochs=4)
    new = schedule(tmp_path, 100, batch_size=20, epochs=4)
    here = Position(step=25, epoch=2, epoch_step=5)
    there = new.take_over(here, old)
    assert (there.step, there.epoch, there.epoch_step) == (12, 2, 2)  # 2.5 is between steps 2 and 3 of 5
    assert new.take_over(Position(40, 4, 0), old) == Position(20, 4, 0)
    assert schedule(tmp_path, 100, batch_size=10, epochs=8).take_over(here, old) == here


def test_the_long_cycle_has_pyslowfasts_shapes() -> None:
    """(8B, T/4, S/sqrt 2), (4B, T/2, S/sqrt 2), (2B, T/2, S) and (B, T, S), for 8 frames of 224 x 224."""
    assert long_shapes(8, 224) == [Shape(8, 2, 158), Shape(4, 4, 158), Shape(2, 4, 224), Shape(1, 8, 224)]


def multigrid_config(
    folder: Path, kind: str, *, frames: int = 8, crop: int = 224, model: dict[str, Any] | None = None, **train: Any
) -> RunConfig:
    data = {"frames": frames, "stride": 8, "crop": crop, "short_side": [round(8 / 7 * crop), round(10 / 7 * crop)]}
    return train_config(folder, data=data, train={"multigrid": kind, **train}, model=model or {})


def test_shapes_share_the_epochs_by_their_batches(tmp_path: Path) -> None:
    shapes = Schedule(multigrid_config(tmp_path, "long", epochs=300, multigrid_cycles=2), 1000).shapes
    counts = {shape: shapes.count(shape) for shape in long_shapes(8, 224)}
    assert len(shapes) == 300
    # Steps are epochs over batch: the same for each shape of a cycle, but for the last phase.
    steps = [counts[shape] / shape.batch for shape in long_shapes(8, 224)[:3]]
    assert max(steps) - min(steps) <= 1
    assert shapes[-1] == Shape(1, 8, 224)
    assert shapes.index(Shape(1, 8, 224)) < 150  # the first cycle ends with full clips before the half
    assert Schedule(multigrid_config(tmp_path, "none", epochs=5), 1000).shapes == [Shape(1, 8, 224)] * 5


def test_phases_end_where_pyslowfasts_do(tmp_path: Path) -> None:
    """Its ``get_long_cycle_schedule``, run with STEPS [0, 98, 196], MAX_EPOCH 239 and EPOCH_FACTOR 1."""
    ends = [60, 90, 105, 113, 173, 203, 218, 239]
    shapes = Schedule(multigrid_config(tmp_path, "long", epochs=239, multigrid_cycles=2), 1000).shapes
    changes = [epoch for epoch in range(1, 239) if shapes[epoch] != shapes[epoch - 1]]
    assert [*changes, 239] == ends
    assert [shapes[epoch - 1] for epoch in ends] == long_shapes(8, 224) * 2


def test_fewer_frames_span_the_same_time_and_crops_show_as_much(tmp_path: Path) -> None:
    schedule = Schedule(multigrid_config(tmp_path, "long", epochs=300), 1000)
    data = schedule.data(0)
    assert (data.frames, data.stride, data.crop) == (2, 32, 158)
    assert data.short_side == (round(256 * 158 / 224), round(320 * 158 / 224))
    assert schedule.data(299) is schedule.config.data


def test_a_schedule_counts_steps_by_shape(tmp_path: Path) -> None:
    schedule = Schedule(multigrid_config(tmp_path, "long", epochs=7, multigrid_cycles=1, batch_size=10), 160)
    steps = {shape.batch: schedule.steps(epoch) for epoch, shape in enumerate(schedule.shapes)}
    assert steps == {8: 2, 4: 4, 2: 8, 1: 16}
    epoch = next(epoch for epoch, shape in enumerate(schedule.shapes) if shape.batch == 2)
    assert schedule.time(Position(99, epoch, 2)) == epoch + 0.25


@pytest.mark.parametrize(
    ("cycles", "refused"),
    [(1, [*range(1, 7)]), (3, [*range(1, 9), 10])],
)
def test_epochs_that_leave_out_a_shape_are_refused(tmp_path: Path, cycles: int, refused: list[int]) -> None:
    """With every other number of epochs no shape is missing and the last one is full."""
    train = {"multigrid": "long", "multigrid_cycles": cycles}
    config = train_config(tmp_path, data={"crop": 64, "short_side": [64, 72]}, train=train)
    for epochs in range(1, 30):
        config.train.epochs = epochs
        if epochs in refused:
            with pytest.raises(ConfigError, match=rf"epochs: {epochs} are too few .*cycles={cycles}$"):
                Schedule(config, 1000)
        else:
            shapes = Schedule(config, 1000).shapes
            assert shapes[-1] == Shape(1, 4, 64)
            assert set(shapes) == set(long_shapes(4, 64))


@pytest.mark.parametrize("kind", ["short", "both"])
def test_the_short_cycle_is_refused_in_training_alone(tmp_path: Path, kind: str) -> None:
    config = train_config(tmp_path, train={"multigrid": kind})  # so that an older network can still be tested
    with pytest.raises(ConfigError, match=rf"train\.multigrid: '{kind}': the short cycle is not offered"):
        Schedule(config, 1000)


def test_differences_of_frames_need_two_frames_in_every_shape(tmp_path: Path) -> None:
    def plan(frames: int, multigrid: str) -> Schedule:
        data, train = {"frames": frames, "crop": 64, "short_side": [64, 72]}, {"multigrid": multigrid, "epochs": 30}
        return Schedule(train_config(tmp_path, data=data, train=train, model={"frame_difference": True}), 1000)

    with pytest.raises(ConfigError, match=r"clips of one frame show nothing .* data\.frames=4, which train\.multigrid"):
        plan(4, "long")
    with pytest.raises(ConfigError, match=r"raise data\.frames=1$"):
        plan(1, "none")
    assert min(shape.frames for shape in plan(6, "long").shapes) == 2


def test_sub_batch_norm_measures_each_part_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, 5, 5) * torch.tensor([1.0, 1.0, 5.0, 5.0]).view(4, 1, 1, 1, 1)
    network = nn.Sequential(nn.BatchNorm3d(3))
    plain = nn.BatchNorm3d(3)
    split_batch_norms(network, 2)
    assert type(network[0]) is SubBatchNorm3d
    expected = torch.cat([plain(x[:2]), plain(x[2:])])
    assert torch.equal(network(x), expected)
    assert same_tensors(network[0].state_dict(), plain.state_dict())
    assert torch.equal(network.eval()(x), plain.eval()(x))
    split_batch_norms(network.train(), 1)
    assert torch.equal(network(x), plain.train()(x))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("multigrid"), count=16)


@pytest.mark.slow
def test_each_step_sees_clips_of_its_shape_and_batch_norms_measure_batches_of_the_original_size(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    parts: set[tuple[int, int]] = set()  # parts and clips of each batch that the first batch norm sees
    of_step, of_norm = TrainStep._inputs, SubBatchNorm3d.forward

    def look(self: TrainStep, batch: ClipBatch) -> tuple[torch.Tensor, ...]:
        shapes.append(tuple(batch.clips.shape))
        return of_step(self, batch)

    def look_at_norm(self: SubBatchNorm3d, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.shape[1] == 4:
            parts.add((self.splits, len(x)))
        return of_norm(self, x)

    monkeypatch.setattr(TrainStep, "_inputs", look)
    monkeypatch.setattr(SubBatchNorm3d, "forward", look_at_norm)
    data = {"crop": 64, "short_side": [64, 72], "workers": 0}
    train = {"epochs": 7, "multigrid": "long", "multigrid_cycles": 1, "batch_size": 2}
    config = train_config(place, "shapes", train=train, data=data)
    Trainer(config).fit()
    schedule = Schedule(config, 16)
    expected = []
    for epoch, shape in enumerate(schedule.shapes):
        expected += schedule.steps(epoch) * [(2 * shape.batch, 3, shape.frames, shape.crop, shape.crop)]
    assert len(set(expected)) >= 3
    assert shapes == expected
    assert len(parts) >= 2
    assert {clips // splits for splits, clips in parts} == {2}


@pytest.mark.slow
def test_a_multigrid_run_changes_shapes_and_rates_and_resumes_exactly(place: Path) -> None:
    train = {"multigrid": "long", "multigrid_cycles": 1, "epochs": 8, "batch_size": 2, "checkpoint_every": 3}
    data = {"crop": 64, "short_side": [64, 72]}
    whole = train_config(place, "whole", train=train, data=data)
    assert train_in_processes(whole) == [0]
    shapes = Schedule(whole, 16).shapes
    assert len(set(shapes)) >= 3
    for line in metrics(whole):
        shape = shapes[math.ceil(line["epoch"]) - 1]
        steps = sum(math.ceil(other["epoch"]) == math.ceil(line["epoch"]) for other in metrics(whole))
        before = line["epoch"] - 1 / steps
        rate = learning_rate(whole.optim, epoch=before, epochs=8, batch_size=2)
        assert line["lr"] == pytest.approx(rate * shape.batch)
    broken = train_config(place, "broken", train=train, data=data)
    running = start(broken, hold_after=7)
    wait_for(lambda: (broken.run_dir / "checkpoints" / "step_00000006.pt").exists(), running)
    running[0].kill()
    wait(running)
    assert train_in_processes(broken, resume=True) == [0]
    assert same_tensors(last_state(broken)["model"], last_state(whole)["model"])
