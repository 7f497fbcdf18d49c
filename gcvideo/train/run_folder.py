"""Run folder: its files, and whether a training may start in it."""

import json
import shutil
from typing import Any

from gcvideo import distributed
from gcvideo.config import RunConfig, save_config
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError
from gcvideo.eval.predictions import Predictions

# Files of a run, its test and its report. --overwrite removes these; the log of the new run is appended to the old one.
LEFTOVERS = (
    *("config.yaml", "metrics.jsonl", "events.out.tfevents.*", "checkpoints", "quarantine.jsonl", "nonfinite.json"),
    *("results*.json", "predictions*.npz*", "report.html", "fit.*"),  # results_fast.json and interrupted tests as well
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
        self._intent = self.path / ".overwrite"
        self._made = False

    def holds_run(self) -> bool:
        """Whether a training has begun here. A start that failed because of a mistake leaves only a log."""
        metrics = self.path / "metrics.jsonl"
        return (metrics.exists() and metrics.stat().st_size > 0) or any(self.checkpoints.glob("*.pt"))

    def open(self, *, resume: bool, overwrite: bool) -> None:
        """Check that a run may start here and make the folder; an old run is not changed.

        Raises:
            ConfigError: it holds a run and neither ``resume`` nor ``overwrite`` is set.
        """
        if self.holds_run() and not (resume or overwrite):
            raise ConfigError(f"{self.path} already holds a run: give --resume, --overwrite or another name=...")
        self._made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._intent.touch()

    def claim(self, *, overwrite: bool) -> None:
        """Write ``config.yaml``, after removing an old run with ``overwrite``.

        Called after everything is built, so that a config error cannot delete the previous run.
        """
        if overwrite:
            for path in (path for pattern in LEFTOVERS for path in self.path.glob(pattern)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        self.checkpoints.mkdir(exist_ok=True)
        save_config(self.config, self.path / "config.yaml")
        self._intent.unlink(missing_ok=True)

    def leave(self) -> None:
        """Remove the folder that ``open`` made if a mistake ended the start: it holds nothing but a log."""
        if self._made and not (self.path / "config.yaml").exists():
            shutil.rmtree(self.path)

    def overwrite_is_pending(self) -> bool:
        """Whether a start with ``--overwrite`` died before it called ``claim``."""
        return distributed.broadcast_object(self._intent.exists())

    def save_validation(self, predictions: Predictions, records: RecordTable, *, epoch: float) -> None:
        """Write the predictions of a validation after so many epochs, for the run's report."""
        predictions.paths = [records[index].path for index in predictions.indices]
        predictions.info = {"annotation": records.source, "fingerprint": records.fingerprint, "epoch": epoch}
        predictions.save(self.path / "predictions_val.npz", compress=False)  # the other processes may be waiting

    def test_results(self) -> dict[str, Any]:
        """What a test has written into ``results.json``; empty if there was none."""
        results = json.loads(self.results.read_text()) if self.results.exists() else {}
        return {key: value for key, value in results.items() if key != "training"}
