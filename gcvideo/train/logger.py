"""Log of a training: metrics in ``metrics.jsonl``, TensorBoard and Weights & Biases, and the lines of its summary.

Each line of ``metrics.jsonl`` is one JSON object. ``kind`` says which keys it has:

``train``, every ``train.log_every`` steps: means over the steps since the line before
    ``step`` optimizer steps so far · ``epoch`` with fractions · ``loss`` · ``top1`` of the training clips as a
    fraction · ``lr`` of the last step · ``grad_norm`` before clipping (only where ``optim.clip_grad_norm`` is set) ·
    ``clips_per_second`` over all processes · ``data_seconds`` and ``compute_seconds`` a step, the first being the wait
    for clips · ``seconds`` since the run began, interruptions left out
``val``, after each validation
    ``step`` · ``epoch`` · ``clip_top1``, ``clip_top5`` of each view on its own · ``video_top1``, ``video_top5`` of the
    views of a video together (fractions) · ``failures`` videos that could not be read · ``seconds``

TensorBoard has the same metrics under ``train/`` and ``val/``, and so has Weights & Biases where ``train.wandb`` names
a project.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcvideo import distributed
from gcvideo.config import RunConfig
from gcvideo.console import duration, say, warn
from gcvideo.data.dataset import ClipDataset, ViewDataset
from gcvideo.device import describe, versions
from gcvideo.errors import ConfigError
from gcvideo.eval.metrics import by_class
from gcvideo.eval.predictions import Predictions
from gcvideo.files import write_atomically
from gcvideo.train.state import TrainState

# With worker processes that decode ahead, a wait of more than this share of the time means that they are too slow.
DATA_BOUND_SHARE = 0.1


class MetricsLogger:
    """Writes the metrics of a run into its folder; does nothing on ranks other than 0.

    Args:
        folder: of the run.
        step: that the run resumes from.
        epoch: time that it resumes from, in epochs as the checkpoint counted them. Records after it are removed,
            because those steps are repeated. Steps are not compared: their numbers change with the batch size.
        wandb: project of Weights & Biases that receives the metrics too.

    Raises:
        ConfigError: ``wandb`` is given but the package is not installed.
    """

    def __init__(self, folder: str | Path, *, step: int = 0, epoch: float = 0.0, wandb: str | None = None) -> None:
        self._file: Any = None
        self._wandb: Any = None
        if not distributed.is_main():
            return
        from torch.utils.tensorboard import SummaryWriter

        path = Path(folder) / "metrics.jsonl"
        if path.exists():
            write_atomically(path, "".join(f"{line}\n" for line in _lines_up_to(path, epoch)).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        if wandb is not None:
            self._wandb = _start_wandb(wandb, Path(folder))

    def write(self, kind: str, *, step: int, **values: float) -> None:
        """Append a line, and the same metrics to TensorBoard. NaN and infinity become null in the line."""
        if self._file is None:
            return
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, global_step=step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Write everything to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._board.close()
            self._file = None
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; an incomplete last line is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def require_wandb(project: str | None) -> None:
    """Check that Weights & Biases is installed, if a project is given.

    Raises:
        ConfigError: the package is not installed.
    """
    if project is not None:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise ConfigError('train.wandb: Weights & Biases is missing: pip install "gcvideo[wandb]"') from None


def _start_wandb(project: str, folder: Path) -> Any:
    """A run of that project; the folder's name is its identity, so a resumed run continues the same curves."""
    require_wandb(project)
    import wandb

    return wandb.init(project=project, name=folder.name, id=folder.name, dir=str(folder), resume="allow")


def _lines_up_to(path: Path, epoch: float) -> list[str]:
    return [json.dumps(record) for record in read_metrics(path) if record["epoch"] <= epoch]


def validation_metrics(predictions: Predictions) -> dict[str, float]:
    """Accuracies as fractions (NaN where no video could be read), and the numbers of videos and of failures."""
    accuracy = predictions.accuracy()
    metrics = {
        f"{of}_{top}": accuracy.get(of, {}).get(top, float("nan"))
        for of in ("clip", "video")
        for top in ("top1", "top5")
    }
    return {**metrics, "videos": len(predictions), "failures": len(predictions.failures)}


def validation_details(predictions: Predictions) -> dict[str, Any]:
    """Accuracy by class, confusions and calibration; see ``gcvideo.eval.metrics.by_class``."""
    known = predictions.labels >= 0
    if not known.any():
        return {}
    return by_class(predictions.averages["softmax"][known], predictions.labels[known])


def accuracy_line(metrics: dict[str, float]) -> str:
    """Clip and video accuracy in percent."""
    unread = f", {metrics['failures']:g} videos could not be read" if metrics["failures"] else ""
    if math.isnan(metrics["video_top1"]):
        return f"no accuracy, because no video could be decoded{unread}"
    return (
        f"clip top-1 {100 * metrics['clip_top1']:.2f} %, top-5 {100 * metrics['clip_top5']:.2f} %; "
        f"video top-1 {100 * metrics['video_top1']:.2f} %, top-5 {100 * metrics['video_top5']:.2f} % "
        f"of {metrics['videos']:g} videos{unread}"
    )


