"""Metrics: ranks, confusions, calibration and average precision; loss and accuracy of a training while it runs."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcvideo import distributed
from gcvideo.device import start_copy_to_host

DEFAULT_THRESHOLD = 0.5
NO_STEP = 2**63 - 1


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax along the last axis, in the dtype of its input."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) of each value, in the dtype of its input."""
    return np.exp(-np.logaddexp(0, -logits))


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


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share by the score of Wilson (1927), which holds for few trials and near 0 and 1 too."""
    z, share = 1.959964, hits / trials
    centre, half = share + z**2 / (2 * trials), z * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return (centre - half) / (1 + z**2 / trials), (centre + half) / (1 + z**2 / trials)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) counts of labels and predicted classes, both (V,): row the true class, column the predicted one."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def calibration(confidence: np.ndarray, right: np.ndarray, *, bins: int = 15) -> dict[str, Any]:
    """Expected calibration error and its bins: whether a confidence of 0.8 is correct 8 times in 10.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equations 2 to 5: videos are put into ``bins`` equally
    wide bins by the probability of their best class; the error is the mean over all videos of the gap between a
    bin's accuracy and its mean confidence.

    Args:
        confidence: (V,) the probability of each video's best class.
        right: (V,) bool, whether that class is the true one.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bin m is ((m - 1) / M, m / M]
    rows = [
        {
            "from": m / bins,
            "to": (m + 1) / bins,
            "videos": int((place == m).sum()),
            "confidence": float(confidence[place == m].mean()),
            "accuracy": float(right[place == m].mean()),
        }
        for m in np.unique(place).tolist()
    ]
    error = sum(row["videos"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(confidence)
    return {"expected_calibration_error": error, "bins": rows}


def score_classes(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision of each class where videos have several labels, and the threshold of its best F1.

    Average precision is the sum over n of (R_n - R_(n-1)) P_n, with recall R_n and precision P_n at the n-th distinct
    score from above: not interpolated, as in scikit-learn's ``average_precision_score``. VOC and ActivityNet
    interpolate P, which never gives less. A threshold lies halfway from the last score that is a label to the next.

    Args:
        scores: (V, K) in [0, 1]; equal ones share a threshold.
        truth: (V, K) bool: which videos show which class.

    Returns:
        (K,) in [0, 1], NaN for a class that no video shows; (K,) thresholds, 0.5 for such a class.
    """
    precisions, limits = np.full(scores.shape[1], np.nan), np.full(scores.shape[1], DEFAULT_THRESHOLD)
    for k in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-scores[:, k], kind="stable")
        last = np.flatnonzero(np.diff(scores[order, k], append=-np.inf))  # of equal scores
        hits = np.cumsum(truth[order, k])[last]
        precisions[k] = (np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1]
        best = int((hits / (last + 1 + hits[-1])).argmax())  # F1 = 2 hits / (labels + true labels)
        limits[k] = np.append(scores[order[last], k], 0.0)[best : best + 2].mean()
    return precisions, limits


class TrainMeter:
    """Loss and accuracy of the steps since the last reading, kept on the device.

    Counting never makes the host wait for the device; reading does, and ``read_later`` for what is long done. A loss
    that is not finite is remembered with its step, however late it is read.

    Args:
        device: where losses and logits are.
    """

    def __init__(self, device: torch.device) -> None:
        # Sum of losses, correct clips, clips, sum of gradient norms, micro-batches, steps.
        self._sums = torch.zeros(6, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        self._no_step = torch.tensor(NO_STEP, device=device)
        self._first_bad = self._no_step.clone()
        self._waiting = deque[tuple[Callable[[], Tensor], Callable[[dict[str, float]], object]]]()

    @torch.no_grad()
    def add(self, step: int | Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a micro-batch: its mean loss, its logits (N, K), its labels (N,); of several, (N, L), each is right."""
        self._sums[0] += loss
        right = logits.argmax(dim=1) == labels if labels.ndim == 1 else logits.argmax(dim=1, keepdim=True) == labels
        self._sums[1] += right.sum()
        self._sums[2] += len(labels)
        self._sums[4] += 1
        torch.minimum(self._first_bad, torch.where(loss.isfinite(), self._no_step, step), out=self._first_bad)

    @torch.no_grad()
    def add_step(self, grad_norm: Tensor | None) -> None:
        """Count an optimizer step, with the norm of its gradients where it was computed."""
        self._sums[5] += 1
        if grad_norm is not None:
            self._sums[3] += grad_norm

    def first_bad_step(self) -> int:
        """The first step with a loss of this process that is not finite, else ``NO_STEP``. Waits for the device."""
        return int(self._first_bad)

    def read_later(self, use: Callable[[dict[str, float]], object], *, leave: int = 0) -> None:
        """End the present count and begin the next; ``use`` is called with the means of the one that ended.

        These are, over all processes, ``loss``, ``top1`` (a fraction), ``grad_norm`` if any; and the numbers of
        ``steps`` and of ``clips`` in them. Every process must call it.

        Args:
            use: called now, or where more counts are waiting than may be left.
            leave: counts that may wait for a later call, so that the host need not wait for the device now.
        """
        self._waiting.append((start_copy_to_host(distributed.all_reduce(self._sums)), use))
        self._sums.zero_()
        self.finish(leave=leave)

    def finish(self, *, leave: int = 0) -> None:
        """Use all waiting counts, or all but the newest ``leave``. Waits for the device."""
        while len(self._waiting) > leave:
            copied, use = self._waiting.popleft()
            loss, right, clips, norm, micro_batches, steps = copied().tolist()
            means = {"loss": loss / max(micro_batches, 1), "top1": right / max(clips, 1)}
            norms = {"grad_norm": norm / steps} if norm else {}
            use({**means, **norms, "steps": steps / distributed.world_size(), "clips": clips})

    def read(self) -> dict[str, float]:
        """The means of ``read_later`` now. Waits for the device."""
        found: list[dict[str, float]] = []
        self.read_later(found.append)
        return found[0]
