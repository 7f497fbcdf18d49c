"""Checkpoints: written so that no half of one is ever read, read so that no code in one is ever run.

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
``failures``        [[id, path, reason], ...] of videos that could not be read
``world_size``      processes that wrote it
``versions``        of gcvideo, torch and so on
=================== ================================================================================================

The learning rate is a pure function of the step and every random draw one of (seed, epoch, index) or of (seed, step),
so neither a scheduler nor random states have to be saved; bf16 needs no gradient scaler.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

from gcvideo.console import warn
from gcvideo.errors import CheckpointError

FORMAT = 1


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a temporary file beside ``path``, sync it, rename it into place and sync the folder.

    Raises:
        CheckpointError: the disk is full or refuses; what was at ``path`` before is still there.
        TypeError: the state holds something that ``load_checkpoint`` would refuse.
    """
    _check_plain(state)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    noted = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            noted = _ErrorNotingFile(file)
            torch.save({"format": FORMAT, **state}, cast(IO[bytes], noted))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = noted.error if noted and noted.error else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause).splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot write the checkpoint: {reason}; the ones written before are untouched"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _check_plain(value: Any, where: str = "state") -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif not (value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor)):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values only")


class _ErrorNotingFile:
    """Passes bytes on, and remembers the error that torch's zip writer answers with one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; every byte is checked against the file's checksums.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds more than tensors and plain values, or one of
            another program or a newer gcvideo.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the checksums
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or cut short ({str(error).splitlines()[0]})") from None
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: {damaged} does not match its checksum")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds Python objects besides tensors and plain values, which is unsafe to read; "
            "bring foreign weights in with gcvideo convert"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict) or "format" not in state or "model" not in state:
        raise CheckpointError(f"{path}: not a gcvideo checkpoint; bring foreign weights in with gcvideo convert")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path}: has format {state['format']}, this gcvideo reads {FORMAT}; update gcvideo")
    return state


class CheckpointFolder:
    """The checkpoints of one run: the latest ones as ``step_00001200.pt``, and ``last.pt`` and ``best.pt``.

    The last two are further names of numbered files (hard links), so they cost no space of their own.

    Args:
        folder: where they lie.
        keep: how many of the latest to keep, the last one included.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.last = self.folder / "last.pt"
        self.best = self.folder / "best.pt"

    def save(self, state: dict[str, Any], *, best: bool = False) -> None:
        """Write a checkpoint and point ``last.pt`` to it, and ``best.pt`` too where ``best`` says so.

        Raises:
            CheckpointError: the disk is full or refuses; the checkpoints before it are still there.
        """
        numbered = self.folder / f"step_{state['step']:08d}.pt"
        save_checkpoint(numbered, state)
        _name_also(numbered, self.last)
        if best:
            _name_also(numbered, self.best)
        older = [path for path in self._numbered() if path != numbered]
        for old in older[max(self.keep - 1, 0) :]:
            old.unlink(missing_ok=True)
        for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)

    def load_latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None where there is none at all.

        Damaged ones are passed over with a warning and set aside under the ending ``.damaged``. ``best.pt`` comes last:
        it holds as much as the others, but may be from long before.

        Raises:
            CheckpointError: there are some, but none can be read.
        """
        bad: list[Path] = []
        candidates = [path for path in (self.last, *self._numbered(), self.best) if path.exists()]
        for path in candidates:
            if any(path.samefile(other) for other in bad):  # another name of a damaged one
                bad.append(path)
                continue
            try:
                state = load_checkpoint(path)
                if path == self.best:
                    if "optimizer" not in state:
                        raise CheckpointError(f"{path}: holds a network to test, and no training to go on with")
                    warn(f"{path} is taken, the best validation so far: what came after it is done again")
            except CheckpointError as error:
                warn(f"{error}; trying the one before it")
                bad.append(path)
                continue
            for damaged in bad:
                damaged.rename(f"{damaged}.damaged")
            return {**state, "path": str(path)}
        if bad:
            names = ", ".join(path.name for path in bad)
            raise CheckpointError(
                f"{self.folder}: none of the checkpoints can be read ({names}); start anew with --overwrite"
            )
        return None

    def _numbered(self) -> list[Path]:
        """Newest first: by the time of writing, as a run that goes on with a larger batch counts fewer steps."""
        return sorted(self.folder.glob("step_*.pt"), key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)


def _name_also(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``, in one stroke; a copy where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{target}: cannot write the checkpoint: {error.strerror}; {source} is whole") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
