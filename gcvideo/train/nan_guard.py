"""Noticing a loss, weights or answers that are no longer numbers, and which videos they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo import distributed
from gcvideo.data.records import RecordTable
from gcvideo.errors import TrainingError
from gcvideo.eval.metrics import TrainMeter
from gcvideo.eval.predictions import Predictions
from gcvideo.files import write_json


class LossWatch:
    """Remembers the batches since the last check, and stops the run where one of their losses was not finite.

    The check is made when figures are read anyway and before every checkpoint, so it costs no wait of its own. What
    the last update did shows in no loss yet, so the weights themselves are looked at before they are saved.

    Args:
        meter: that sees every loss.
        records: that the batches' indices refer to.
        path: file that names the videos of the fatal step.
        checkpoints: folder of the run's checkpoints, for advice.
    """

    def __init__(self, meter: TrainMeter, records: RecordTable, path: Path, checkpoints: Path) -> None:
        self.meter, self.records, self.path, self.checkpoints = meter, records, path, checkpoints
        self._recent: list[tuple[int, int, float, Tensor]] = []

    def note(self, *, step: int, epoch: int, lr: float, indices: Tensor) -> None:
        """Remember a micro-batch: ``indices`` (N,) int64 are its records."""
        self._recent.append((step, epoch, lr, indices))

    def check_scores(self, predictions: Predictions) -> None:
        """A network that answers NaN is not to be validated.

        Args:
            predictions: of all processes, on every process.

        Raises:
            TrainingError: some scores are not finite.
        """
        spoilt = predictions.count_non_finite()
        if spoilt:
            raise TrainingError(
                f"the network's scores of {spoilt} of {len(predictions)} validation videos are not finite. "
                f"{self._advice()}"
            )

    def check_weights(self, *networks: nn.Module, step: int) -> None:
        """Never save a network with a parameter or a buffer that is not finite. Every process must call it.

        Args:
            step: optimizer steps taken, for the message.

        Raises:
            TrainingError: on every process, if any of them has such a network.
        """
        tensors = [
            t.detach() for network in dict.fromkeys(networks) for t in (*network.parameters(), *network.buffers())
        ]
        sound = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
        if distributed.agree(int(not sound)):
            raise TrainingError(f"the weights are not finite after {step} steps. {self._advice()}")

    def check(self) -> None:
        """Every process must call it. Waits for the device.

        Raises:
            TrainingError: on every process, if any of them had a loss that is not finite.
        """
        bad = self.meter.first_bad_step()
        if not distributed.agree(int(bad is not None)):
            self._recent.clear()
            return
        mine: list[dict[str, Any]] = [
            {
                "step": step,
                "epoch": epoch,
                "lr": lr,
                "rank": distributed.rank(),
                "videos": [self.records[i].id for i in indices.tolist()],
            }
            for step, epoch, lr, indices in self._recent
            if step == bad
        ]
        batches = [batch for part in distributed.gather_objects(mine) for batch in part]
        first = min(batches, key=lambda batch: int(batch["step"]))
        batches = [batch for batch in batches if batch["step"] == first["step"]]
        if distributed.is_main():
            write_json(self.path, {"batches": batches})
        raise TrainingError(
            f"the loss is not finite at step {first['step']} (lr {first['lr']:.4g}); {self.path} names the videos of "
            f"that batch. {self._advice()}"
        )

    def _advice(self) -> str:
        """What to do next. Weights can be past help and still finite, so even the last checkpoint may be no use."""
        if not any(self.checkpoints.glob("*.pt")):
            return "Nothing was saved yet: lower optim.lr or set optim.clip_grad_norm, then start anew with --overwrite"
        return (
            "Lower optim.lr or set optim.clip_grad_norm, then --resume. Should that end the same way at once, "
            f"the last checkpoint is spoilt too: remove last.pt and the newest step_*.pt of {self.checkpoints}, and "
            "--resume goes on from the one before, else from best.pt, else from the beginning"
        )
