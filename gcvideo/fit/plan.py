"""Choices of a training by what the videos and the machine are, each with its reason; they become the run's config."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.config import RunConfig, load_config
from gcvideo.console import duration, printable, say
from gcvideo.fit.look import Videos

BASE = "custom/fit.yaml"
CLIP_SECONDS = 1.5  # of most single actions; whole shorter videos
SIDES = re.compile(r"(^|[\W_])(left|right|(anti|counter)?clockwise)($|[\W_])")
UNEQUAL = 1.5  # largest class over the smallest one, from which all classes come up equally often
FACTOR = 3.0  # that a range test may change the usual learning rate by
HEAD_SHARE, FEWEST_EPOCHS = 0.1, 4  # of the epochs train the head alone, of so many or more
EPOCHS, STEPS = 40, 1500  # as many as pay: of a set of hundreds of videos, of a smaller one


class Plan:
    """The config of a run in the making: what the user has set, what was chosen, and why.

    Args:
        name: of the run.
        overrides: the user's ``key=value``, which no choice changes.

    Attributes:
        config: with all choices so far.
        reasons: dotted key -> why it was chosen.
        chosen: dotted key -> value.
    """

    def __init__(self, name: str, overrides: Sequence[str]) -> None:
        self.overrides = [*overrides, f"name={json.dumps(name)}"]
        self.given = {override.partition("=")[0] for override in overrides}
        self.chosen: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self.config = self.variant({})  # a mistake in an override is found at once

    def choose(self, reason: str, values: dict[str, Any]) -> None:
        """Set fields by their dotted keys, print them and the reason. What the user set stays."""
        values = {key: value for key, value in values.items() if key not in self.given}
        self.chosen |= values
        self.reasons |= dict.fromkeys(values, reason)
        self.config = self.variant({})
        if values:
            say(f"  {', '.join(f'{key}={value}' for key, value in values.items())}: {printable(reason)}")

    def variant(self, values: dict[str, Any]) -> RunConfig:
        """The config with other values, also of what the user set."""
        chosen, others = ([f"{key}={json.dumps(value)}" for key, value in v.items()] for v in (self.chosen, values))
        return load_config(BASE, [*chosen, *self.overrides, *others])

    def explain(self, path: Path) -> None:
        """Put the reasons in front of the run's config file, as comments."""
        lines = [f"# {key}: {self.chosen[key]}, because: {printable(reason)}\n" for key, reason in self.reasons.items()]
        head = "# Chosen by gcvideo fit; gcvideo train with this file and another name= repeats the training.\n"
        path.write_text(head + "".join(lines) + path.read_text(encoding="utf-8"), encoding="utf-8")


