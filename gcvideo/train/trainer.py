"""Trainer: the training loop, from top to bottom: build, resume, step, log, save, validate, report."""

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.config import RunConfig, import_object
from gcvideo.console import Progress, log_to, say
from gcvideo.data.dataset import ClipBatch, ClipDataset, ViewDataset
from gcvideo.data.loader import Loader, Prefetcher, eval_loader, train_loader
from gcvideo.data.splits import load_split, spread
from gcvideo.errors import ConfigError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.scoring import details
from gcvideo.files import write_json
from gcvideo.train import logger as log
from gcvideo.train.batch_norm import measure_batch_norms
from gcvideo.train.checkpoint import CheckpointFolder
from gcvideo.train.logger import MetricsLogger
from gcvideo.train.nan_guard import NonFiniteGuard
from gcvideo.train.run_folder import RunFolder
from gcvideo.train.schedule import Schedule
from gcvideo.train.signals import Stopped, StopSignals
from gcvideo.train.state import TrainState
from gcvideo.train.step import Loss, TrainStep, micro_batch_size

CONTINUE, SAVE, STOP = range(3)


@dataclass(frozen=True)
class Parts:
    """Everything that ``Trainer.build`` makes; all that changes during a training and is saved is in ``state``."""

    train_set: ClipDataset
    val_set: ViewDataset | None
    schedule: Schedule
    step: TrainStep
    state: TrainState
    guard: NonFiniteGuard