def announce(
    config: RunConfig,
    state: TrainState,
    train_set: ClipDataset,
    val_set: ViewDataset | None,
    *,
    device: torch.device,
) -> None:
    """Print what is about to be trained, on which device and videos."""
    parameters = sum(parameter.numel() for parameter in state.step.network.parameters())
    say(f"run folder {config.run_dir}")
    say(f"{describe(device, state.step.precision)}; {parameters:,} parameters")
    say(
        f"{len(train_set):,} training videos, {len(val_set) if val_set else 0:,} for validation; "
        f"{config.train.epochs:g} epochs, {state.schedule.total_steps:,} steps of {config.train.batch_size} clips "
        f"({config.data.frames} x {config.data.crop} x {config.data.crop}, stride {config.data.stride})"
    )
    if config.data.quarantine is not None:
        listed = [len(videos.quarantine.listed) for videos in (train_set, val_set) if videos is not None]
        say(f"{config.data.quarantine} excludes {' and '.join(map(str, listed))} of them")
    if val_set is None:
        warn("data.val.annotation is not set: this run trains without validation")


def training_results(config: RunConfig, state: TrainState) -> dict[str, Any]:
    """Training part of ``results.json``. Every process must call it."""
    data, compute = state.waits()
    failed = [{"id": id_, "path": path, "reason": why} for id_, (path, why) in sorted(state.failures.items())]
    return {
        "name": config.name,
        "run": str(config.run_dir),
        "validation": {**state.validation, **state.details},
        "best": state.best,
        "epochs": config.train.epochs,
        "steps": state.position.step,
        "seconds": state.clock.seconds,
        "data_seconds": data,
        "compute_seconds": compute,
        "bound_by": bound(data, compute, workers=config.data.workers),
        "failures": {"count": len(failed), "videos": failed},
        "versions": versions(),
    }


def summarize(
    config: RunConfig, state: TrainState, val_set: ViewDataset | None, results: dict[str, Any], *, overfit: bool
) -> None:
    """Print how the training ended."""
    if state.failures:
        warn(f"{len(state.failures)} training videos could not be read; {config.run_dir / 'results.json'} names them")
    if val_set is not None and state.validation:
        say(f"final: {accuracy_line(state.validation)}")
        for line in chance_lines(state.validation, val_set.records.labels, config.model.num_classes):
            say(line)
    if overfit:
        say(overfit_line(state.validation, epochs=state.position.epoch, limit=state.schedule.epochs))
    say(f"trained in {duration(state.clock.seconds)}; everything is in {config.run_dir}")
    say(bound_line(results["data_seconds"], results["compute_seconds"], workers=config.data.workers))


def chance_lines(metrics: dict[str, float], labels: np.ndarray, classes: int) -> list[str]:
    """What guessing reaches, and advice if the network is no better than that.

    Args:
        metrics: of the validation.
        labels: (V,) int64 of its videos, -1 where unknown.
        classes: K, of the network.
    """
    largest = np.bincount(labels[labels >= 0]).max() / max((labels >= 0).sum(), 1)
    lines = [f"guessing reaches {100 / classes:.2f} % by chance, {100 * largest:.2f} % with the largest class alone"]
    if metrics["video_top1"] <= max(1 / classes, largest):
        lines.append(
            "not learned: the video top-1 is no better than guessing. Check the labels, try gcvideo train --overfit 8, "
            "then another optim.lr (ten times lower, ten times higher) or more train.epochs"
        )
    return lines


def overfit_line(metrics: dict[str, float], *, epochs: int, limit: int) -> str:
    """Verdict of ``gcvideo train --overfit N``."""
    if metrics["video_top1"] == 1:
        return f"overfit: learned all {metrics['videos']:g} videos after {epochs} epochs: the network can learn"
    return (
        f"overfit: NOT learned: video top-1 {100 * metrics['video_top1']:.2f} % of {metrics['videos']:g} videos at the "
        f"limit of {limit} epochs (train.epochs). Try optim.lr ten times lower and ten times higher, a larger limit, "
        "or fewer videos; then check labels, data.mean and data.std, and train.freeze"
    )


def bound(data_seconds: float, compute_seconds: float, *, workers: int) -> str:
    """ "data" or "compute": which of the two limited the speed of the training."""
    total = data_seconds + compute_seconds
    limit = DATA_BOUND_SHARE if workers else 0.5
    return "data" if total and data_seconds / total > limit else "compute"


def bound_line(data_seconds: float, compute_seconds: float, *, workers: int) -> str:
    """Last line of a training: what limited its speed, and what would help."""
    share = 100 * data_seconds / max(data_seconds + compute_seconds, 1e-9)
    waited = f"{share:.0f} % of the training time was spent waiting for clips"
    if bound(data_seconds, compute_seconds, workers=workers) == "compute":
        return f"The run was compute-bound: {waited}."
    more = f"raise data.workers ({workers} now)" if workers else "set data.workers to 1 or more"
    return f"The run was data-bound: {waited}; {more} or shrink the videos with gcvideo prepare."
