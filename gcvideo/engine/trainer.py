"""The training loop. One class, read from top to bottom: build, fit, an epoch, a step, validate, save, report."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo import distributed
from gcvideo.config import RunConfig, config_from_dict, config_to_dict
from gcvideo.console import Progress, duration, log_to, say, warn
from gcvideo.data.dataset import ClipDataset, ViewDataset
from gcvideo.data.loader import ClipBatch, eval_loader, train_loader
from gcvideo.data.transforms import normalize
from gcvideo.engine import reports, runtime
from gcvideo.engine.checkpoint import CheckpointFolder
from gcvideo.engine.evaluator import evaluate
from gcvideo.engine.metrics import TrainMeter
from gcvideo.engine.optim import build_optimizer, learning_rate, set_learning_rate
from gcvideo.engine.prefetch import Prefetcher
from gcvideo.engine.recorder import Recorder
from gcvideo.engine.resuming import differences, load_optimizer, load_together
from gcvideo.engine.run_folder import RunFolder
from gcvideo.engine.schedule import Plan, Position
from gcvideo.engine.splits import load_split
from gcvideo.engine.stopping import Stopped, StopSignals
from gcvideo.engine.watch import LossWatch
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.files import write_json
from gcvideo.models.resnet3d import build_model

KEEP_GOING, SAVE, STOP = range(3)


class Trainer:
    """Trains the network that a config describes. Under ``torchrun`` every process makes one.

    Args:
        config: of the run.

    Raises:
        ConfigError: the config does not fit this machine or the data.
        DataError: the videos cannot be used.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.device = runtime.pick_device(config.device)
        self.precision = runtime.pick_precision(config.train.precision, self.device)
        self.memory_format = runtime.pick_memory_format(config.train.channels_last, self.precision)
        self.folder = RunFolder(config)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints, keep=config.train.keep_checkpoints)
        self.micro_batch = micro_batch_size(config)
        runtime.tune(self.device)

    def fit(self, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
        """Train to the end, from the start or from the last checkpoint.

        Args:
            resume: go on with the run that the folder holds; where it holds none, start one.
            overwrite: remove what the folder holds and start anew.

        Returns:
            What ``results.json`` says.

        Raises:
            Stopped: SIGTERM or SIGUSR1 came; a checkpoint has been saved.
        """
        self.folder.claim(resume=resume, overwrite=overwrite)
        with log_to(self.folder.log):
            self._build()
            if resume:
                self._resume()
            with ExitStack() as stack:
                self.stop = stack.enter_context(StopSignals())
                self.recorder = stack.enter_context(Recorder(self.folder.path, step=self.position.step))
                self._announce()
                self._fit()
            return self._finish()

    def _build(self) -> None:
        config = self.config
        records = load_split(config, config.data.train, name="training")
        if records is None:
            raise ConfigError("data.train.annotation: not set; give a list of training videos")
        val = load_split(config, config.data.val, name="validation", classes=records.classes)
        self.train_set = ClipDataset(
            records, data=config.data, seed=config.seed, quarantine=str(self.folder.quarantine)
        )
        # Validation looks at one view of each video, or at `val_clips` of them.
        self.val_test = dataclasses.replace(config.test, clips=config.train.val_clips, crops=1)
        self.val_set = ViewDataset(val, data=config.data, test=self.val_test) if val is not None else None
        self.plan = Plan(len(records), batch_size=config.train.batch_size, epochs=config.train.epochs)
        self.position = Position()
        self.best: dict[str, float] | None = None
        self.validation: dict[str, float] = {}
        self.failures: dict[str, tuple[str, str]] = {}
        self.data_seconds = self.compute_seconds = 0.0
        self.seconds = 0.0  # of all parts of an interrupted run together

        torch.manual_seed(config.seed)
        self.network = build_model(config.model).to(self.device).to(memory_format=self.memory_format)
        self.optimizer = build_optimizer(self.network, config.optim)
        self.meter = TrainMeter(self.device)
        self.watch = LossWatch(self.meter, records, self.folder.path / "nonfinite.json")
        if config.train.compile:
            self.network.compile()
        self.model: nn.Module = self.network
        if distributed.world_size() > 1:
            self.model = nn.parallel.DistributedDataParallel(self.network, gradient_as_bucket_view=True)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        position = self.position
        self._began = time.monotonic() - self.seconds
        self._saved = time.monotonic()
        while position.epoch < self.plan.epochs:
            self._train_epoch()
            improved = False
            if self._validation_is_due():
                self._save()  # validation can take long: a run that is stopped in it goes on from here
                improved = self._validate()
            position.next_epoch()
            self._save(best=improved)
        self.seconds = time.monotonic() - self._began

    def _train_epoch(self) -> None:
        """Train from the present position to the end of its epoch."""
        config, position = self.config, self.position
        steps = self.plan.steps(position.epoch)
        loader = train_loader(
            self.train_set,
            batch_size=self.micro_batch,
            accumulate=config.train.accumulate,
            seed=config.seed,
            epoch=position.epoch,
            start_step=position.epoch_step,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=config.data.workers,
        )
        self.batches = Prefetcher(loader, self.device)
        clips = config.train.batch_size
        title = f"epoch {position.epoch + 1}/{self.plan.epochs}"
        self.model.train()
        self._mark = time.perf_counter()
        with Progress(title, total=steps * clips, start=position.epoch_step * clips, unit="clips") as progress:
            while position.epoch_step < steps:
                self._train_step()
                position.advance()
                progress.advance(clips)
                if position.step % config.train.log_every == 0 or position.epoch_step == steps:
                    self._log(progress)
                self._save_or_stop()

    def _train_step(self) -> None:
        """One optimizer step over ``train.batch_size`` clips: nothing in it makes the host wait for the device."""
        config = self.config
        self.lr = self._learning_rate()
        set_learning_rate(self.optimizer, self.lr)
        runtime.seed_step(config.seed, self.position.step, distributed.rank())
        for part in range(config.train.accumulate):
            batch = next(self.batches)
            self.failures.update({failure.id: (failure.path, failure.reason) for failure in batch.failures})
            self.watch.note(step=self.position.step, epoch=self.position.epoch, lr=self.lr, indices=batch.indices)
            with self._gradients_summed_later(last=part == config.train.accumulate - 1):
                loss, logits = self._forward(batch)
                (loss / config.train.accumulate).backward()
            self.meter.add(self.position.step, loss, logits, batch.labels)
        norm = None
        if config.optim.clip_grad_norm:
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.optim.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.add_step(norm)

    def _forward(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Mean loss and logits (N, K) of a batch on the device."""
        clips = batch.clips.contiguous(memory_format=self.memory_format)
        clips = normalize(clips, mean=self.config.data.mean, std=self.config.data.std)  # (N, C, T, H, W)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.model(clips)
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.config.train.label_smoothing)
        return loss, logits

    def _gradients_summed_later(self, *, last: bool) -> Any:
        """Processes exchange their gradients once a step, with the last of its micro-batches."""
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _learning_rate(self) -> float:
        return learning_rate(
            self.config.optim,
            epoch=self.plan.time(self.position),
            epochs=self.config.train.epochs,
            batch_size=self.config.train.batch_size,
        )

    # --- watching ----------------------------------------------------------------------------------------------------

    def _log(self, progress: Progress) -> None:
        """Read the figures of the last steps; the only place in an epoch where the host waits for the device."""
        position = self.position
        means = self.meter.read()
        self.watch.check()
        elapsed = time.perf_counter() - self._mark
        waited = min(self.batches.reset(), elapsed)
        self._mark += elapsed
        self.data_seconds += waited
        self.compute_seconds += elapsed - waited
        steps = max(means.pop("steps"), 1)
        grad_norm = means.pop("grad_norm")
        figures = {**means, "lr": self.lr, **({"grad_norm": grad_norm} if self.config.optim.clip_grad_norm else {})}
        progress.show(
            loss=means["loss"],
            lr=self.lr,
            data=f"{1000 * waited / steps:.0f} ms",
            compute=f"{1000 * (elapsed - waited) / steps:.0f} ms",
        )
        self.recorder.write(
            "train",
            step=position.step,
            epoch=self.plan.time(position),
            **figures,
            clips_per_second=steps * self.config.train.batch_size / elapsed,
            data_seconds=waited / steps,
            compute_seconds=(elapsed - waited) / steps,
            seconds=time.monotonic() - self._began,
        )

    def _validation_is_due(self) -> bool:
        every, finished = self.config.train.val_every, self.position.epoch + 1
        return self.val_set is not None and (finished == self.plan.epochs or (every > 0 and finished % every == 0))

    def _validate(self) -> bool:
        """Clip and video accuracy on the validation split; returns whether it is the best so far."""
        assert self.val_set is not None
        began = time.monotonic()
        distributed.broadcast_tensors(list(self.network.buffers()))
        loader = eval_loader(
            self.val_set, rank=distributed.rank(), world_size=distributed.world_size(), workers=self.config.data.workers
        )
        with Progress("validate", total=len(self.val_set), unit="videos") as progress:

            def on_video(_: object) -> None:
                if self.stop.received:
                    raise Stopped(self.stop.received)
                progress.advance(distributed.world_size())

            predictions = evaluate(
                self.network,
                loader,
                test=self.val_test,
                data=self.config.data,
                device=self.device,
                precision=self.precision,
                on_video=on_video,
            )
        self.validation = reports.validation_figures(predictions)
        self.recorder.write(
            "val",
            step=self.position.step,
            epoch=self.plan.time(self.position),
            **self.validation,
            seconds=time.monotonic() - began,
        )
        say(f"epoch {self.position.epoch + 1}: {reports.accuracy_line(self.validation)}")
        return self._is_best(self.validation["video_top1"])

    def _is_best(self, top1: float) -> bool:
        if self.best is not None and not top1 > self.best["top1"]:
            return False
        self.best = {"top1": top1, "epoch": self.position.epoch + 1, "step": self.position.step}
        return True

    # --- saving ------------------------------------------------------------------------------------------------------

    def _save_or_stop(self) -> None:
        """Save where it is time; save and leave where a signal came. All processes do the same at the same step."""
        train = self.config.train
        due = train.checkpoint_every and self.position.step % train.checkpoint_every == 0
        if distributed.is_main() and train.checkpoint_minutes:
            due = due or time.monotonic() - self._saved >= 60 * train.checkpoint_minutes
        order = distributed.agree(STOP if self.stop.received else SAVE if due else KEEP_GOING)
        if order != KEEP_GOING:
            self._save()
        if order == STOP:
            raise Stopped(self.stop.received or "a signal to another process")

    def _save(self, *, best: bool = False) -> None:
        self.watch.check()  # never save weights that such a loss has spoilt
        began = time.perf_counter()
        for part in distributed.gather_objects(self.failures):
            self.failures.update(part)
        if distributed.is_main():
            self.checkpoints.save(self._state(), best=best)
        self._saved = time.monotonic()
        self._mark = getattr(self, "_mark", 0.0) + time.perf_counter() - began

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with for the run to go on exactly."""
        records = self.train_set.records
        return {
            "config": config_to_dict(self.config),
            "classes": list(records.classes) if records.classes is not None else None,
            "fingerprint": records.fingerprint,
            "records": len(records),
            "world_size": distributed.world_size(),
            "versions": runtime.versions(),
        }

    def _state(self) -> dict[str, Any]:
        """Everything that a checkpoint holds; see ``gcvideo.engine.checkpoint``."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **dataclasses.asdict(self.position),
            "best": self.best,
            "failures": [[id_, *failure] for id_, failure in sorted(self.failures.items())],
            "seconds": time.monotonic() - self._began,
            **self._identity(),
        }

    def _resume(self) -> None:
        """Go on from the newest checkpoint that can be read."""
        state = load_together(self.checkpoints)
        if state is None:
            say(f"{self.checkpoints.folder} holds no checkpoint yet: starting from the beginning")
            return
        for line in differences(state, self._identity()):
            warn(line)
        try:
            self.network.load_state_dict(state["model"])
            load_optimizer(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{state['path']}: does not fit the network of this config ({' '.join(str(error).split())[:200]})"
            ) from None
        self._restore(state)
        say(f"going on from {state['path']}: epoch {self.position.epoch + 1}, step {self.position.step}")

    def _restore(self, state: dict[str, Any]) -> None:
        self.position = Position(state["step"], state["epoch"], state["epoch_step"])
        before = config_from_dict(state["config"], where=state["path"])
        old = Plan(state["records"], batch_size=before.train.batch_size, epochs=before.train.epochs)
        if old.steps_per_epoch != self.plan.steps_per_epoch:  # other data or another batch size: the same time
            self.position = self.plan.place(old.time(self.position))
        self.best = state["best"]
        self.failures = {id_: (path, reason) for id_, path, reason in state["failures"]}
        self.seconds = state["seconds"]

    # --- the ends ----------------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        config = self.config
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        say(f"run folder {self.folder.path}")
        say(f"{runtime.describe(self.device, self.precision)}; {parameters:,} parameters")
        say(
            f"{len(self.train_set):,} training videos, {len(self.val_set) if self.val_set else 0:,} for validation; "
            f"{config.train.epochs:g} epochs of {self.plan.steps_per_epoch} steps of {config.train.batch_size} clips "
            f"({config.data.frames} x {config.data.crop} x {config.data.crop}, stride {config.data.stride})"
        )
        if self.val_set is None:
            warn("data.val.annotation is not set: this run trains without validation")

    def _finish(self) -> dict[str, Any]:
        """Write ``results.json`` and say how it went."""
        waits = distributed.gather_objects((self.data_seconds, self.compute_seconds))
        data_seconds, compute_seconds = max(waits)  # the process that waited longest held up the others
        workers = self.config.data.workers
        results = {
            "name": self.config.name,
            "run": str(self.folder.path),
            "validation": self.validation,
            "best": self.best,
            "epochs": self.config.train.epochs,
            "steps": self.position.step,
            "seconds": self.seconds,
            "data_seconds": data_seconds,
            "compute_seconds": compute_seconds,
            "bound_by": reports.bound(data_seconds, compute_seconds, workers=workers),
            "failures": {"count": len(self.failures), "videos": reports.failed_videos(self.failures)},
            "versions": runtime.versions(),
        }
        if distributed.is_main():
            write_json(self.folder.results, {"training": results})
        if self.failures:
            warn(f"{len(self.failures)} videos could not be read; they are named in {self.folder.results}")
        if self.validation:
            say(f"final: {reports.accuracy_line(self.validation)}")
        say(f"trained in {duration(self.seconds)}; everything lies in {self.folder.path}")
        say(reports.bound_line(data_seconds, compute_seconds, workers=workers))
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
