"""The training loop, to be read from top to bottom: build, fit, an epoch, figures, validate, save, finish."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.config import RunConfig, config_from_dict, config_to_dict
from gcvideo.console import Progress, duration, log_to, say, warn
from gcvideo.data.dataset import ClipDataset, ViewDataset
from gcvideo.data.loader import TrainLoader, eval_loader, train_loader
from gcvideo.data.prefetch import Prefetcher, Stopwatch
from gcvideo.data.splits import load_split, spread
from gcvideo.errors import CheckpointError, ConfigError, DataError
from gcvideo.eval.evaluator import evaluate
from gcvideo.files import write_json
from gcvideo.train import reports
from gcvideo.train.batch_norm import make_precise
from gcvideo.train.checkpoint import CheckpointFolder
from gcvideo.train.logger import Recorder, require_wandb
from gcvideo.train.multigrid import Shape, ShortStep, merged, shaped_data
from gcvideo.train.nan_guard import LossWatch
from gcvideo.train.optimizer import learning_rate
from gcvideo.train.resuming import differences, load_together, refuse_other_optimizer
from gcvideo.train.run_folder import RunFolder
from gcvideo.train.schedule import Plan, Position
from gcvideo.train.signals import Stopped, StopSignals
from gcvideo.train.step import Learner

KEEP_GOING, SAVE, STOP = range(3)
ELSEWHERE = "a signal to another process"


class Trainer:
    """Trains the network that a config describes. Under ``torchrun`` every process makes one.

    Args:
        config: of the run.
        videos: use only so many training videos, spread over the list; they are validated on, too.

    Raises:
        ConfigError: the config does not fit this machine or the data.
        DataError: the videos cannot be used.
    """

    def __init__(self, config: RunConfig, *, videos: int | None = None) -> None:
        self.config, self.videos = config, videos
        self.device = runtime.pick_device(config.device)
        self.micro_batch = micro_batch_size(config)
        self.folder = RunFolder(config)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints, keep=config.train.keep_checkpoints)
        runtime.tune(self.device)

    def fit(self, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
        """Train to the end, from the start or from the last checkpoint.

        Args:
            resume: go on with the run that the folder holds; where it holds none, start one.
            overwrite: remove what the folder holds and start anew.

        Returns:
            What ``results.json`` says of the training.

        Raises:
            Stopped: SIGTERM or SIGUSR1 came; a checkpoint has been saved.
        """
        with StopSignals() as self.stop:
            self.folder.open(resume=resume, overwrite=overwrite)
            with log_to(self.folder.log):
                self.build()
                if resume:
                    self._resume()
                self._claim_folder(overwrite=overwrite)
                step, wandb = self.position.step, self.config.train.wandb
                recorder = Recorder(self.folder.path, step=step, epoch=self.recorded, wandb=wandb)
                with recorder as self.recorder:
                    self._announce()
                    self._fit()
                return self._finish()

    def build(self) -> None:
        """Make the data sets, the network and everything that has a state; nothing is written."""
        config = self.config
        records = load_split(config, config.data.train, name="training")
        if records is None:
            raise ConfigError("data.train.annotation: not set; give a list of training videos")
        val = load_split(config, config.data.val, name="validation", classes=records.classes)
        if self.videos is not None:
            records = val = spread(records, self.videos)
        if val is not None and not (val.labels >= 0).any():
            raise DataError(
                f"{val.source}: gives no labels to validate on; leave data.val.annotation unset to do without"
            )
        require_wandb(config.train.wandb)
        self.quarantine: Path | None = None  # file of bad videos to honour and to add to
        self.train_set = ClipDataset(records, data=config.data, seed=config.seed)
        self.val_test = dataclasses.replace(config.test, clips=config.train.val_clips, crops=1)
        self.val_set = ViewDataset(val, data=config.data, test=self.val_test) if val is not None else None
        self.learner = Learner(config, self.device, classes=records.classes)
        fatal = self.folder.path / "nonfinite.json"
        self.watch = LossWatch(self.learner.meter, records, fatal, self.folder.checkpoints)
        self.plan = Plan.of(config, len(records))
        self.position = Position()
        self.recorded = 0.0  # the time in epochs that the checkpoint was written at
        self.clock = Stopwatch()
        self.validation: dict[str, float] = {}
        self.details: dict[str, Any] = {}
        self.best: dict[str, float] | None = None
        # id -> path and reason
        self.failures = {failure.id: (failure.path, failure.reason) for failure in self.train_set.quarantine.listed}

    def _claim_folder(self, *, overwrite: bool) -> None:
        """Only now, as a mistake that comes to light before is not to cost the old run."""
        self.folder.claim(overwrite=overwrite)
        self.quarantine = self.train_set.quarantine.path = self.folder.quarantine

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        position = self.position
        self._saved, self._first_step = time.monotonic(), position.step
        while position.epoch < self.plan.epochs:
            self._save_or_stop(due=False)  # a signal came while all was made ready, or at the end of a validation
            self._train_epoch()
            improved = False
            if self._validation_is_due():
                self._save()  # validation can take long: a run that is stopped in it goes on from here
                improved = self._validate()
            position.next_epoch()
            self._save(best=improved)

    def _train_epoch(self) -> None:
        """Train from the present position to the end of its epoch."""
        config, position, plan = self.config, self.position, self.plan
        steps, shape = plan.steps(position.epoch), plan.shapes[position.epoch]
        self.learner.train(splits=shape.batch)
        start = plan.batches(position.epoch, position.epoch_step)
        self.batches = Prefetcher(self.loader(start_step=start), self.device)
        clips = config.train.batch_size * shape.batch  # of a batch; the short cycle may take several for a step
        title, total = f"epoch {position.epoch + 1}/{plan.epochs}", plan.batches(position.epoch, steps)
        with (
            self.clock.training(),
            Progress(title, total=total * clips, start=start * clips, unit="clips") as progress,
        ):
            while position.epoch_step < steps:
                progress.advance(clips * self._train_step())
                position.advance()
                if position.step % config.train.log_every == 0 or position.epoch_step == steps:
                    self._log(progress)
                self._save_or_stop(due=self._checkpoint_is_due())

    def _train_step(self) -> int:
        """One step of the optimizer; returns how many batches it took."""
        config, position = self.config, self.position
        shape, part = self.plan.shapes[position.epoch], self.plan.short_step(position)
        self.lr = learning_rate(
            config.optim,
            epoch=self.plan.time(position),
            epochs=config.train.epochs,
            batch_size=config.train.batch_size,
        )
        self.lr *= shape.batch  # multigrid: in proportion to the batches of the long cycle
        whole = part == ShortStep(1, shape.crop)
        batches = self.batches if whole else merged(self.batches, part)
        for batch in self.learner.step(batches, number=position.step, lr=self.lr):
            self.watch.note(step=position.step, epoch=position.epoch, lr=self.lr, indices=batch.indices)
            self.failures.update({failure.id: (failure.path, failure.reason) for failure in batch.failures})
        return part.batches

    def loader(self, *, start_step: int = 0) -> TrainLoader:
        """This process's micro-batches of the present epoch, in the shape that its clips have."""
        config, shape, dataset = self.config, self.plan.shapes[self.position.epoch], self.train_set
        if shape != Shape(1, config.data.frames, config.data.crop):
            data = shaped_data(config.data, shape)
            dataset = ClipDataset(dataset.records, data=data, seed=config.seed, quarantine=self.quarantine)
        return train_loader(
            dataset,
            batch_size=self.micro_batch * shape.batch,
            accumulate=config.train.accumulate,
            seed=config.seed,
            epoch=self.position.epoch,
            start_step=start_step,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=config.data.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _log(self, progress: Progress) -> None:
        """Read the figures of the last steps: the only place in an epoch where the host waits for the device."""
        means = self.learner.meter.read()
        self.watch.check()
        steps, clips = means.pop("steps"), means.pop("clips")
        data, compute = (seconds / steps for seconds in self.clock.lap(self.batches.reset()))
        if not self.config.optim.clip_grad_norm:
            del means["grad_norm"]
        progress.show(loss=means["loss"], lr=self.lr, data=f"{1000 * data:.0f} ms", compute=f"{1000 * compute:.0f} ms")
        self.recorder.write(
            "train",
            step=self.position.step,
            epoch=self.plan.time(self.position),
            lr=self.lr,
            **means,
            clips_per_second=clips / steps / (data + compute),
            data_seconds=data,
            compute_seconds=compute,
            seconds=self.clock.seconds,
        )

    # --- validation --------------------------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        every, finished = self.config.train.val_every, self.position.epoch + 1
        return self.val_set is not None and (finished == self.plan.epochs or (every > 0 and finished % every == 0))

    def _validate(self) -> bool:
        """Clip and video accuracy on the validation split; returns whether it is the best so far."""
        assert self.val_set is not None
        began = time.monotonic()
        network = self.learner.tested_network
        self._measure_batch_norms()
        distributed.broadcast_tensors(list(network.buffers()))
        with Progress("validate", total=len(self.val_set), unit="videos") as progress:
            loader = eval_loader(
                self.val_set,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                workers=self.config.data.workers,
            )
            predictions = evaluate(
                network,
                self.stop.unless_received(loader),
                test=self.val_test,
                data=self.config.data,
                device=self.device,
                precision=self.learner.precision,
                on_video=lambda _: progress.advance(distributed.world_size()),
            )
        # A process that hears a signal ends its share early, the others theirs as usual: then all leave together.
        if distributed.agree(self.stop.left_off):
            raise Stopped(self.stop.received or ELSEWHERE)
        self.watch.check_scores(predictions)
        self.validation = reports.validation_figures(predictions)
        self.details = reports.validation_details(predictions)
        epoch, seconds = self.plan.time(self.position), time.monotonic() - began
        if distributed.is_main():
            reports.save_validation(self.folder.validation, predictions, self.val_set.records, epoch=epoch)
        self.recorder.write("val", step=self.position.step, epoch=epoch, **self.validation, seconds=seconds)
        say(f"epoch {self.position.epoch + 1}: {reports.accuracy_line(self.validation)}")
        top1 = self.validation["video_top1"]
        if math.isnan(top1) or (self.best is not None and not top1 > self.best["top1"]):
            return False  # NaN: no video could be read
        self.best = {"top1": top1, "epoch": self.position.epoch + 1, "step": self.position.step}
        return True

    def _measure_batch_norms(self) -> None:
        """Precise batch norm over the first batches of the epoch just trained."""
        epoch = self.position.epoch
        batches = self.plan.batches(epoch, self.plan.steps(epoch)) * self.config.train.accumulate
        count = min(self.config.train.precise_bn, batches)
        if count:
            learner = self.learner
            clips = (learner.prepare(batch.clips) for batch in Prefetcher(self.loader(), self.device))
            with learner.autocast():
                make_precise(learner.tested_network, clips, count)

    # --- saving and going on -----------------------------------------------------------------------------------------

    def _checkpoint_is_due(self) -> bool:
        train = self.config.train
        due = bool(train.checkpoint_every) and self.position.step % train.checkpoint_every == 0
        if distributed.is_main() and train.checkpoint_minutes:
            due = due or time.monotonic() - self._saved >= 60 * train.checkpoint_minutes
        return due

    def _save_or_stop(self, *, due: bool) -> None:
        """Save where it is time; save and leave where a signal came. All processes do the same at the same step."""
        order = distributed.agree(STOP if self.stop.received else SAVE if due else KEEP_GOING)
        if order != KEEP_GOING:
            with self.clock.paused():
                self._save()
        if order == STOP:
            distributed.barrier()  # the first to leave can be the end of them all, and rank 0 may still be writing
            raise Stopped(self.stop.received or ELSEWHERE)

    def _save(self, *, best: bool = False) -> None:
        self.watch.check()  # never save weights that a loss without a value has spoilt
        self.watch.check_weights(self.learner.network, self.learner.tested_network, step=self.position.step)
        for part in distributed.gather_objects(self.failures):
            self.failures.update(part)
        data, compute = self._waits()
        if distributed.is_main():
            state = {
                **self.learner.state(),
                **dataclasses.asdict(self.position),
                "best": self.best,
                "validation": self.validation,
                "details": self.details,
                "failures": [[id_, *failure] for id_, failure in sorted(self.failures.items())],
                "seconds": self.clock.seconds,
                "data_seconds": data,
                "compute_seconds": compute,
                **self._identity(),
            }
            self.checkpoints.save(state, best=best)
        self._saved = time.monotonic()

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with for the run to go on exactly."""
        records = self.train_set.records
        return {
            "config": config_to_dict(self.config),
            "classes": list(records.classes) if records.classes is not None else None,
            "fingerprint": records.fingerprint,
            "order": records.order,
            "records": len(records),
            "world_size": distributed.world_size(),
            "precision": self.learner.precision,
            "versions": runtime.versions(),
        }

    def _resume(self) -> None:
        """Go on from the newest checkpoint that can be read, saying what is not as it was."""
        state = load_together(self.checkpoints)
        if state is None:
            say(f"{self.checkpoints.folder} holds no checkpoint yet: starting from the beginning")
            return
        now = self._identity()
        refuse_other_optimizer(state, now)
        for line in differences(state, now):
            warn(line)
        try:
            self.learner.restore(state)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{state['path']}: does not fit the network of this config ({reason})") from None
        before = Plan.of(config_from_dict(state["config"], where=state["path"]), state["records"])
        position = Position(state["step"], state["epoch"], state["epoch_step"])
        self.position, self.recorded = self.plan.take_over(position, before), before.time(position)
        self.best, self.validation, self.details = state["best"], state["validation"], state["details"]
        self.failures |= {id_: (path, reason) for id_, path, reason in state["failures"]}
        data, compute = state.get("data_seconds", 0.0), state.get("compute_seconds", 0.0)
        self.clock = Stopwatch(state["seconds"], data=data, compute=compute)
        say(f"going on from {state['path']}: epoch {self.position.epoch + 1}, step {self.position.step}")

    # --- the first and the last word ---------------------------------------------------------------------------------

    def _announce(self) -> None:
        config = self.config
        parameters = sum(parameter.numel() for parameter in self.learner.network.parameters())
        say(f"run folder {self.folder.path}")
        say(f"{runtime.describe(self.device, self.learner.precision)}; {parameters:,} parameters")
        say(
            f"{len(self.train_set):,} training videos, {len(self.val_set) if self.val_set else 0:,} for validation; "
            f"{config.train.epochs:g} epochs, {self.plan.total_steps:,} steps of {config.train.batch_size} clips "
            f"({config.data.frames} x {config.data.crop} x {config.data.crop}, stride {config.data.stride})"
        )
        if config.data.quarantine is not None:
            listed = [len(videos.quarantine.listed) for videos in (self.train_set, self.val_set) if videos is not None]
            say(f"{config.data.quarantine} leaves {' and '.join(map(str, listed))} of them out")
        if self.val_set is None:
            warn("data.val.annotation is not set: this run trains without validation")

    def _waits(self) -> tuple[float, float]:
        """Seconds of data and of compute of the process that waited longest, which held up the others."""
        return max(distributed.gather_objects((self.clock.data, self.clock.compute)))

    def _finish(self) -> dict[str, Any]:
        """Write ``results.json`` and say how it went."""
        data, compute = self._waits()
        workers = self.config.data.workers
        results = {
            "name": self.config.name,
            "run": str(self.folder.path),
            "validation": {**self.validation, **self.details},
            "best": self.best,
            "epochs": self.config.train.epochs,
            "steps": self.position.step,
            "seconds": self.clock.seconds,
            "data_seconds": data,
            "compute_seconds": compute,
            "bound_by": reports.bound(data, compute, workers=workers),
            "failures": {"count": len(self.failures), "videos": reports.failed_videos(self.failures)},
            "versions": runtime.versions(),
        }
        if distributed.is_main():
            # The results of a test stay only where it was of this very network.
            tested = self.folder.test_results() if self.position.step == self._first_step else {}
            write_json(self.folder.results, {**tested, "training": results})
        if self.failures:
            warn(f"{len(self.failures)} training videos could not be read; {self.folder.results} names them")
        if self.validation:
            say(f"final: {reports.accuracy_line(self.validation)}")
        say(f"trained in {duration(self.clock.seconds)}; everything lies in {self.folder.path}")
        say(reports.bound_line(data, compute, workers=workers))
        return results


def micro_batch_size(config: RunConfig) -> int:
    """Clips in one forward pass of one process.

    Raises:
        ConfigError: ``train.batch_size`` does not divide.
    """
    processes, accumulate = distributed.world_size(), config.train.accumulate
    if config.train.batch_size % (processes * accumulate):
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} does not divide over {processes} processes x {accumulate} "
            "accumulation steps"
        )
    return config.train.batch_size // (processes * accumulate)