def plan_clips(plan: Plan, videos: Videos) -> float:
    """Choose length, stride, rate and size of the clips, and how many test a video; returns the seconds of a clip."""
    data, assumed = plan.config.data, plan.config.data.frame_rate or 25.0  # the latter of folders of frames
    seen = [(r, row) for r, row in zip(videos.records, videos.rows, strict=True) if row.get("height")]
    times = [row["duration"] or row["frames"] / assumed if r.end is None else r.end - (r.start or 0) for r, row in seen]
    times, rates = times or [2.0], [row["fps"] or assumed for _, row in seen] or [assumed]
    side = float(np.median([min(row["height"], row["width"]) for _, row in seen] or [240]))
    short, middle, rate = float(np.quantile(times, 0.1)), float(np.median(times)), float(np.median(rates))
    if max(rates) > 1.1 * min(rates) and (data.frame_rate or all(row["fps"] for _, row in seen)):
        rate = round(min(rate, 30.0), 2)
        plan.choose(f"rates differ, from {min(rates):.4g} to {max(rates):.4g} frames/s", {"data.target_fps": rate})
    frames, span = data.frames, min(CLIP_SECONDS, short)
    why = "as long as one of ten videos or less" if span < CLIP_SECONDS else "which most actions need"
    why = f"{frames} frames of {rate:.4g} a second in {span:.2g} s, {why}"
    plan.choose(why, {"data.stride": max(1, int(span * rate / frames))})
    (low, high), crop = data.short_side, min(data.crop, max(48, int(side) // 16 * 16))
    if crop < low:
        sizes = {"data.short_side": [crop, round(crop * high / low)], "test.short_side": crop, "test.crop": crop}
        plan.choose(f"the videos have {side:.4g} pixels", {"data.crop": crop, **sizes})
    covered = frames * plan.config.data.stride / rate
    clips = int(np.clip(np.ceil(2 * middle / covered), 5, 10))
    plan.choose(f"half of the videos last {duration(middle)} or more, a clip {covered:.2g} s", {"test.clips": clips})
    return covered


def plan_training(plan: Plan, videos: Videos) -> None:
    """Choose classes, balance and flips by the videos, batch and workers by the machine."""
    train = [own for own, part in zip(videos.sets, videos.parts, strict=True) if part == "train"]
    counts = Counter(label for own in train for label in own).values()
    total, most, least = len(train), max(counts), min(counts)
    plan.choose("classes with videos to train on", {"model.num_classes": len(videos.classes)})
    if videos.multi_label:
        plan.choose("the list has several labels a video", {"model.multi_label": True})
    elif most >= UNEQUAL * least:
        reason = f"classes have {least} to {most} videos, and shall come up equally often"
        plan.choose(reason, {"data.augment.class_balanced": True})
    if sided := [name for name in videos.classes if SIDES.search(name.lower())]:
        plan.choose(f"mirrored, a video of {sided[0]!r} would show another class", {"data.flip": 0.0})
    cores, device = distributed.cores(), runtime.pick_device(plan.config.device)
    gpu = device.type != "cpu"
    batch = 8 if total < 64 else 32 if gpu and total > 1000 else 16
    plan.choose(f"{total} training videos", {"train.batch_size": batch})
    workers = min(16, max(1, cores - 1)) if gpu else min(8, max(1, cores // 2))
    plan.choose(f"{cores} cores{', which also compute' * (not gpu)}", {"data.workers": workers})
    say(f"  {runtime.describe(device, runtime.pick_precision(plan.config.train.precision, device))}")


def plan_rate(plan: Plan, found: dict[str, Any]) -> None:
    """Choose the learning rate that a range test suggests, near the usual one."""
    usual = plan.config.optim.lr
    rate = min(max(found["lr"] or usual, usual / FACTOR), usual * FACTOR)
    limits = "" if rate == found["lr"] else f"; kept within {FACTOR:g} times {usual:g}"
    plan.choose(f"range test: {found['reason']}{limits}", {"optim.lr": rate})
    plan.choose("a tenth of the rate", {"optim.warmup_start_lr": float(f"{rate / 10:.3g}")})


def plan_epochs(plan: Plan, *, videos: int, validates: bool, seconds: float, epoch_seconds: float) -> bool:
    """Choose epochs and how often to validate; returns whether time was short.

    Args:
        plan: of the run.
        videos: to train on.
        validates: whether there are videos to validate on.
        seconds: there are for the training.
        epoch_seconds: that an epoch takes with its validation.
    """
    steps = max(1, videos // plan.config.train.batch_size)
    most, fits = max(EPOCHS, STEPS / steps), seconds / epoch_seconds
    epochs = max(min(most, fits), 1 / steps)
    epochs = int(epochs) if epochs >= 2 else round(epochs, 3)
    epochs = plan.config.train.epochs if "train.epochs" in plan.given else epochs
    reason = f"an epoch takes {epoch_seconds:.3g} s, and {seconds:.0f} s are left" if fits < most else "more do not pay"
    plan.choose(reason, {"train.epochs": epochs, "optim.warmup_epochs": round(min(1.0, epochs / 10), 4)})
    if plan.config.model.weights and "train.freeze" not in plan.given and epochs >= FEWEST_EPOCHS:
        head = {"train.freeze": ["backbone"], "train.freeze_epochs": max(1, round(epochs * HEAD_SHARE))}
        plan.choose("the new head learns first, on the features that the weights give", head)
    if validates:
        plan.choose("about 15 validations", {"train.val_every": max(1, round(epochs / 15))})
        plan.choose("a third of them without a better accuracy: it has learned what it can", {"train.early_stop": 5})
    return fits < most
