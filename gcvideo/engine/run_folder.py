"""The folder that a run leaves, and who may write into it."""

from __future__ import annotations

import shutil

from gcvideo import distributed
from gcvideo.config import RunConfig, save_config
from gcvideo.errors import ConfigError, GcvideoError

# What a run, its test and its report leave. --overwrite removes these and nothing else.
LEFTOVERS = (
    "config.yaml",
    "train.log",
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
    """``runs/NAME``: see ``docs/`` for what lies in it.

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

    def holds_run(self) -> bool:
        """Whether a training has begun here. A start that failed over a mistake leaves only a config and a log."""
        return (self.path / "metrics.jsonl").exists() or any(self.checkpoints.glob("*.pt"))

    def claim(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder ready for a run and write ``config.yaml``. Every process must call it.

        Raises:
            ConfigError: it already holds a run and neither ``resume`` nor ``overwrite`` is set, or it cannot be made.
        """
        error: GcvideoError | None = None
        if distributed.is_main():
            try:
                self._claim(resume=resume, overwrite=overwrite)
            except GcvideoError as problem:
                error = problem
        error = distributed.broadcast_object(error)
        if error is not None:
            raise error

    def _claim(self, *, resume: bool, overwrite: bool) -> None:
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite contradict each other: the one goes on, the other starts anew")
        if self.holds_run() and not (resume or overwrite):
            raise ConfigError(
                f"{self.path} already holds a run: go on with --resume, start anew with --overwrite, or give another "
                "name=..."
            )
        try:
            if overwrite:
                self._clear()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.path / "config.yaml")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot make the run folder: {error.strerror}") from None

    def _clear(self) -> None:
        for pattern in LEFTOVERS:
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
