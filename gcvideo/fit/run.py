"""``gcvideo fit`` from beginning to end: look, split, choose, try, train, test, and say what came of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.config import RunConfig
from gcvideo.console import duration, percent, printable, say
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.scoring import score
from gcvideo.eval.test_run import run_test
from gcvideo.eval.trained import load_trained
from gcvideo.files import write_json
from gcvideo.fit.look import look
from gcvideo.fit.plan import Plan, plan_clips, plan_epochs, plan_training
from gcvideo.fit.split import find_groups, folds, hold_out
from gcvideo.fit.verdict import join, judge
from gcvideo.prepare.index import write_index
from gcvideo.report.page import render, write_page
from gcvideo.report.pages import score_for_page, write_run_report
from gcvideo.report.pictures import thumbnails
from gcvideo.train.dry_run import dry_run
from gcvideo.train.run_folder import RunFolder
from gcvideo.train.trainer import Trainer

TEST_SHARE, VAL_SHARE = 0.2, 0.12
ENOUGH_TO_VALIDATE = 100  # training videos, below which none are held back for early stopping
LOOK_TIME, TRIAL_TIME, TRIAL_EPOCHS, TRIAL_FOLDS = 0.1, 0.25, 10, 3
TEST_COST = 0.5  # time of a view of a test over that of a training clip
SLACK = 0.85  # of the time that is left: the rest is for what cannot be foreseen
MOST_CHECKED = 1000  # training videos whose labels are looked at
INPUT = "model.frame_difference"
Parts = dict[str, Sequence[int]]  # "train", "val", "test" -> places of videos


class Fit:
    """The command at work.

    Args:
        source: folder or list of the videos.
        overrides: ``key=value`` that the user has chosen.
        test: folder or list of videos to test on; by default a fifth of all.
        root: folder of the videos of a list.
        name: of the run; by default that of the source.
        minutes: for everything.
        began: time of the start, by ``time.monotonic``.
        replace: whether a run of this name may be replaced.
    """

    def __init__(
        self,
        source: str,
        overrides: Sequence[str],
        *,
        test: str | None,
        root: str | None,
        name: str | None,
        minutes: float,
        began: float,
        replace: bool,
    ) -> None:
        self.began, self.minutes = began, minutes
        self.plan = Plan(name or Path(source).expanduser().resolve().stem, overrides)
        self.folder = self.plan.config.run_dir
        if RunFolder(self.plan.config).holds_run() and not replace:
            raise ConfigError(f"{self.folder} already holds a run: give another --name, or replace it with --overwrite")
        data, until = self.plan.config.data, began + 60 * minutes * LOOK_TIME
        self.videos = look(source, test=test, root=root or data.train.root, classes=data.classes, deadline=until)
        found = find_groups(self.videos.records, self.videos.classes, twins=self.videos.twins)
        self.groups, self.grouped = found.numbers, bool(found.found_by)
        if self.grouped:
            say(f"{len({*self.groups})} groups of {len(self.groups)} videos, by {found.found_by}: no split divides one")
        else:
            self.videos.note("folders, names and pictures show no groups of videos from one source: a random split")
        for k in found.torn:
            one = (
                "all its videos seem to come from one source, so its accuracy may measure memory; add videos of others"
            )
            self.videos.note(f"{self.videos.classes[k]}: {one}")
        say("choices:")
        plan_clips(self.plan, self.videos)
        plan_training(self.plan, self.videos)

    @property
    def seconds_left(self) -> float:
        """Of the time for everything."""
        return self.began + 60 * self.minutes - time.monotonic()

    def split(self, *, held_out: bool) -> Parts:
        """Places of the videos to train, validate and test on; the user's own parts are kept."""
        parts = {part: np.flatnonzero(np.array(self.videos.parts) == part) for part in ("train", "val", "test")}
        for part, share, needed in (("test", TEST_SHARE, held_out), ("val", VAL_SHARE, True)):
            rest = parts["train"]
            if needed and not len(parts[part]) and len(rest) >= (ENOUGH_TO_VALIDATE if part == "val" else 0):
                groups = np.unique(self.groups[rest], return_inverse=True)[1]
                held = hold_out(self.videos.labels[rest], groups, share, seed=self.plan.config.seed)
                parts[part], parts["train"] = rest[held], rest[~held]
        say(f"  {', '.join(f'{len(places)} videos to {part}' for part, places in parts.items())}")
        return {part: places.tolist() for part, places in parts.items()}

    def write(self, places: Sequence[int], path: Path) -> str:
        """Write an index of some of the videos."""
        table = RecordTable.of_records([self.videos.records[i] for i in places])
        table.classes = self.videos.classes
        paths = [os.path.abspath(self.videos.records[i].path) for i in places]
        root = os.path.commonpath([os.path.dirname(place) for place in paths])
        rows = [{**self.videos.rows[i], "path": os.path.relpath(p, root)} for i, p in zip(places, paths, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index(path, table, rows, root=os.path.relpath(root, path.parent))
        return str(path)

    def config(self, parts: Parts, values: dict[str, Any]) -> RunConfig:
        """The config of a training on these parts, whose annotations are written into its folder."""
        folder = self.plan.variant(values).run_dir
        files = {
            part: self.write(places, folder / f"{part}.parquet") if places else None for part, places in parts.items()
        }
        splits = {f"data.{part}.annotation": file for part, file in files.items()}
        return self.plan.variant(
            {**values, **splits, **{f"data.{part}.root": None for part in parts}, "data.classes": None}
        )

    def try_inputs(self, parts: Parts) -> float:
        """Choose frames or differences of frames by short trainings; returns the seconds of a training clip.

        They are compared on the validation videos, or where there are few of these on the training videos in folds.
        """
        train, batch, labels = np.array(parts["train"]), self.plan.config.train.batch_size, self.videos.labels
        place = {"output": str(self.folder / "trials"), "name": "speed"}
        with contextlib.redirect_stdout(io.StringIO()):
            seconds = 1 / float(
                dry_run(self.config({"train": parts["train"], "val": [], "test": []}, place))["clips_per_second"]
            )
        pairs = [(parts["train"], parts["val"])]
        if len(parts["val"]) < VAL_SHARE * ENOUGH_TO_VALIDATE:
            groups = np.unique(self.groups[train], return_inverse=True)[1]
            fold = folds(labels[train], groups, TRIAL_FOLDS, seed=self.plan.config.seed)
            pairs = [(train[fold != k].tolist(), train[fold == k].tolist()) for k in range(TRIAL_FOLDS)]
            pairs = [(one, two) for one, two in pairs if two and len({*labels[one]}) == len(self.videos.classes)]
        if INPUT in self.plan.given or not pairs:
            return seconds
        each = SLACK * (TRIAL_TIME * 60 * self.minutes / 2 / len(pairs) - 2)  # a start takes some two seconds
        clips, tried = len(pairs[0][0]) + TEST_COST * len(pairs[0][1]), sum(len(two) for _, two in pairs)
        epochs = round(min(max(TRIAL_EPOCHS, 150 * batch / len(pairs[0][0])), each / seconds / clips), 3)
        if epochs * len(pairs[0][0]) < 3 * batch:
            self.plan.choose("there is no time to try frames", {INPUT: True})
            return seconds
        say(f"trying differences of frames and frames, {epochs:.3g} epochs each, {tried} videos held out of them")
        results = {}
        schedule = {"train.epochs": epochs, "train.val_every": 0, "optim.warmup_epochs": epochs / 10}
        for difference in (True, False):
            scored = []
            for number, (one, two) in enumerate(pairs):
                place["name"] = f"{'difference' if difference else 'frames'}{number}"
                config = self.config({"train": one, "val": two, "test": []}, {**place, **schedule, INPUT: difference})
                self.train(config)
                scored.append(Predictions.load(config.run_dir / "predictions_val.npz"))
            results[difference] = float(score(join(scored)).right.mean())
        found = f"{percent(results[True], 1)} with differences of frames, {percent(results[False], 1)} with frames"
        self.plan.choose(f"{tried} videos held out in short trials: {found}", {INPUT: results[True] >= results[False]})
        return seconds

    def train(self, config: RunConfig) -> None:
        """Train a run from its start."""
        Trainer(config).fit(overwrite=True)
        write_run_report(config.run_dir)

    def test(self, config: RunConfig, places: Sequence[int] = ()) -> Predictions:
        """Test a run on its own test videos, or on one view each of these, apart from its results."""
        folder, overrides = config.run_dir, []
        if places:
            folder = folder / "check"
            file = self.write(places, folder / "train.parquet")
            overrides = [f"data.test.annotation={json.dumps(file)}", "test.clips=1", "test.crops=1"]
        predictions = run_test(load_trained(config.run_dir, overrides=overrides), output=folder, restart=True)[1]
        write_run_report(config.run_dir)
        return predictions


def fit(*, seeds: int = 1, count: int = 0, only_look: bool = False, **options: Any) -> dict[str, Any]:
    """Make a classifier of a user's videos.

    Args:
        seeds: how many times to train.
        count: folds of a cross-validation, 0 for none: a training for each, then one on all videos.
        only_look: look, plan and estimate only.
        options: of ``Fit``.

    Returns:
        the run, its choices, what to know of the videos, and the verdict; also in ``fit.json``.
    """
    work = Fit(**options)
    plan, videos, seed = work.plan, work.videos, work.plan.config.seed
    parts = work.split(held_out=not count)
    seconds = work.try_inputs(parts)
    trainings, test = count + 1 if count else seeds, plan.config.test
    tested = len(videos.records) if count else seeds * len(parts["test"])
    views = tested * test.clips * test.crops + min(len(parts["train"]), MOST_CHECKED)
    left = max(1.0, SLACK * (work.seconds_left - TEST_COST * seconds * views - 3)) / trainings
    epoch = seconds * (len(parts["train"]) + TEST_COST * len(parts["val"]))
    short = plan_epochs(plan, videos=len(parts["train"]), seconds=left, epoch_seconds=epoch)
    say(f"  about {duration(trainings * epoch * plan.config.train.epochs)} of training")
    results = {"run": str(work.folder), "choices": plan.chosen, "reasons": plan.reasons, "notes": videos.notes}
    if only_look:
        shutil.rmtree(work.folder / "trials", ignore_errors=True)
        say("dry run: nothing was trained")
        return results
    name, fold = work.folder.name, folds(videos.labels, work.groups, max(count, 1), seed=seed)
    runs = [(f"{name}_s{n}" if n else name, seed + n, parts) for n in range(seeds)]
    for k in range(count):
        rest, out = np.flatnonzero(fold != k).tolist(), np.flatnonzero(fold == k).tolist()
        if out and len({*videos.labels[rest]}) == len(videos.classes):
            runs.insert(-1, (f"{name}_fold{k + 1}", seed, {"train": rest, "val": [], "test": out}))
    tests = []
    for number, (run, own_seed, own) in enumerate(runs, 1):
        say(f"\ntraining {number} of {len(runs)}: {run}")
        config = work.config(own, {"name": run, "seed": own_seed})
        work.train(config)
        plan.explain(config.run_dir / "config.yaml")
        tests += [work.test(config)] if own["test"] else []
    chosen = np.random.default_rng(seed).permutation(own["train"])[:MOST_CHECKED]
    verdict = judge(tests, work.test(config, np.sort(chosen).tolist()))
    shutil.rmtree(work.folder / "trials", ignore_errors=True)
    counts = Counter(videos.classes[videos.records[i].label] for i in parts["train"])
    by_run, stride = verdict["by_run"] or [0.0], plan.config.data.stride
    values = {"v": verdict, "counts": counts, "middle": statistics.median(counts.values()), "minutes": work.minutes}
    values |= {
        "short": short,
        "grouped": work.grouped,
        "folds": count,
        "stride": stride,
        "mean": statistics.fmean(by_run),
    }
    values |= {"deviation": statistics.stdev([*by_run, *by_run[:1]][: max(2, len(by_run))])}
    rate = plan.config.data.target_fps or statistics.median([row.get("fps", 25.0) for row in videos.rows])
    values |= {"seconds": plan.config.data.frames * stride / rate}
    lines = [printable(line) for line in render("fit.txt.j2", **values).splitlines() if line.strip()]
    command = f"gcvideo predict NEW_VIDEOS --checkpoint {work.folder} --html page.html"
    page: dict[str, Any] = {"v": verdict, "lines": lines, "notes": videos.notes, "command": command}
    page["suspects"] = [{**row, "pictures": thumbnails(row["path"], 8)} for row in verdict["suspects"]]
    page["choices"] = [{"key": key, "value": plan.chosen[key], "because": why} for key, why in plan.reasons.items()]
    page["scored"] = score_for_page(join(tests)) if verdict["videos"] else None
    write_page(work.folder / "fit.html", "fit.html.j2", title=f"The classifier {name}", **page)
    write_json(work.folder / "fit.json", results := {**results, "verdict": verdict, "says": lines})
    took = duration(60 * work.minutes - work.seconds_left)
    for line in ["", f"took {took}; the page: {work.folder / 'fit.html'}", *lines, f"use it: {command}"]:
        say(line)
    return results
