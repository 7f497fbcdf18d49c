"""Non-finite losses, weights and scores: the training stops and names the videos of the batch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo import distributed
from gcvideo.data.dataset import ClipBatch
from gcvideo.data.records import RecordTable
from gcvideo.errors import TrainingError
from gcvideo.eval.metrics import TrainMeter
from gcvideo.eval.predictions import Predictions
from gcvideo.files import write_json
from gcvideo.train.schedule import Position


class NonFiniteGuard:
    """Remembers the batches since the last check and stops the run if one of their losses was not finite.

    Losses are checked at log and checkpoint time only, which adds no wait for the device. The last update shows in no
    loss yet, so weights are checked before they are saved.

    Args:
        meter: of all losses.
        records: that the indices of batches refer to.
        path: file to write that names the videos of the failed step.
        checkpoints: folder of the run's checkpoints, for advice.
    """

    def __init__(self, meter: TrainMeter, records: RecordTable, path: Path, checkpoints: Path) -> None:
        self.meter, self.records, self.path, self.checkpoints = meter, records, path, checkpoints
        self._recent: list[tuple[int, int, float, Tensor]] = []

    def note(self, batches: Iterable[ClipBatch], position: Position, *, lr: float) -> None:
        """Remember the micro-batches of the step at this position."""
        self._recent += [(position.step, position.epoch, lr, batch.indices) for batch in batches]

    def check_scores(self, predictions: Predictions) -> None:
        """Check validation scores.

        Args:
            predictions: of all processes, on every process.

        Raises:
            TrainingError: some scores are not finite.
        """
        bad = predictions.count_non_finite()
        if bad:
            raise TrainingError(
                f"the network's scores of {bad} of {len(predictions)} validation videos are not finite. "
                f"{self._advice()}"
            )

    def check_weights(self, *networks: nn.Module, step: int) -> None:
        """Check parameters and buffers before they are saved. Every process must call it.

        Args:
            step: optimizer steps taken, for the message.

        Raises:
            TrainingError: on every process, if any of them has such a network.
        """
        tensors = [
            t.detach() for network in dict.fromkeys(networks) for t in (*network.parameters(), *network.buffers())
        ]
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
        if distributed.agree(int(not finite)):
            raise TrainingError(f"the weights are not finite after {step} steps. {self._advice()}")

    def check_losses(self) -> None:
        """Check the losses since the last check. Every process must call it. Waits for the device.

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
        """What to do next. Weights can be finite, and so be saved, but too large to train from."""
        if not any(self.checkpoints.glob("*.pt")):
            return (
                "No checkpoint was saved: lower optim.lr or set optim.clip_grad_norm, then start again with --overwrite"
            )
        return (
            "Lower optim.lr or set optim.clip_grad_norm, then --resume. If it fails again immediately, the last "
            f"checkpoint is corrupted too: remove last.pt and the newest step_*.pt of {self.checkpoints}, and --resume "
            "continues from the checkpoint before it, else from best.pt, else from the beginning"
        )
