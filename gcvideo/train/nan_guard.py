"""Non-finite losses, weights and scores: the training stops and names the videos of the batch."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gcvideo import distributed
from gcvideo.data.dataset import ClipBatch
from gcvideo.data.records import RecordTable
from gcvideo.errors import TrainingError
from gcvideo.eval.metrics import NO_STEP, TrainMeter
from gcvideo.eval.predictions import Predictions
from gcvideo.files import write_json
from gcvideo.train.schedule import Position

# Weights can be finite, and so be saved, but too large to train from.
ADVICE = (
    "Lower optim.lr or set optim.clip_grad_norm, then --resume. If it fails again immediately, the last checkpoint is "
    "corrupted too: remove last.pt and the newest step_*.pt, and --resume"
)


class NonFiniteGuard:
    """Remembers the batches since the last check and stops the run if one of their losses was not finite.

    Losses are checked at log and checkpoint time only, which adds no wait for the device. The last update shows in no
    loss yet, so weights are checked before they are saved.

    Args:
        meter: of all losses.
        records: that the indices of batches refer to.
        path: file to write that names the videos of the failed step.
    """

    def __init__(self, meter: TrainMeter, records: RecordTable, path: Path) -> None:
        self.meter, self.records, self.path = meter, records, path
        self._recent: list[dict[str, Any]] = []

    def note(self, batches: Iterable[ClipBatch], position: Position, *, lr: float) -> None:
        """Remember the micro-batches of the step at this position."""
        step = {"step": position.step, "epoch": position.epoch, "lr": lr, "rank": distributed.rank()}
        for batch in batches:
            self._recent.append({**step, "videos": [self.records[i].id for i in batch.indices.tolist()]})

    def check_scores(self, predictions: Predictions) -> None:
        """Check validation scores.

        Args:
            predictions: of all processes, on every process.

        Raises:
            TrainingError: some scores are not finite.
        """
        if bad := predictions.count_non_finite():
            raise TrainingError(f"scores of {bad} of {len(predictions)} validation videos are not finite. {ADVICE}")

    def check_weights(self, *networks: nn.Module, step: int) -> None:
        """Check parameters and buffers before they are saved. Every process must call it.

        Args:
            step: optimizer steps taken, for the message.

        Raises:
            TrainingError: on every process, if any of them has such a network.
        """
        tensors = [t for network in dict.fromkeys(networks) for t in network.state_dict().values()]
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
        if distributed.agree(int(not finite)):
            raise TrainingError(f"the weights are not finite after {step} steps. {ADVICE}")

    def check_losses(self, mean: float = math.nan, *, before: int = 0) -> None:
        """Check the losses since the last check. Every process must call it. Waits for the device.

        Args:
            mean: of those before a step, over all processes, if it is known: where it is finite, they are sound.
            before: the step.

        Raises:
            TrainingError: on every process, if any of them had a loss that is not finite.
        """
        if math.isfinite(mean):
            self._recent = [batch for batch in self._recent if batch["step"] >= before]
            return
        bad = self.meter.first_bad_step()
        first = -distributed.agree(-bad)  # of any process
        if first == NO_STEP:
            self._recent.clear()
            return
        found = distributed.gather_objects([batch for batch in self._recent if batch["step"] == bad == first])
        batches = [batch for part in found for batch in part]
        if distributed.is_main():
            write_json(self.path, {"batches": batches})
        raise TrainingError(
            f"the loss is not finite at step {first}; {self.path} names the videos of its batch. {ADVICE}"
        )
