"""Run folder: its files, and whether a training may start in it."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from typing import Any

from gcvideo import distributed
from gcvideo.config import RunConfig, save_config
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError, GcvideoError
from gcvideo.eval.predictions import Predictions

# Files of a run, its test and its report, besides the log. --overwrite removes these and the old log, nothing else.
LEFTOVERS = (
    "config.yaml",
    "train.log.old",
    "metrics.jsonl",
    "events.out.tfevents.*",
    "checkpoints",
    "quarantine.jsonl",
    "nonfinite.json",
    "results*.json",  # results_fast.json as well
    "predictions*.npz",
    "test_parts",
    "report.html",
)


class RunFolder:
    """Folder ``runs/NAME`` of a run.

    Args:
        config: of the run.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = config.run_dir
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "train.log"
        self.quarantine = self.path / "quarantine.jsonl"
        self.results = self.path / "results.json"
        self.validation = self.path / "predictions_val.npz"
        self._intent = self.path / ".overwrite"
        self._old_log = self.path / "train.log.old"  # until the new run replaces the old one

    def holds_run(self) -> bool:
        """Whether a training has begun here. A start that failed because of a mistake leaves only a log."""
        metrics = self.path / "metrics.jsonl"
        return (metrics.exists() and metrics.stat().st_size > 0) or any(self.checkpoints.glob("*.pt"))

    def open(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Check that a run may start here and make the folder; an old run is not changed. Every process must call it.

        Raises:
            ConfigError: it holds a run and neither ``resume`` nor ``overwrite`` is set, or it cannot be made.
        """
        _on_main(functools.partial(self._open, resume=resume, overwrite=overwrite))

    def claim(self, *, overwrite: bool = False) -> None:
        """Write ``config.yaml``, after removing an old run with ``overwrite``. Every process must call it.

        Called after everything is built, so that a config error cannot delete the previous run.

        Raises:
            ConfigError: the folder cannot be written to.
        """
        _on_main(functools.partial(self._claim, overwrite=overwrite))

    def overwrite_is_pending(self) -> bool:
        """Whether a start with ``--overwrite`` died before it called ``claim``."""
        return distributed.broadcast_object(self._intent.exists())

    def save_validation(self, predictions: Predictions, records: RecordTable, *, epoch: float) -> None:
        """Write the predictions of a validation after so many epochs, for the run's report."""
        predictions.paths = [records[index].path for index in predictions.indices]
        predictions.classes = list(records.classes or ())
        predictions.info = {"annotation": records.source, "fingerprint": records.fingerprint, "epoch": epoch}
        predictions.save(self.validation)

    def test_results(self) -> dict[str, Any]:
        """What a test has written into ``results.json``; empty if there was none."""
        try:
            results = json.loads(self.results.read_text(encoding="utf-8"))
            return {key: value for key, value in results.items() if key != "training"}
        except (OSError, ValueError, AttributeError):
            return {}

    def _open(self, *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite contradict each other: give one of them")
        if self.holds_run() and not (resume or overwrite):
            raise ConfigError(
                f"{self.path} already holds a run: continue it with --resume, replace it with --overwrite, or give "
                "another name=..."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._intent.touch()
            if self.log.exists() and not self._old_log.exists():
                self.log.replace(self._old_log)

    def _claim(self, *, overwrite: bool) -> None:
        if overwrite:
            self._clear()
        self.checkpoints.mkdir(exist_ok=True)
        save_config(self.config, self.path / "config.yaml")
        self._intent.unlink(missing_ok=True)

    def _clear(self) -> None:
        for pattern in LEFTOVERS:
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _on_main(work: Callable[[], None]) -> None:
    """Call ``work`` on rank 0; every process raises the error that it raises there."""
    error: GcvideoError | None = None
    if distributed.is_main():
        try:
            work()
        except GcvideoError as problem:
            error = problem
        except OSError as problem:
            error = ConfigError(f"{problem.filename}: cannot make the run folder: {problem.strerror}")
    error = distributed.broadcast_object(error)
    if error is not None:
        raise error
