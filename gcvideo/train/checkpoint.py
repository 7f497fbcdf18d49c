"""Checkpoint files: written atomically, checked for damage when read, and free of code.

A checkpoint is a file of ``torch.save`` that holds tensors and plain values only:

=================== ================================================================================================
``format``          1
``model``           state dict to test and predict with: the averaged weights where ``train.ema`` is on
``raw_model``       only with ``train.ema``: the weights that the optimizer moves
``optimizer``       state dict of the optimizer
``config``          the resolved config, as nested dicts
``classes``         class names in label order, or None
``fingerprint``     of the training annotation
``order``           of its rows, as a hash
``step``, ``epoch`` optimizer steps taken; epochs begun and finished
``epoch_step``      steps taken in the present epoch: with the seed, the place in the order of samples
``best``            {"top1": ..., "epoch": ...} of the best validation so far, or None
``stale``           validations since then
``failures``        [[id, path, reason], ...] of videos that could not be read
``validation``      metrics of the last validation; ``details`` has them by class
``seconds``         of the run; ``data_seconds`` and ``compute_seconds`` of its training steps
``precision``       "fp32" or "bf16"
``world_size``      processes that wrote it
``versions``        of gcvideo, torch and so on
=================== ================================================================================================

The learning rate is a pure function of the step and every random draw one of (seed, epoch, index) or of (seed, step),
so neither a scheduler nor random states have to be saved; bf16 needs no gradient scaler.
"""

import io
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gcvideo import distributed
from gcvideo.console import warn
from gcvideo.errors import CheckpointError
from gcvideo.files import write_atomically
from gcvideo.weights.reading import read_file

FORMAT = 1


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: an older file at ``path`` is unchanged where the disk is full."""
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    write_atomically(path, content.getbuffer())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU and check every byte against the file's checksums.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds more than tensors and plain values, or one of
            another program or a newer gcvideo.
    """
    state = read_file(Path(path))
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        raise CheckpointError(f"{path}: not a gcvideo checkpoint; bring foreign weights in with gcvideo convert")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path}: has format {state['format']}, this gcvideo reads {FORMAT}; update gcvideo")
    return dict(state)


class CheckpointFolder:
    """Checkpoints of one run: the latest as ``step_00001200.pt``, and ``last.pt`` and ``best.pt``.

    ``last.pt`` and ``best.pt`` are hard links to numbered files, so they need no space of their own.

    Args:
        folder: of the checkpoints.
        keep: number of latest checkpoints to keep, the last one included; at least 1.

    Attributes:
        saved: time, by ``time.monotonic``, of the last ``save`` of this process, or of the start.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.last = self.folder / "last.pt"
        self.best = self.folder / "best.pt"
        self.saved = time.monotonic()
        self._writer, self._written = ThreadPoolExecutor(1), Future[None]()
        self._written.set_result(None)

    def save(self, state: dict[str, Any], *, best: bool = False) -> None:
        """Write a checkpoint and link ``last.pt`` to it; with ``best`` also ``best.pt``."""
        self.saved = time.monotonic()
        numbered = self.folder / f"step_{state['step']:08d}.pt"
        save_checkpoint(numbered, state)
        for name in (self.last, self.best) if best else (self.last,):
            _link(numbered, name)
        older = [path for path in self._numbered() if path != numbered]
        # And leftovers of a process that was killed while it wrote.
        for old in (*older[self.keep - 1 :], *self.folder.glob(".*.pt*")):
            old.unlink(missing_ok=True)

    def save_in_thread(self, state: dict[str, Any], *, best: bool = False) -> None:
        """Copy a state, and ``save`` the copy while the training continues; an error in that is raised by ``wait``."""
        self.wait()
        # Onto the host, so that the thread does nothing on a device where a graph may be recorded meanwhile.
        copied = tree_map(lambda value: value.to("cpu", copy=True) if isinstance(value, Tensor) else value, state)
        self._written = self._writer.submit(self.save, copied, best=best)

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        self._written.result()

    def load_latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, with its ``path``; None if there is no checkpoint.

        Rank 0 chooses and every process reads. Damaged checkpoints are skipped with a warning and renamed to
        ``*.damaged``. ``best.pt`` comes last, because it may be much older than the others.

        Raises:
            CheckpointError: there are checkpoints, but none can be read. Raised on every process.
        """
        path = distributed.on_main(self._newest_readable)
        return None if path is None else {**load_checkpoint(path), "path": str(path)}

    def _newest_readable(self) -> Path | None:
        damaged: list[Path] = []
        for path in [path for path in (self.last, *self._numbered(), self.best) if path.exists()]:
            try:
                load_checkpoint(path)
            except CheckpointError as error:
                warn(f"{error}; trying the one before it")
                damaged.append(path)
            else:
                if path == self.best:
                    warn(f"{path} is used, the best validation so far: later steps are repeated")
                for other in damaged:
                    other.rename(f"{other}.damaged")
                return path
        if damaged:
            raise CheckpointError(f"{self.folder}: none of the checkpoints can be read; start again with --overwrite")
        return None

    def _numbered(self) -> list[Path]:
        """Newest first by modification time, because a run that resumes with a larger batch counts fewer steps."""
        return sorted(self.folder.glob("step_*.pt"), key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)


def _link(source: Path, target: Path) -> None:
    """Atomically make ``target`` another name of ``source``; a copy where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
