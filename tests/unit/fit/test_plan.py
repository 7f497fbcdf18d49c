"""Choices follow from the videos; what the user sets stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gcvideo.config import load_config, save_config
from gcvideo.data.records import VideoRecord
from gcvideo.fit.look import Videos
from gcvideo.fit.plan import Plan, plan_clips, plan_epochs, plan_rate, plan_training


def videos(*, classes: tuple[str, ...] = ("jump", "run"), counts: tuple[int, ...] = (50, 50), **row: Any) -> Videos:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    row = {"duration": 8.0, "fps": 25.0, "height": 240, "width": 320, **row}
    rows = [
        {key: value[i % len(value)] if isinstance(value, list) else value for key, value in row.items()}
        for i in range(len(labels))
    ]
    records = [VideoRecord(f"{i}.mp4", label, str(i)) for i, label in enumerate(labels)]
    sets = [[label] for label in labels]
    return Videos(records=records, sets=sets, parts=["train"] * len(labels), rows=rows, classes=classes)


def planned(*overrides: str, **options: Any) -> Plan:
    plan = Plan("mine", overrides)
    plan_clips(plan, videos(**options))
    plan_training(plan, videos(**options))
    return plan


def test_clips_last_two_seconds_or_as_long_as_short_videos() -> None:
    assert planned().config.data.stride == 4
    assert planned(fps=60.0).config.data.stride == 11
    assert planned(duration=0.6).config.data.stride == 1
    assert planned(duration=0.1).config.data.stride == 1


def test_unlike_rates_are_counted_at_one() -> None:
    data = planned(fps=[60.0, 30.0, 10.0]).config.data
    assert (data.target_fps, data.stride) == (30.0, 5)
    assert planned().config.data.target_fps is None


def test_small_videos_get_small_crops() -> None:
    config = planned(height=64).config
    assert (config.data.crop, config.data.short_side, config.test.crop, config.test.short_side) == (
        64,
        (64, 80),
        64,
        64,
    )
    assert planned().config.data.crop == 80


def test_unbalanced_classes_come_up_equally_often() -> None:
    assert planned(counts=(80, 20)).config.data.augment.class_balanced
    assert not planned().config.data.augment.class_balanced


@pytest.mark.parametrize(
    ("name", "flip"), [("turn left", 0.0), ("swipe_right", 0.0), ("clockwise", 0.0), ("leftover", 0.5)]
)
def test_classes_with_a_side_are_not_mirrored(name: str, flip: float) -> None:
    assert planned(classes=("run", name)).config.data.flip == flip


def test_videos_that_there_was_no_time_to_open_do_no_harm() -> None:
    records = [VideoRecord(name, -1, name) for name in "ab"]
    empty = Videos(records=records, sets=[[0], [1]], parts=["train"] * 2, rows=[{}, {}], classes=("a", "b"))
    plan = Plan("mine", ())
    plan_clips(plan, empty)
    plan_training(plan, empty)
    assert plan.config.data.stride == 4


def test_what_the_user_sets_stays() -> None:
    plan = planned("data.stride=3", "data.crop=32", "data.augment=none")
    assert (plan.config.data.stride, plan.config.data.crop, plan.config.test.crop) == (3, 32, 32)
    assert not {"data.stride", "data.crop", "data.augment"} & plan.reasons.keys()


def test_epochs_fill_the_time_up_to_a_limit() -> None:
    plan = Plan("mine", ())
    given = {"videos": 160, "validates": True, "epoch_seconds": 10.0}
    assert plan_epochs(plan, seconds=125.0, **given)
    assert (plan.config.train.epochs, plan.config.train.early_stop, plan.config.train.val_every) == (12, 5, 1)
    assert not plan_epochs(plan, seconds=1e6, **given)
    assert plan.config.train.epochs == 150  # 1,500 steps of 16
    assert plan_epochs(plan, seconds=1e-3, **given)
    assert plan.config.train.epochs == pytest.approx(0.1)  # one step


def test_the_head_learns_first_where_weights_are_given_and_epochs_are_enough() -> None:
    for words, seconds, expected in (((), 250.0, 2), ((), 30.0, 0), (("model.weights=null",), 250.0, 0)):
        plan = Plan("mine", words)
        plan_epochs(plan, seconds=seconds, videos=160, validates=False, epoch_seconds=10.0)
        assert plan.config.train.freeze_epochs == expected
        assert plan.config.train.freeze == (["backbone"] if expected else [])
    plan = Plan("mine", ("train.freeze=[stem]",))
    plan_epochs(plan, seconds=250.0, videos=160, validates=False, epoch_seconds=10.0)
    assert (plan.config.train.freeze, plan.config.train.freeze_epochs) == (["stem"], 0)


def test_folders_of_frames_have_sizes_and_lengths_but_no_rate() -> None:
    row = {"duration": None, "fps": None, "frames": 10, "height": 60}
    plan = planned(**row)
    assert (plan.config.data.crop, plan.config.data.stride, plan.config.data.target_fps) == (48, 1, None)
    assert planned(**{**row, "fps": [None, 50.0], "duration": [None, 9.0]}).config.data.target_fps is None
    assert planned("data.frame_rate=10", **row).config.data.stride == 1


def test_a_range_test_changes_the_rate_by_three_at_most() -> None:
    for found, expected in ((2e-3, 2e-3), (1.0, 3e-3), (1e-6, 1e-3 / 3), (None, 1e-3)):
        plan = Plan("mine", ())
        plan_rate(plan, {"lr": found, "reason": "because"})
        assert plan.config.optim.lr == pytest.approx(expected)


def test_the_config_file_holds_the_reasons_and_loads(tmp_path: Path) -> None:
    plan, file = planned(classes=("run", "turn left\n")), tmp_path / "config.yaml"
    save_config(plan.config, file)
    plan.explain(file)
    assert "# data.flip: 0.0, because: mirrored" in file.read_text()
    assert load_config(file) == plan.config
