"""State of a training: everything that a checkpoint holds, and what changed since it was written."""

import dataclasses
import math
import time
from collections.abc import Iterable
from typing import Any

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.config import RunConfig, config_from_dict, config_to_dict, flatten
from gcvideo.console import say, warn
from gcvideo.data.records import Failure, RecordTable
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.train.schedule import Position, Schedule
from gcvideo.train.step import TrainStep

# Config keys that change neither the final weights of a run nor the order of its samples.
HARMLESS = (
    *("name", "output", "device", "test.", "data.workers", "data.val.", "data.test.", "data.worker_memory"),
    *("data.video_timeout", "train.val_", "train.log_", "train.checkpoint", "train.wandb", "train.keep_checkpoints"),
    "train.cuda_graph",
)
# Config keys that decide which tensors an optimizer keeps, and how they are grouped.
LASTING = ("optim.optimizer", "optim.decay_norm_and_bias", "train.freeze", "train.freeze_epochs")
# What other keys of ``_identity`` are called in warnings.
TITLES = {
    "fingerprint": "fingerprint of the training videos and their labels",
    "order": "fingerprint of the order of the training videos",
    "records": "number of training videos",
    "world_size": "number of processes",
}


class Stopwatch:
    """Time of a run: its total, and the data wait and compute of its training steps.

    Args:
        seconds: total of the parts before an interruption.
        data: seconds of them that training steps waited for clips.
        compute: seconds of them that training steps computed.

    Attributes:
        data: seconds of training steps spent waiting for clips.
        compute: the other seconds of training steps.
        laps: of this part of the run.
    """

    def __init__(self, seconds: float = 0.0, *, data: float = 0.0, compute: float = 0.0) -> None:
        self._began, self._lap = time.monotonic() - seconds, time.monotonic()
        self.data, self.compute, self.laps = data, compute, 0

    @property
    def seconds(self) -> float:
        """Total of the run so far, without interruptions."""
        return time.monotonic() - self._began

    def start_lap(self) -> None:
        """Start the first lap of an epoch."""
        self._lap = time.monotonic()

    def lap(self, waited: float) -> tuple[float, float]:
        """Seconds of data and of compute since the last lap, of which ``waited`` were spent waiting for data."""
        compute = time.monotonic() - self._lap - waited
        self.start_lap()
        self.data += waited
        self.compute += compute
        self.laps += 1
        return waited, compute


class TrainState:
    """State of a training: ``state_dict()`` is the whole content of a checkpoint, ``load_state_dict()`` restores it.

    Args:
        config: of the run.
        step: holds network, averaged weights and optimizer.
        schedule: of the run.
        records: training videos.

    Attributes:
        position: steps and epochs done.
        resumed_at: time of the checkpoint, in epochs as it counted them; 0 without one.
        best: {"top1" (of several labels a video "mAP"), "epoch", "step"} of the best validation so far.
        stale: validations since the best one.
        validation: metrics of the last validation; ``details`` has them by class.
        failures: training videos that could not be read: id -> (path, reason).
        clock: time of the run, and of its training steps the wait for data and the compute time.
    """

    def __init__(self, config: RunConfig, step: TrainStep, schedule: Schedule, records: RecordTable) -> None:
        self.config, self.step, self.schedule, self.records = config, step, schedule, records
        self.position = Position()
        self.resumed_at = 0.0
        self.best: dict[str, float] | None = None
        self.stale = 0
        self.validation: dict[str, float] = {}
        self.details: dict[str, Any] = {}
        self.failures: dict[str, tuple[str, str]] = {}
        self.clock = Stopwatch()

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Count videos that could not be read."""
        self.failures.update({failure.id: (failure.path, failure.reason) for failure in failures})

    def is_best(self, key: str, value: float) -> bool:
        """Note the deciding metric of a validation just done; whether it is the best so far. NaN is none."""
        if math.isnan(value) or (self.best is not None and not value > self.best[key]):
            self.stale += 1
            return False
        self.stale = 0
        self.best = {key: value, "epoch": self.position.epoch + 1, "step": self.position.step}
        return True

    @property
    def stops_early(self) -> bool:
        """Whether ``train.early_stop`` ends the training here; the same on every process."""
        left = self.position.epoch < self.schedule.epochs
        return left and 0 < self.config.train.early_stop <= self.stale

    def waits(self) -> tuple[float, float]:
        """Seconds of data and of compute of the process that waited longest and so held up the others."""
        return max(distributed.gather_objects((self.clock.data, self.clock.compute)))

    def state_dict(self) -> dict[str, Any]:
        """Content of a checkpoint; see ``gcvideo.train.checkpoint``. Every process must call it."""
        for part in distributed.gather_objects(self.failures):
            self.failures.update(part)
        data, compute = self.waits()
        return {
            **self.step.state_dict(),
            **dataclasses.asdict(self.position),
            **{name: getattr(self, name) for name in ("best", "stale", "validation", "details")},
            "failures": [[id_, *failure] for id_, failure in sorted(self.failures.items())],
            "seconds": self.clock.seconds,
            "data_seconds": data,
            "compute_seconds": compute,
            **self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, with a warning for everything that changed since it was written.

        Raises:
            ConfigError: a key that cannot change has changed.
            CheckpointError: the checkpoint does not fit the network.
        """
        config = config_from_dict(state["config"], where=state["path"])  # older checkpoints lack keys
        changes = differences({**state, "config": config_to_dict(config)}, self._identity())
        for key in LASTING:
            if key in changes:
                raise ConfigError(
                    f"{key}: {changes[key]}; --resume cannot change it: start a run with model.weights={state['path']}"
                )
        for key, change in changes.items():
            warn(f"{TITLES.get(key, key)} {change}")
        try:
            self.step.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = "; ".join(f"{key} {change}" for key, change in changes.items() if key.startswith("model."))
            reason = reason or " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{state['path']}: does not fit the network of this config ({reason}); start a new run"
            ) from None
        before = Schedule(config, state["records"])
        position = Position(state["step"], state["epoch"], state["epoch_step"])
        self.position, self.resumed_at = self.schedule.take_over(position, before), before.time(position)
        self.best, self.validation, self.details = state["best"], state["validation"], state["details"]
        self.stale = state.get("stale", 0)
        self.failures |= {id_: (path, reason) for id_, path, reason in state["failures"]}
        data, compute = state.get("data_seconds", 0.0), state.get("compute_seconds", 0.0)
        self.clock = Stopwatch(state["seconds"], data=data, compute=compute)
        say(f"resuming from {state['path']}: epoch {self.position.epoch + 1}, step {self.position.step}")

    def _identity(self) -> dict[str, Any]:
        """What must agree with a checkpoint for the run to continue exactly."""
        records = self.records
        return {
            "config": config_to_dict(self.config),
            "classes": list(records.classes) if records.classes is not None else None,
            "fingerprint": records.fingerprint,
            "order": records.order,
            "records": len(records),
            "world_size": distributed.world_size(),
            "precision": self.step.precision,
            "versions": runtime.versions(),
        }


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """What changed since a checkpoint was written, as text by key; empty if the run continues exactly.

    Args:
        before: the checkpoint; older ones lack some keys.
        now: what must agree with it, see ``TrainState._identity``.
    """
    keys = [key for key in now if key in before and key != "config"]
    old, new = (flatten({**state["config"], **{key: state[key] for key in keys}}) for state in (before, now))
    return {
        key: f"was {str(old.get(key))[:80]} in the checkpoint and is {str(new.get(key))[:80]} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(HARMLESS)
    }
