"""Accuracy: of scores at hand, and of training while it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcvideo import distributed


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax along the last axis, in the dtype of its input."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before each label: 0 where it is the best one.

    Equal scores count in the order of the classes, as in a stable sort, so that ranks do not depend on the machine.
    Where a score is NaN there is no order: the label ranks after all classes.

    Args:
        scores: (N, K).
        labels: (N,) in [0, K).

    Returns:
        (N,) int64.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None] < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    ranks[np.isnan(scores).any(axis=1)] = np.iinfo(np.int32).max
    return ranks


def by_class(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy of each class, what is taken for what, and how far confidence is from accuracy.

    Args:
        scores: (V, K), rows sum to 1.
        labels: (V,) in [0, K).

    Returns:
        ``per_class``: K fractions of videos that are right, None for a class without videos.
        ``confusions``: [label, predicted, count] of every mistake made, the most frequent first.
        ``calibration_error``: the expected calibration error of Guo et al. 2017, over 15 bins.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

    classes = scores.shape[1]
    predicted, right = torch.from_numpy(scores), torch.from_numpy(labels)
    matrix = multiclass_confusion_matrix(predicted, right, num_classes=classes).numpy()  # (label, predicted)
    totals = matrix.sum(axis=1)
    mistakes = [
        [int(label), int(taken_for), int(matrix[label, taken_for])]
        for label, taken_for in np.argwhere(matrix)
        if label != taken_for
    ]
    return {
        "per_class": [matrix[k, k].item() / totals[k].item() if totals[k] else None for k in range(classes)],
        "confusions": sorted(mistakes, key=lambda mistake: (-mistake[2], mistake[0], mistake[1])),
        "calibration_error": multiclass_calibration_error(predicted, right, num_classes=classes, n_bins=15).item(),
    }


class TrainMeter:
    """Loss and accuracy of the steps since the last reading, kept on the device.

    ``add`` never makes the host wait for the device; ``read`` does, once. So a loop that reads every N steps lets the
    host run ahead for N steps. A loss that is not finite is remembered with its step, however late it is read.

    Args:
        device: where losses and logits are.
    """

    def __init__(self, device: torch.device) -> None:
        # Sum of losses, right answers, clips, sum of gradient norms, micro-batches, steps.
        self._sums = torch.zeros(6, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        self._no_step = torch.tensor(torch.iinfo(torch.int64).max, device=device)
        self._first_bad = self._no_step.clone()

    @torch.no_grad()
    def add(self, step: int, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a micro-batch: its mean loss, its logits (N, K), its labels (N,)."""
        self._sums[0] += loss
        self._sums[1] += (logits.argmax(dim=1) == labels).sum()
        self._sums[2] += len(labels)
        self._sums[4] += 1
        bad = torch.where(torch.isfinite(loss), self._no_step, torch.full_like(self._no_step, step))
        self._first_bad = torch.minimum(self._first_bad, bad)

    @torch.no_grad()
    def add_step(self, grad_norm: Tensor | None) -> None:
        """Count an optimizer step, with the norm of its gradients where it was computed."""
        self._sums[5] += 1
        if grad_norm is not None:
            self._sums[3] += grad_norm

    def first_bad_step(self) -> int | None:
        """The first step since the beginning with a loss of this process that is not finite. Waits for the device."""
        step = int(self._first_bad)
        return None if step == int(self._no_step) else step

    def read(self) -> dict[str, float]:
        """Means since the last reading, over all processes: ``loss``, ``top1`` (a fraction), ``grad_norm``; and
        the numbers of ``steps`` and of ``clips`` in them.

        Every process must call it. Waits for the device.
        """
        loss, right, clips, norm, micro_batches, steps = distributed.all_reduce(self._sums).tolist()
        self._sums.zero_()
        return {
            "loss": loss / max(micro_batches, 1),
            "top1": right / max(clips, 1),
            "grad_norm": norm / max(steps, 1),
            "steps": steps / distributed.world_size(),
            "clips": clips,
        }
