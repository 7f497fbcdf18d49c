"""Multigrid training: shapes, phases, batches and batch norms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from gcvideo.config import DataConfig
from gcvideo.data.loader import ClipBatch
from gcvideo.errors import ConfigError
from gcvideo.train.multigrid import (
    Shape,
    ShortStep,
    SubBatchNorm3d,
    batches_before,
    divide_batch_norms,
    epoch_shapes,
    long_shapes,
    merged,
    set_splits,
    shaped_data,
    short_steps,
    shrink,
    steps_in,
)
from gcvideo.train.optimizer import learning_rate
from gcvideo.train.schedule import Plan, Position
from gcvideo.train.step import Learner
from gcvideo.train.trainer import Trainer
from tests.training import last_state, make_videos, metrics, same_tensors, start, train_config, train_in_processes, wait
from tests.training import wait_for as wait_until


def test_the_long_cycle_has_pyslowfasts_shapes() -> None:
    """(8B, T/4, S/sqrt 2), (4B, T/2, S/sqrt 2), (2B, T/2, S) and (B, T, S), for 8 frames of 224 x 224."""
    assert long_shapes(8, 224) == [Shape(8, 2, 158), Shape(4, 4, 158), Shape(2, 4, 224), Shape(1, 8, 224)]


def test_the_short_cycle_grows_the_batch_as_it_shrinks_the_clips() -> None:
    assert short_steps(Shape(1, 8, 224), 224) == [ShortStep(4, 112), ShortStep(2, 158), ShortStep(1, 224)]
    assert short_steps(Shape(4, 4, 158), 224) == [ShortStep(2, 112), ShortStep(1, 158), ShortStep(1, 158)]


def test_shapes_share_the_epochs_by_their_batches() -> None:
    shapes = epoch_shapes(8, 224, epochs=300, cycles=2, short=False)
    counts = {shape: shapes.count(shape) for shape in long_shapes(8, 224)}
    assert len(shapes) == 300
    # Steps are epochs over batch: the same for each shape of a cycle, but for the last phase.
    steps = [counts[shape] / shape.batch for shape in long_shapes(8, 224)[:3]]
    assert max(steps) - min(steps) <= 1
    assert shapes[-1] == Shape(1, 8, 224)
    assert shapes.index(Shape(1, 8, 224)) < 150  # the first cycle ends with full clips before the half
    full = [Shape(1, 8, 224)] * 5
    assert epoch_shapes(8, 224, epochs=5, cycles=0, short=True) == full


@pytest.mark.parametrize(
    ("short", "ends"),
    [(False, [60, 90, 105, 113, 173, 203, 218, 239]), (True, [51, 76, 99, 110, 161, 186, 208, 239])],
)
def test_phases_end_where_pyslowfasts_do(short: bool, ends: list[int]) -> None:
    """Its ``get_long_cycle_schedule``, run with STEPS [0, 98, 196], MAX_EPOCH 239 and EPOCH_FACTOR 1."""
    shapes = epoch_shapes(8, 224, epochs=239, cycles=2, short=short)
    changes = [epoch for epoch in range(1, 239) if shapes[epoch] != shapes[epoch - 1]]
    assert [*changes, 239] == ends
    assert [shapes[epoch - 1] for epoch in ends] == long_shapes(8, 224) * 2


def test_fewer_frames_span_the_same_time_and_crops_show_as_much() -> None:
    data = shaped_data(DataConfig(frames=8, stride=8, crop=224, short_side=(256, 320)), Shape(8, 2, 158))
    assert (data.frames, data.stride, data.crop) == (2, 32, 158)
    assert data.short_side == (round(256 * 158 / 224), round(320 * 158 / 224))


def test_steps_and_batches_of_the_short_cycle_agree() -> None:
    cycle = [ShortStep(4, 112), ShortStep(2, 158), ShortStep(1, 224)]
    assert [batches_before(step, cycle) for step in range(7)] == [0, 4, 6, 7, 11, 13, 14]
    assert [steps_in(batches, cycle) for batches in (3, 4, 5, 6, 7, 13, 14)] == [0, 1, 1, 2, 3, 5, 6]
    assert steps_in(20, [ShortStep(1, 224)]) == 20


def test_a_plan_counts_steps_by_shape() -> None:
    plan = Plan(160, batch_size=10, epochs=3, shapes=[Shape(4, 4, 158), Shape(2, 4, 224), Shape(1, 8, 224)])
    assert [plan.steps(epoch) for epoch in range(3)] == [4, 8, 16]
    assert plan.time(Position(6, 1, 2)) == 1.25


def test_too_few_videos_for_the_short_cycle_are_refused(tmp_path: Path) -> None:
    shapes = [Shape(4, 4, 158), Shape(1, 8, 224)]
    with pytest.raises(ConfigError, match=r"short cycle needs 80 videos for its largest step, and data\.train has 79"):
        Plan(79, batch_size=10, epochs=2, shapes=shapes, short_crop=224)
    plan = Plan(80, batch_size=10, epochs=2, shapes=shapes, short_crop=224)
    assert plan.cycles == [short_steps(shape, 224) for shape in shapes]
    assert [plan.steps(epoch) for epoch in range(2)] == [1, 3]
    config = train_config(tmp_path, data={"crop": 64, "short_side": [64, 72]}, train={"multigrid": "short"})
    with pytest.raises(ConfigError, match=r"needs 16 videos .* has 8; lower train\.batch_size, or set"):
        Plan.of(config, 8)
    assert Plan.of(config, 16).steps(0) == 1


@pytest.mark.parametrize(
    ("kind", "cycles", "refused"),
    [("long", 1, [*range(1, 7)]), ("long", 3, [*range(1, 9), 10]), ("both", 1, [*range(1, 5)])],
)
def test_epochs_that_leave_out_a_shape_are_refused(tmp_path: Path, kind: str, cycles: int, refused: list[int]) -> None:
    """With every other number of epochs no shape is missing and the last one is full."""
    for epochs in range(1, 30):
        train = {"multigrid": kind, "multigrid_cycles": cycles, "epochs": epochs}
        config = train_config(tmp_path, data={"crop": 64, "short_side": [64, 72]}, train=train)
        if epochs in refused:
            least = next(number for number in range(epochs, 30) if number not in refused)
            with pytest.raises(ConfigError, match=rf"epochs: {epochs} are too few .*cycles={cycles}: .* give {least} "):
                Plan.of(config, 1000)
        else:
            shapes = Plan.of(config, 1000).shapes
            assert shapes[-1] == Shape(1, 4, 64)
            assert set(shapes) == set(long_shapes(4, 64))


def test_differences_of_frames_need_two_frames_in_every_shape(tmp_path: Path) -> None:
    def plan(frames: int, kind: str = "long") -> Plan:
        data = {"crop": 64, "short_side": [64, 72], "frames": frames}
        train = {"multigrid": kind, "epochs": 30}
        return Plan.of(train_config(tmp_path, data=data, train=train, model={"frame_difference": True}), 1000)

    with pytest.raises(ConfigError, match=r"one frame of data\.frames=4.* model\.frame_difference .* to 6 or more"):
        plan(4)
    assert min(shape.frames for shape in plan(6).shapes) == 2
    plan(4, "short")


def frames_batch(value: int, clips: int = 2) -> ClipBatch:
    return ClipBatch(
        torch.full((clips, 3, 2, 8, 8), value, dtype=torch.uint8), torch.full((clips,), value), torch.arange(clips), []
    )


def test_batches_are_merged_and_shrunk() -> None:
    batches = iter([frames_batch(value) for value in range(5)])
    first = next(merged(batches, ShortStep(2, 4)))
    assert first.clips.shape == (4, 3, 2, 4, 4)
    assert first.labels.tolist() == [0, 0, 1, 1]
    assert first.clips[:, 0, 0, 0, 0].tolist() == [0, 0, 1, 1]
    assert next(batches).labels.tolist() == [2, 2]  # no more was taken than the step needs


def test_shrinking_is_antialiased_and_keeps_channels_and_frames_apart() -> None:
    clips = torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8)
    clips[0, 1, 1, :, ::2] = 200  # stripes in one channel of one frame
    small = shrink(clips, 4)
    assert small[0, 1, 1].float().mean() == pytest.approx(100, abs=3)
    assert small[0, 1, 1, 1:-1, 1:-1].float().std() < 30  # no stripes are left
    small[0, 1, 1] = 0
    assert not small.any()


def test_sub_batch_norm_measures_each_part_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, 5, 5) * torch.tensor([1.0, 1.0, 5.0, 5.0]).view(4, 1, 1, 1, 1)
    network = nn.Sequential(nn.BatchNorm3d(3))
    plain = nn.BatchNorm3d(3)
    divide_batch_norms(network)
    assert type(network[0]) is SubBatchNorm3d
    set_splits(network, 2)
    expected = torch.cat([plain(x[:2]), plain(x[2:])])
    assert torch.equal(network(x), expected)
    assert same_tensors(network[0].state_dict(), plain.state_dict())
    assert torch.equal(network.eval()(x), plain.eval()(x))
    set_splits(network.train(), 1)
    assert torch.equal(network(x), plain.train()(x))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("multigrid"), count=32)


def test_batch_norms_of_a_run_measure_batches_of_the_original_size(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts and clips of each batch that the first batch norm sees in a step of the long cycle."""
    seen: list[tuple[int, int]] = []
    forward = SubBatchNorm3d.forward

    def look(self: SubBatchNorm3d, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.shape[1] == 4 and not any(pair[1] == len(x) for pair in seen):
            seen.append((self.splits, len(x)))
        return forward(self, x)

    monkeypatch.setattr(SubBatchNorm3d, "forward", look)
    data = {"crop": 64, "short_side": [64, 72], "workers": 0}
    train = {"epochs": 7, "multigrid": "long", "multigrid_cycles": 1, "batch_size": 2}
    Trainer(train_config(place, "splits", train=train, data=data)).fit()
    assert len(seen) >= 2
    assert {clips // splits for splits, clips in seen} == {2}


@pytest.mark.parametrize("kind", ["long", "short", "both"])
def test_each_step_sees_clips_of_its_shape(place: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    seen: list[tuple[int, ...]] = []
    forward = Learner.forward

    def look(self: Learner, batch: ClipBatch) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(tuple(batch.clips.shape))
        return forward(self, batch)

    monkeypatch.setattr(Learner, "forward", look)
    data = {"crop": 64, "short_side": [64, 72], "workers": 0}
    train = {"epochs": 7, "multigrid": kind, "multigrid_cycles": 1, "batch_size": 2}
    Trainer(train_config(place, f"shapes_{kind}", train=train, data=data)).fit()
    expected = []
    for shape in epoch_shapes(4, 64, epochs=7, cycles=0 if kind == "short" else 1, short=kind == "both"):
        batches = 32 // (2 * shape.batch)
        cycle = [ShortStep(1, shape.crop)] if kind == "long" else short_steps(shape, 64)
        parts = [cycle[step % len(cycle)] for step in range(steps_in(batches, cycle))]
        expected += [(2 * shape.batch * p.batches, 3, shape.frames, p.crop, p.crop) for p in parts]
    assert len(set(expected)) >= 3
    assert seen == expected


def test_a_multigrid_run_changes_shapes_and_rates_and_resumes_exactly(place: Path) -> None:
    train = {"multigrid": "both", "multigrid_cycles": 1, "epochs": 8, "batch_size": 2, "checkpoint_every": 3}
    data = {"crop": 64, "short_side": [64, 72]}
    whole = train_config(place, "whole", train=train, data=data)
    assert train_in_processes(whole) == [0]
    shapes = epoch_shapes(4, 64, epochs=8, cycles=1, short=True)
    assert len(set(shapes)) >= 3
    for line in metrics(whole):
        shape = shapes[math.ceil(line["epoch"]) - 1]
        steps = sum(math.ceil(other["epoch"]) == math.ceil(line["epoch"]) for other in metrics(whole))
        before = line["epoch"] - 1 / steps
        rate = learning_rate(whole.optim, epoch=before, epochs=8, batch_size=2)
        assert line["lr"] == pytest.approx(rate * shape.batch)
    broken = train_config(place, "broken", train=train, data=data)
    running = start(broken)
    wait_until(lambda: (broken.run_dir / "checkpoints" / "step_00000006.pt").exists(), running)
    running[0].kill()
    wait(running)
    assert train_in_processes(broken, resume=True) == [0]
    assert same_tensors(last_state(broken)["model"], last_state(whole)["model"])
