"""Log of a training: metrics in ``metrics.jsonl``, TensorBoard and Weights & Biases, and the lines of its summary.

Each line of ``metrics.jsonl`` is one JSON object. ``kind`` says which keys it has:

``train``, every ``train.log_every`` steps: means over the steps since the line before
    ``step`` optimizer steps so far · ``epoch`` with fractions · ``loss`` · ``top1`` of the training clips as a
    fraction · ``lr`` of the last step · ``grad_norm`` before clipping (only where ``optim.clip_grad_norm`` is set) ·
    ``clips_per_second`` over all processes · ``data_seconds`` and ``compute_seconds`` a step, the first being the wait
    for clips · ``seconds`` since the run began, interruptions left out
``val``, after each validation
    ``step`` · ``epoch`` · ``clip_top1``, ``clip_top5`` of each view on its own · ``video_top1``, ``video_top5`` of the
    views of a video together (fractions), of several labels a video instead ``mAP`` and its ``chance`` · ``failures``
    videos that could not be read · ``seconds``

TensorBoard has the same metrics under ``train/`` and ``val/``, and so has Weights & Biases where ``train.wandb`` names
a project.
"""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from gcvideo import distributed
from gcvideo.config import DataConfig, RunConfig
from gcvideo.console import duration, percent, say, warn
from gcvideo.data.dataset import ClipDataset, ViewDataset
from gcvideo.data.worker_pool import WorkerPool
from gcvideo.device import describe, versions
from gcvideo.errors import ConfigError
from gcvideo.eval.predictions import Predictions
from gcvideo.files import write_atomically
from gcvideo.train.state import TrainState
from gcvideo.video.reader import why_missing

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

        folder = Path(folder)
        path = folder / "metrics.jsonl"
        if path.exists():
            kept = [json.dumps(record) + "\n" for record in read_metrics(path) if record["epoch"] <= epoch]
            write_atomically(path, "".join(kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        if wandb is not None:  # the folder's name is the run's identity, so a resumed run continues the same curves
            name, place = folder.name, str(folder)
            self._wandb = import_wandb().init(project=wandb, name=name, id=name, dir=place, resume="allow")

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

    def write_steps(
        self, means: dict[str, float], data: float, compute: float, *, step: int, **at: float
    ) -> dict[str, float]:
        """Append a line on steps and return it, of the means of their ``TrainMeter`` and their seconds together."""
        steps, clips = means.pop("steps"), means.pop("clips")
        speed = {"clips_per_second": clips / (data + compute)}
        row = {**means, **speed, "data_seconds": data / steps, "compute_seconds": compute / steps}
        self.write("train", step=step, **at, **row)
        return row

    def close(self) -> None:
        """Write everything to the disk."""
        if self._file is not None:
            self._file.close()
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def times(row: dict[str, float]) -> dict[str, str]:
    """Wait for clips and computing of a step, from a line on steps, for the screen."""
    return {name: f"{1000 * row[f'{name}_seconds']:.0f} ms" for name in ("data", "compute")}


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; an incomplete last line is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def import_wandb() -> Any:
    """The module of Weights & Biases.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise ConfigError('train.wandb: Weights & Biases is missing: pip install "gcvideo[wandb]"') from None
    return wandb


def validation_metrics(predictions: Predictions) -> dict[str, float]:
    """Accuracies as fractions (NaN where no video could be read), and the numbers of videos and of failures."""
    accuracy = predictions.accuracy()
    metrics = accuracy.get("video", dict.fromkeys(("mAP", "chance"), math.nan))
    if not predictions.multi_label:
        metrics = dict.fromkeys(("clip_top1", "clip_top5", "video_top1", "video_top5"), math.nan)
        metrics.update(
            {f"{of}_{top}": accuracy[of][top] for of in ("clip", "video") if accuracy for top in accuracy[of]}
        )
    return {**metrics, "videos": len(predictions), "failures": len(predictions.failures)}


def deciding(metrics: dict[str, float]) -> tuple[str, str, float]:
    """Name, key in ``best`` and value of the metric that says which validation is best: top-1, of label sets mAP."""
    return ("mAP", "mAP", metrics["mAP"]) if "mAP" in metrics else ("video top-1", "top1", metrics["video_top1"])


def accuracy_line(metrics: dict[str, Any]) -> str:
    """Clip and video accuracy, or the mAP of videos, in percent, and what to compare them with; of metrics, details."""
    unread = f", {metrics['failures']:g} videos could not be read" if metrics["failures"] else ""
    if math.isnan(deciding(metrics)[2]):
        return f"no accuracy, because no video could be decoded{unread}"
    named = [
        (key, key.replace("_top", " top-")) for key in ("mAP", "clip_top1", "clip_top5", "video_top1", "video_top5")
    ]
    accuracies = ", ".join(f"{name} {percent(metrics[key])}" for key, name in named if key in metrics)
    return f"{accuracies} of {metrics['videos']:g} videos{unread} ({metrics.get('context', '')})"


def announce(state: TrainState, train_set: ClipDataset, val_set: ViewDataset | None) -> None:
    """Print what is about to be trained, on which device and videos."""
    config = state.config
    parameters = sum(parameter.numel() for parameter in state.step.network.parameters())
    say(f"run folder {config.run_dir}")
    say(f"{describe(state.step.device, state.step.precision)}; {parameters:,} parameters")
    if state.step.eager_because and state.step.device.type != "cpu":
        say(f"steps run without a CUDA graph: {state.step.eager_because}")
    if config.data.backend == "auto" and (missing := why_missing("decord")):
        say(f"PyAV reads all videos: {missing.partition(';')[0]}")
    say(
        f"{len(train_set):,} training videos, {len(val_set) if val_set else 0:,} for validation; "
        f"{config.train.epochs:g} epochs, {state.schedule.total_steps:,} steps of {config.train.batch_size} clips "
        f"({config.data.frames} x {config.data.crop} x {config.data.crop}, stride {config.data.stride})"
    )
    if config.data.quarantine is not None:
        listed = [len(videos.quarantine.listed) for videos in (train_set, val_set) if videos is not None]
        say(f"{config.data.quarantine} excludes {' and '.join(map(str, listed))} of them")
    if val_set is None:
        say("data.val.annotation is not set: this run trains without validation")


def training_results(state: TrainState) -> dict[str, Any]:
    """Training part of ``results.json``. Every process must call it."""
    config = state.config
    data, compute = state.waits()
    enough = DATA_BOUND_SHARE if config.data.worker_count else 0.5
    failed = [{"id": id_, "path": path, "reason": why} for id_, (path, why) in sorted(state.failures.items())]
    return {
        "name": config.name,
        "run": str(config.run_dir),
        "validation": {**state.validation, **state.details},
        "best": state.best,
        "stopped_early": state.stops_early,
        "epochs": state.schedule.config.train.epochs,  # fewer than asked for where time was short
        "steps": state.position.step,
        "seconds": state.clock.seconds,
        "data_seconds": data,
        "compute_seconds": compute,
        "bound_by": "data" if data > enough * (data + compute) else "compute",
        "failures": {"count": len(failed), "videos": failed},
        "versions": versions(),
    }


def summarize(state: TrainState, results: dict[str, Any], *, overfit: bool) -> None:
    """Print how the training ended."""
    config, metrics = state.config, state.validation
    if state.failures:
        warn(f"{len(state.failures)} training videos could not be read; {config.run_dir / 'results.json'} names them")
    name, key, value = deciding(metrics) if metrics else ("video top-1", "top1", math.nan)
    if state.stops_early:
        best = f"{percent(state.best[key])} after epoch {state.best['epoch']:g}" if state.best else "none"
        say(
            f"stopped early after epoch {state.position.epoch}: the last {state.stale} validations brought no better "
            f"{name} than the best, {best} (train.early_stop={config.train.early_stop})"
        )
    if metrics:
        say(f"final: {accuracy_line(results['validation'])}")
    if overfit and value == 1:
        say(f"overfit: learned all {metrics['videos']:g} videos after {state.position.epoch} epochs")
    elif overfit:
        say(
            f"overfit: NOT learned: {name} {percent(value)} of {metrics['videos']:g} videos at the limit of "
            f"{state.schedule.epochs} epochs (train.epochs). Try another optim.lr, check labels and train.freeze"
        )
    say(f"trained in {duration(state.clock.seconds)}; everything is in {config.run_dir}")
    share = results["data_seconds"] / max(results["data_seconds"] + results["compute_seconds"], 1e-9)
    bound_by, fix = results["bound_by"], reading_fix(config.data)
    say(f"The run was {bound_by}-bound: it waited for clips in {share:.0%} of its time{fix * (bound_by == 'data')}.")
    if not overfit and (verdict := state.details.get("verdict")):
        say(verdict)


def bounds(clips: float, reading: float, computing: float, *, data: DataConfig) -> str:
    """A line on what bounds a training: the clips/s that reading and that computing allow, and the fix.

    Args:
        clips: of a step, of all processes.
        reading: seconds that one process's workers take to read its share of them.
        computing: seconds that a step computes.
        data: of the run.
    """
    bound = "computing is the bound" if reading <= computing else f"reading is the bound{reading_fix(data)}"
    return (
        f"reading can deliver {clips / reading:.3g} clips/s (measured here, data.workers={data.worker_count}), "
        f"computing takes {clips / computing:.3g}: {bound}"
    )


def reading_seconds(config: RunConfig, pool: WorkerPool[Any, Any], *, waited: float) -> float:
    """Seconds that reading takes for a step, as the workers have measured; without them it is what a step waits."""
    return config.train.accumulate / pool.rate() if config.data.worker_count else waited


def reading_fix(data: DataConfig) -> str:
    """What to do where reading is the bound, as the end of a sentence."""
    cores = distributed.cores()
    more = f"raise data.workers ({data.worker_count} now, of {cores} cores), " if data.worker_count < cores else ""
    return f"; {more}shrink the videos with gcvideo prepare transcode, or try another data.backend"
