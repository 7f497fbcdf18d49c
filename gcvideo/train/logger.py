"""Figures over time: ``metrics.jsonl`` for programs, TensorBoard for eyes.

Each line of ``metrics.jsonl`` is one JSON object. ``kind`` says which keys it has:

``train``, every ``train.log_every`` steps: means over the steps since the line before
    ``step`` optimizer steps so far · ``epoch`` with fractions · ``loss`` · ``top1`` of the training clips as a
    fraction · ``lr`` of the last step · ``grad_norm`` before clipping (only where ``optim.clip_grad_norm`` is set) ·
    ``clips_per_second`` over all processes · ``data_seconds`` and ``compute_seconds`` a step, the first being the wait
    for clips · ``seconds`` since the run began, interruptions left out
``val``, after each validation
    ``step`` · ``epoch`` · ``clip_top1``, ``clip_top5`` of each view on its own · ``video_top1``, ``video_top5`` of the
    views of a video together (fractions) · ``failures`` videos that could not be read · ``seconds``

TensorBoard has the same figures under ``train/`` and ``val/``, and so has Weights & Biases where ``train.wandb`` names
a project.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from gcvideo import distributed
from gcvideo.errors import ConfigError
from gcvideo.files import write_atomically


class Recorder:
    """Writes what a run measures into its folder; silent off rank 0.

    Args:
        folder: of the run.
        step: the step that the run goes on from.
        epoch: the time that it goes on from, in epochs as it counted them then. What an interrupted run wrote about
            later ones is taken back, as they will be done again. Steps are not compared: with another batch size a run
            counts them anew.
        wandb: a project of Weights & Biases that gets the figures too.

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
        """Append a line and the same figures to TensorBoard. NaN and infinity become null."""
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
        """Bring everything to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._board.close()
            self._file = None
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line that was cut short is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def require_wandb(project: str | None) -> None:
    """Make sure that figures can be sent to a project of Weights & Biases, where one is given.

    Raises:
        ConfigError: the package is not installed.
    """
    if project is not None:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise ConfigError('train.wandb: Weights & Biases is missing: pip install "gcvideo[wandb]"') from None


def _start_wandb(project: str, folder: Path) -> Any:
    """A run of that project; the folder's name is its identity, so a resumed run goes on in the same curves."""
    require_wandb(project)
    import wandb

    return wandb.init(project=project, name=folder.name, id=folder.name, dir=str(folder), resume="allow")


def _lines_up_to(path: Path, epoch: float) -> list[str]:
    return [json.dumps(record) for record in read_metrics(path) if record["epoch"] <= epoch]
