"""``gcvideo fit`` from beginning to end: look, split, choose, try, train, test, and say what came of it."""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gcvideo.config import RunConfig
from gcvideo.console import duration, percent, printable, say, sparing
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.scoring import accuracy, judge
from gcvideo.eval.trained import load_trained, run_test
from gcvideo.files import Journal, Row, write_json
from gcvideo.fit.look import Videos, find_twins, look
from gcvideo.fit.plan import Plan, plan_clips, plan_epochs, plan_rate, plan_training
from gcvideo.fit.split import find_groups, folds, hold_out
from gcvideo.prepare.index import write_index
from gcvideo.prepare.jobs import scan
from gcvideo.prepare.transcode import LIMITS, Encoding, costs, encode_video
from gcvideo.report.page import render, write_page
from gcvideo.report.pages import score_for_page, write_run_report
from gcvideo.train.dry_run import dry_run, find_lr
from gcvideo.train.run_folder import RunFolder
from gcvideo.train.trainer import Trainer

TEST_SHARE, VAL_SHARE, TRIAL_SHARE = 0.2, 0.1, 0.25
VALIDATED = 1000  # training videos or more; of fewer, each is worth more in training than for stopping early
LOOK_TIME, TRIAL_TIME, RATE_TIME = 0.1, 0.25, 0.05  # shares of the time for everything
TRIAL_EPOCHS, TRIAL_STEPS, FEWEST_STEPS = 10, 150, 20  # at most the larger of the first two, at least the last
TRIED = 50  # videos that a trial shall test
TEST_COST = 0.5  # time of a view of a test over that of a training clip
SLACK = 0.95  # of the time that is left
READING = 0.25  # share of reading in the time of a clip, from which small copies may pay
MOST_CHECKED = 1000  # training videos whose labels are looked at
PAUSE = 60.0  # seconds between lines of progress; the logs of trainings have all of it
INPUT = "model.frame_difference"
Parts = dict[str, Any]  # "train", "val", "test" -> places of videos