class Trainer:
    """Trains the network of a config. Under ``torchrun`` every process makes one.

    Args:
        config: of the run.
        model: network to train instead of the config's; maps clips (N, 3, T, H, W), float, to logits (N, K). Its
            checkpoints hold its state dict, but ``gcvideo test`` cannot build it: for that, give ``model.arch`` a
            dotted path instead.
        loss: maps logits (N, K), float32, and labels (N,) int64, or (N, K) float where clips are mixed, to a scalar.
        dataset: training clips instead of those of ``data.train`` or ``data.dataset``: a ``ClipDataset``, or a subclass
            with a ``sample`` of your own. It does not work with ``train.multigrid``, which changes the clips.
        overfit: train and validate on so many training videos, spread over the list, until all are learned.
        until: time, by ``time.monotonic``, when it must be over: where epochs take too long, they become fewer.

    Raises:
        ConfigError: the config does not fit this machine, or contradicts itself.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        model: nn.Module | None = None,
        loss: Loss | None = None,
        dataset: ClipDataset | None = None,
        overfit: int | None = None,
        until: float = math.inf,
    ) -> None:
        self.config, self.model, self.loss, self.dataset = config, model, loss, dataset
        self.overfit, self.until = overfit, until
        if loss is not None:  # for the checks of what belongs to cross entropy
            dataclasses.replace(config.train, loss="Trainer:loss")
        self.device, self.micro_batch = runtime.pick_device(config.device), micro_batch_size(config)
        if dataset is None and config.data.dataset is not None:
            self.dataset = import_object(config.data.dataset, key="data.dataset")(data=config.data, seed=config.seed)
        if self.dataset is not None and (overfit is not None or config.train.multigrid != "none"):
            raise ConfigError("data.dataset, Trainer(dataset=...): does not work with --overfit, nor train.multigrid")
        self.folder = RunFolder(config)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints, keep=config.train.keep_checkpoints)
        self.val_test = dataclasses.replace(config.test, clips=config.train.val_clips, crops=1)
        self.agree_late = distributed.LateAgreement()
        self.pool: Any = None  # the worker processes of the loaders of all epochs
        self.share: dict[str, Any] = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        runtime.tune(self.device)

    def fit(self, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
        """Train to the end, from the start or from the last checkpoint.

        Args:
            resume: continue the run in the folder; start one if there is none.
            overwrite: remove the run in the folder, but for its log and foreign files, and start again.

        Returns:
            The training part of ``results.json``.

        Raises:
            Stopped: a signal came; a checkpoint has been saved.
            GcvideoError: config, data or checkpoint cannot be used, or the training has become non-finite.
        """
        with StopSignals() as stop, contextlib.ExitStack() as stack:
            stack.callback(self.folder.leave)
            stack.callback(self.checkpoints.wait)
            stack.callback(lambda: self.pool.close() if self.pool else None)
            distributed.on_main(lambda: self.folder.open(resume=resume, overwrite=overwrite))
            with log_to(self.folder.log):
                parts = self.build(quarantine=self.folder.quarantine)
                state = parts.state
                if resume and (checkpoint := self.checkpoints.load_latest()):
                    state.load_state_dict(checkpoint)
                distributed.on_main(lambda: self.folder.claim(overwrite=overwrite))
                first_step, wandb = state.position.step, self.config.train.wandb
                logger = MetricsLogger(self.folder.path, step=first_step, epoch=state.resumed_at, wandb=wandb)
                with contextlib.closing(logger), contextlib.ExitStack() as last:
                    if distributed.world_size() == 1:  # others would not take part in a check
                        last.callback(parts.step.meter.finish)  # what a NaN has caused is told as the NaN
                    log.announce(state, parts.train_set, parts.val_set)
                    self._train(parts, stop, logger)
                distributed.on_main(self.checkpoints.wait)  # results are of weights that are on the disk
                results = log.training_results(state)
                if distributed.is_main():  # the results of a test are kept if they are of this very network
                    tested = self.folder.test_results() if state.position.step == first_step else {}
                    write_json(self.folder.results, {**tested, "training": results})
                log.summarize(state, results, overfit=self.overfit is not None)
                return results

    def build(self, *, quarantine: Path | None = None) -> Parts:
        """Build data sets, network, optimizer and state; nothing is written.

        Args:
            quarantine: the run's own list of bad videos, which is read and extended during the training.
        """
        config, own = self.config, self.dataset
        records = load_split(config, config.data.train, name="training") if own is None else own.records
        if records is None:
            raise ConfigError("data.train.annotation: not set; give a list of training videos")
        val = load_split(config, config.data.val, name="validation", classes=records.classes)
        if val is None and config.train.early_stop:
            raise ConfigError("train.early_stop: counts validations; give data.val.annotation")
        if self.overfit is not None:
            records = val = spread(records, self.overfit)
        if config.train.wandb is not None:
            log.import_wandb()
        schedule = Schedule(config, len(records))
        train_set = own or ClipDataset(records, data=config.data, seed=config.seed, quarantine=quarantine)
        val_set = ViewDataset(val, data=config.data, test=self.val_test) if val is not None else None
        step = TrainStep(
            config, self.device, model=self.model, loss=self.loss, classes=records.classes, labels=records.labels
        )
        state = TrainState(config, step, schedule, records)
        state.add_failures(train_set.quarantine.listed)
        guard = NonFiniteGuard(step.meter, records, self.folder.path / "nonfinite.json")
        return Parts(train_set, val_set, schedule, step, state, guard)

    def batches(self, parts: Parts, epoch: int, **limits: int) -> Prefetcher:
        """Micro-batches of ``loader`` on the device; the workers begin to read them after those asked for before."""
        loader = self.loader(parts, epoch, **limits)
        self.pool = self.pool or loader.make_pool()
        return Prefetcher(loader.stream(self.pool), self.device)

    def loader(self, parts: Parts, epoch: int, **limits: int) -> Loader[ClipBatch]:
        """Micro-batches of this process in an epoch, from ``start_step`` on, at ``most`` so many. All must call it."""
        return train_loader(
            parts.train_set,
            batch_size=self.micro_batch * parts.schedule.shapes[epoch].batch,
            accumulate=self.config.train.accumulate,
            seed=self.config.seed,
            epoch=epoch,
            pin_memory=runtime.has_streams(self.device),
            workers=self.config.data.worker_count,
            data_of=parts.schedule.data if self.dataset is None else None,
            **limits,
            **self.share,
        )

    def _train(self, parts: Parts, stop: StopSignals, logger: MetricsLogger) -> None:
        """Train every step of every epoch that is left."""
        config, schedule, step, state = self.config, parts.schedule, parts.step, parts.state
        position, ahead = state.position, None
        while position.epoch < schedule.epochs and not state.stops_early:
            if self.overfit and state.validation and log.deciding(state.validation)[2] == 1:
                break
            self._save_or_stop(parts, stop)  # a signal came during the start, or at the end of a validation
            epoch, steps = position.epoch, schedule.steps(position.epoch)
            step.train_mode(epoch=epoch, batch_norm_splits=schedule.shapes[epoch].batch)
            batches = ahead or self.batches(parts, epoch, start_step=position.epoch_step)
            ahead = self.batches(parts, epoch + 1) if epoch + 1 < schedule.epochs else None  # read behind these
            clips = config.train.batch_size * schedule.shapes[epoch].batch
            title, total, start = f"epoch {epoch + 1}/{schedule.epochs}", steps * clips, position.epoch_step * clips
            state.clock.start_lap()
            with Progress(title, total=total, start=start, unit="clips") as progress:
                while position.epoch_step < steps:
                    lr = schedule.learning_rate(position)
                    used = step.step(batches, number=position.step, lr=lr)
                    parts.guard.note(used, position, lr=lr)
                    state.add_failures(failure for batch in used for failure in batch.failures)
                    progress.advance(clips)
                    position.step += 1
                    position.epoch_step += 1
                    if position.step % config.train.log_every == 0 or position.epoch_step == steps:
                        self._log(parts, batches, logger, progress, lr)
                    self._save_or_stop(parts, stop, step=position.step)
            left = (self.until - time.monotonic()) / (state.clock.seconds / (epoch + 1))  # epochs that still fit
            if distributed.agree(int(max(left, 0) < schedule.epochs - epoch - 1)):
                schedule.shorten(epoch + 1 + max(0, distributed.agree(int(left))))
                say(f"time is short: {schedule.epochs} epochs instead of {config.train.epochs:g}")
            val_set = parts.val_set if schedule.validates_after(epoch) else None
            if val_set is not None:
                self._save(parts)  # validation can take long: a run that is stopped in it resumes from here
                self._measure_batch_norms(parts)
            improved = val_set is not None and self._validate(parts, val_set, stop, logger)
            position.epoch, position.epoch_step = epoch + 1, 0
            self._save(parts, best=improved)

    def _log(self, parts: Parts, batches: Prefetcher, logger: MetricsLogger, progress: Progress, lr: float) -> None:
        """Log the means of the last steps; on a GPU one log late, so that the host need not wait for the device."""
        clock, position, schedule = parts.state.clock, parts.state.position, parts.schedule
        clips = self.config.train.batch_size * schedule.shapes[position.epoch].batch
        late = runtime.has_streams(self.device) and position.epoch_step < schedule.steps(position.epoch)
        data, compute = clock.lap(batches.reset(finish=not late))
        step, laps = position.step, clock.laps
        at = {"epoch": schedule.time(position), "lr": lr, "seconds": clock.seconds}

        def write(means: dict[str, float]) -> None:
            parts.guard.check_losses(means["loss"], before=step)
            row = logger.write_steps(means, data, compute, step=step, **at)
            if laps == 2:  # the first one warms up
                reading = log.reading_seconds(self.config, self.pool, waited=row["data_seconds"])
                say(log.bounds(clips, reading, row["compute_seconds"], data=self.config.data))
            progress.advance(0, loss=row["loss"], lr=lr, **log.times(row))

        parts.step.meter.read_later(write, leave=int(late))

    def _validate(self, parts: Parts, val_set: ViewDataset, stop: StopSignals, logger: MetricsLogger) -> bool:
        """Compute clip and video accuracy on the validation videos; returns whether it is the best so far."""
        began, state, network = time.monotonic(), parts.state, parts.step.tested_network
        distributed.broadcast_tensors(list(network.buffers()))
        with Progress("validate", total=len(val_set), unit="videos") as progress:
            loader = eval_loader(val_set, workers=self.config.data.worker_count, **self.share)
            predictions = evaluate(
                network,
                stop.unless_received(loader),
                test=self.val_test,
                data=self.config.data,
                precision=parts.step.precision,
                multi_label=self.config.model.multi_label,
                on_video=lambda _: progress.advance(distributed.world_size()),
            )
        # A process that receives a signal ends its share early, the others finish theirs; then all stop together.
        if distributed.agree(stop.interrupted):
            raise Stopped(stop.received or "a signal to another process")
        parts.guard.check_scores(predictions)
        predictions.classes = list(val_set.records.classes or ())
        state.validation, state.details = log.validation_metrics(predictions), details(predictions)
        epoch, seconds = parts.schedule.time(state.position), time.monotonic() - began
        if distributed.is_main():
            self.folder.save_validation(predictions, val_set.records, epoch=epoch)
        logger.write("val", step=state.position.step, epoch=epoch, **state.validation, seconds=seconds)
        say(f"epoch {state.position.epoch + 1}: {log.accuracy_line({**state.validation, **state.details})}")
        return state.is_best(*log.deciding(state.validation)[1:])

    def _measure_batch_norms(self, parts: Parts) -> None:
        """Precise batch norm over the first batches of the epoch just trained, read by workers of its own."""
        step, epoch = parts.step, parts.state.position.epoch
        if count := min(self.config.train.precise_bn, parts.schedule.steps(epoch) * self.config.train.accumulate):
            batches = Prefetcher(iter(self.loader(parts, epoch, most=count)), self.device)
            with step.autocast():
                measure_batch_norms(step.tested_network, (step.prepare(batch.clips) for batch in batches), count)

    def _save(self, parts: Parts, *, best: bool = False) -> None:
        """Write a checkpoint, after checking that losses and weights are finite. Every process must call it."""
        parts.step.meter.finish()  # a run that resumes from here does not repeat the steps of a log
        parts.train_set.quarantine.share()
        parts.guard.check_losses()
        parts.guard.check_weights(parts.step.network, parts.step.tested_network, step=parts.state.position.step)
        checkpoint = parts.state.state_dict()
        distributed.on_main(self.checkpoints.wait)  # all processes hear that the last one could not be written
        if distributed.is_main():
            self.checkpoints.save_in_thread(checkpoint, best=best)

    def _save_or_stop(self, parts: Parts, stop: StopSignals, *, step: int = 0) -> None:
        """Save if it is time, save and stop if a signal came: all processes alike, a step late so that none waits."""
        every, minutes = self.config.train.checkpoint_every, self.config.train.checkpoint_minutes
        late = distributed.is_main() and 0 < 60 * minutes <= time.monotonic() - self.checkpoints.saved
        code = STOP if stop.received else SAVE if step and late else CONTINUE
        order = self.agree_late(code) if step else distributed.agree(code)
        if order != CONTINUE or (step and every and step % every == 0):
            self._save(parts)
        if order == STOP:
            distributed.on_main(self.checkpoints.wait)  # the first process to end can end all
            raise Stopped(stop.received or "a signal to another process")