@dataclass(kw_only=True)
class Fit:
    """A user's videos on their way to a classifier.

    Attributes:
        plan: of the trainings.
        videos: that there are.
        groups: (V,) numbers of their groups.
        seconds: for everything.
        until: time of its end, by ``time.monotonic``.
        clip_seconds: of a training clip, measured.
        copies: video -> its small copy, if there is one.
    """

    plan: Plan
    videos: Videos
    groups: np.ndarray
    seconds: float
    until: float
    clip_seconds: float = 0.0
    copies: dict[str, str] = field(default_factory=dict)

    def parts(self, *, held_out: bool) -> Parts:
        """Places of the videos to train, validate and test on; the user's own parts are kept."""
        parts = {part: np.flatnonzero(np.array(self.videos.parts) == part) for part in ("train", "val", "test")}
        for part, share, least in (("test", TEST_SHARE, 0 if held_out else np.inf), ("val", VAL_SHARE, VALIDATED)):
            train = parts["train"]
            if not len(parts[part]) and len(train) >= least:
                held = hold_out(self.videos.labels[train], self.groups[train], share, seed=self.plan.config.seed)
                parts["train"], parts[part] = train[~held], train[held]
        say(f"  {', '.join(f'{len(places)} videos to {part}' for part, places in parts.items())}; no group is divided")
        return parts

    def write(self, places: np.ndarray, path: Path) -> str:
        """Write an index of some of the videos."""
        table, own = RecordTable.of_records([self.videos.records[i] for i in places]), self.videos
        table.classes, table.labels = own.classes, own.labels[places].astype(np.int32)
        if own.multi_label:
            table.sets = pa.array([own.sets[i] for i in places], pa.list_(pa.int32()))
        files = [os.path.abspath(self.copies.get(record.path, record.path)) for record in table]
        root = os.path.commonpath(list(map(os.path.dirname, files)))
        rows = [{**own.rows[i], "path": os.path.relpath(file, root)} for i, file in zip(places, files, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_index(path, table, rows, root=os.path.relpath(root, path.parent))
        return str(path)

    def config(self, parts: Parts, values: dict[str, Any], *, trial: str = "") -> RunConfig:
        """The config of a training on these parts, whose annotations are written into its folder; or of a trial."""
        values = {**values, "data.classes": None}
        if trial:
            values |= {"name": trial, "output": str(self.plan.config.run_dir / "trials")}
        if trial or not len(parts.get("val", ())):
            values["train.early_stop"] = 0
        folder = self.plan.variant(values).run_dir
        for part in ("train", "val", "test"):
            places = parts.get(part, ())
            file = self.write(places, folder / f"{part}.parquet") if len(places) else None
            values |= {f"data.{part}.annotation": file, f"data.{part}.root": None}
        return self.plan.variant(values)

    def measure(self, parts: Parts) -> float:
        """Measure the seconds of a training clip, its reading included, whose share of a step it returns."""
        cost = sparing(PAUSE)(dry_run)(self.config({"train": parts["train"]}, {}, trial="speed"))
        self.clip_seconds = 1 / cost["clips_per_second"]
        return float(cost["reading_seconds"] / (cost["reading_seconds"] + cost["compute_seconds"]))

    def copy_videos(self, parts: Parts) -> None:
        """Make small copies of the videos in the run's folder, where a few of them show that this saves time."""
        both = zip(self.videos.records, self.videos.rows, strict=True)
        lengths = {record.path: row.get("duration") or 0.0 for record, row in both if os.path.isfile(record.path)}
        folder = self.plan.config.run_dir / "videos"
        encoding = Encoding(short_side=max(self.plan.config.data.short_side))
        copies = {path: str(folder / str(number) / f"{Path(path).stem}.mp4") for number, path in enumerate(lengths)}
        journal = Journal(folder / "copies.jsonl", encoding._asdict())

        def copy_some(paths: list[str]) -> dict[str, str]:
            rows = scan(copy_one, paths, journal=journal, title="copies", **LIMITS)
            return {path: copies[path] for path, row in rows.items() if "error" not in row}

        def copy_one(path: str) -> Row:
            return {"frames": encode_video(path, copies[path], encoding)}

        began = time.monotonic()
        few = copy_some(sorted(sorted(lengths)[:: max(1, len(lengths) // 12)], key=lengths.__getitem__)[:3])
        cost = (time.monotonic() - began) / max(0.1, sum(lengths[path] for path in few)) * sum(lengths.values())
        old, new = costs([*few.items()])
        clips = (self.until - time.monotonic() - cost) / self.clip_seconds  # that can be trained on
        saved = clips * (old["clip_ms"] - new["clip_ms"]) / 1000 / max(1, self.plan.config.data.worker_count)
        if saved > 2 * cost:
            say(f"  small copies of the videos take {duration(cost)} to make, and save {duration(saved)}")
            self.copies = copy_some(list(lengths))
            self.measure(parts)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def epoch_seconds(self, train: np.ndarray, val: np.ndarray) -> float:
        """Of an epoch on these videos, and a validation."""
        return self.clip_seconds * (len(train) + TEST_COST * len(val))

    def try_inputs(self, parts: Parts) -> None:
        """Choose frames or differences of frames by short trainings on both, tested on videos held out of training."""
        train, batch, labels = parts["train"], self.plan.config.train.batch_size, self.videos.labels
        fold = folds(labels[train], self.groups[train], round(1 / TRIAL_SHARE), seed=self.plan.config.seed)
        pairs = [(train[fold != k], train[fold == k]) for k in np.unique(fold)]
        pairs = [(one, two) for one, two in pairs if len({*labels[one]}) == len(self.videos.classes)]
        epoch = max((self.epoch_seconds(one, two) for one, two in pairs), default=0)
        while pairs:
            seconds = TRIAL_TIME * self.seconds / 2 / len(pairs) - 3  # a start and a validation take some time
            epochs = round(min(max(TRIAL_EPOCHS, TRIAL_STEPS * batch / len(train)), seconds / epoch), 3)
            if sum(len(two) for _, two in pairs[1:]) < TRIED and epochs * len(train) > FEWEST_STEPS * batch:
                break
            pairs.pop()
        if INPUT in self.plan.given or not pairs:
            return self.plan.choose("there are too few videos, or too little time, to try frames", {INPUT: True})
        tried = sum(len(two) for _, two in pairs)
        say(f"trying differences of frames and frames: {epochs:.3g} epochs each, tested on {tried} videos")
        values = {"train.epochs": epochs, "train.val_every": 0, "optim.warmup_epochs": epochs / 10}
        results = {}
        for difference in (True, False):
            scored = list[Predictions]()
            for one, two in pairs:
                name = f"{'difference' if difference else 'frames'}{len(scored)}"
                config = self.config({"train": one, "val": two}, {**values, INPUT: difference}, trial=name)
                self.train(config, seconds)
                scored.append(Predictions.load(config.run_dir / "predictions_val.npz"))
            results[difference] = accuracy(Predictions.join(scored))
        found = f"{percent(results[True], 1)} with differences of frames, {percent(results[False], 1)} with frames"
        self.plan.choose(f"{tried} videos held out in trials: {found}", {INPUT: results[True] >= results[False]})

    @sparing(PAUSE)
    def train(self, config: RunConfig, seconds: float) -> None:
        """Train a run from its start, in about so many seconds."""
        Trainer(config, until=time.monotonic() + seconds).fit(overwrite=True)

    @sparing(PAUSE)
    def test(self, config: RunConfig, places: np.ndarray | None = None) -> Predictions:
        """Test a run on its own test videos; or on one view each of others, apart from its results."""
        folder, overrides = config.run_dir, []
        if places is not None:
            file = json.dumps(self.write(places, folder / "check" / "train.parquet"))
            folder, overrides = folder / "check", [f"data.test.annotation={file}", "test.clips=1", "test.crops=1"]
        predictions = run_test(load_trained(config.run_dir, overrides=overrides), output=folder, restart=True)[1]
        write_run_report(config.run_dir)
        return predictions

    def find_rate(self, parts: Parts) -> None:
        """Choose the learning rate by a range test, where there is time for one."""
        steps = int(min(60, RATE_TIME * self.seconds / self.clip_seconds / self.plan.config.train.batch_size))
        if steps >= 20 and "optim.lr" not in self.plan.given:
            config = self.config({"train": parts["train"]}, {}, trial="rate")
            plan_rate(self.plan, sparing(PAUSE)(find_lr)(config, steps=steps))


def fit(asked: argparse.Namespace, *, began: float) -> dict[str, Any]:
    """Make a classifier of a user's videos.

    Args:
        asked: the options of ``gcvideo fit``.
        began: time of the start, by ``time.monotonic``.

    Returns:
        the run, its choices, what to know of the videos, and the verdict; also in ``fit.json``.
    """
    plan = Plan(asked.name or Path(asked.source).expanduser().resolve().stem, asked.overrides)
    folder, data, name = plan.config.run_dir, plan.config.data, plan.config.name
    runs = {f"{name}_fold{k + 1}": 0 for k in range(asked.folds)}  # name -> what is added to the seed
    runs |= {f"{name}_s{n}" if n else name: n for n in reversed(range(asked.seeds))}
    taken = [run.path for run in (RunFolder(plan.variant({"name": own})) for own in runs) if run.holds_run()]
    if taken and not (asked.overwrite or asked.dry_run):
        fix = "give another --name, or replace it with --overwrite"
        if taken == [folder] and not (folder / "fit.json").exists():
            fix += f"; gcvideo train {shlex.quote(f'{folder}/config.yaml')} --resume, and then gcvideo test, finish it"
        raise ConfigError(f"{taken[0]} already holds a run: {fix}")
    root, until = asked.root or data.train.root, began + 60 * asked.minutes * LOOK_TIME
    videos = look(asked.source, test=asked.test, root=root, classes=data.classes, deadline=until)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".fit.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another gcvideo fit is at work here; give another --name") from None
        return carry_out(asked, plan, videos, runs, began)


def carry_out(
    asked: argparse.Namespace, plan: Plan, videos: Videos, runs: dict[str, int], began: float
) -> dict[str, Any]:
    """The rest of ``fit``: choose, try, train the runs of these names, of which the last is the classifier, test."""
    labels, folder, seed, total = videos.labels, plan.config.run_dir, plan.config.seed, 60 * asked.minutes
    groups = find_groups([r.path for r in videos.records], labels, videos.classes, twins=find_twins(videos))
    if groups.shown_by:
        say(f"{groups.numbers.max() + 1} groups of videos from one source, by {groups.shown_by}")
    else:
        videos.note("neither folders, names nor pictures show which videos come from one source: the split is random")
    for k in groups.torn:
        videos.note(f"{videos.classes[k]}: all videos seem to be of one source, so its accuracy may measure memory")
    say("choices:")
    seconds = plan_clips(plan, videos)
    plan_training(plan, videos)
    work = Fit(plan=plan, videos=videos, groups=groups.numbers, seconds=total, until=began + total)
    parts = work.parts(held_out=not asked.folds)
    reading = work.measure(parts)
    if not asked.dry_run:
        if reading > READING:
            work.copy_videos(parts)
        work.try_inputs(parts)
        work.find_rate(parts)
    trained = len(labels) if asked.folds else asked.seeds * len(parts["test"])
    views = trained * plan.config.test.clips * plan.config.test.crops + min(len(parts["train"]), MOST_CHECKED)
    testing = TEST_COST * work.clip_seconds * views + 3 * (len(runs) + 1)
    epoch = work.epoch_seconds(parts["train"], parts["val"])
    given = {"seconds": max(1.0, SLACK * (work.until - time.monotonic() - testing) / len(runs)), "epoch_seconds": epoch}
    short = plan_epochs(plan, videos=len(parts["train"]), validates=len(parts["val"]) > 0, **given)
    say(f"  about {duration(len(runs) * epoch * plan.config.train.epochs)} of training")
    results = {"run": str(folder), "choices": plan.chosen, "reasons": plan.reasons, "notes": videos.notes}
    shutil.rmtree(folder / "trials", ignore_errors=True)
    if asked.dry_run:
        say("dry run: nothing was trained")
        return results
    fold = folds(labels, groups.numbers, max(asked.folds, 1), seed=seed)
    tests: list[Predictions] = []
    for number, (run, more) in enumerate(runs.items()):
        own = parts
        if number < asked.folds:
            own = {"train": np.flatnonzero(fold != number), "test": np.flatnonzero(fold == number)}
            if not len(own["test"]) or {*labels[own["train"]]} != {*labels}:
                continue
        say(f"\ntraining {number + 1} of {len(runs)}: {run}")
        config = work.config(own, {"name": run, "seed": seed + more})
        work.train(config, max(1.0, (work.until - time.monotonic() - testing) / (len(runs) - number)))
        plan.explain(config.run_dir / "config.yaml")
        tests += [work.test(config)] if len(own["test"]) else []
    checked = np.random.default_rng(seed).permutation(own["train"])[:MOST_CHECKED]
    pooled = (Predictions.join(tests) if asked.folds else tests[-1]) if tests else None
    verdict = judge(pooled, tests, work.test(config, np.sort(checked)))
    counts = Counter(videos.classes[label] for i in parts["train"] for label in videos.sets[i])
    values = {**vars(asked), "v": verdict, "counts": counts, "short": short, "grouped": groups.shown_by, "plan": plan}
    values |= {"run": shlex.quote(str(folder)), "seconds": seconds, "notes": videos.notes}
    lines = [printable(line) for line in render("fit.txt.j2", **values).splitlines() if line.strip()]
    values |= {"lines": lines, "scored": score_for_page(pooled) if pooled is not None else None}
    write_page(folder / "fit.html", "fit.html.j2", title=f"The classifier {plan.config.name}", **values)
    write_json(folder / "fit.json", results := {**results, "verdict": verdict, "says": lines})
    say("\n".join(["", f"took {duration(time.monotonic() - began)}; the page: {folder / 'fit.html'}", *lines]))
    return results
