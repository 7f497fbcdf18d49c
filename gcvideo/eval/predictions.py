"""What a test leaves: the scores of every video under every way of ensembling, and how to save, load and score them.

``predictions.npz`` holds plain arrays (no pickles), so that any tool can read it:

========================== ============== =========================================================================
``ids``, ``paths``         (V,) str       the videos, in the order of the annotation
``indices``                (V,) int64     their places in the annotation
``labels``                 (V,) int64     -1 where the annotation gives none
``scores``                 (V, K) float32 the scores that the results were computed from, by the ensemble below
``softmax``, ``logits``,   (V, K) float32 the same views ensembled in each of the three ways, so that another one can
``max``                                   be scored later without the model
``views``                  (V,) int64     views of each video
``clip_top1, clip_top5``   (V,) int64     how many of its views, each on its own, have the label among the best 1 and 5
``failed_ids`` and so on   (F,) str       videos that could not be read: id, path, reason
``classes``                (K,) str       class names in label order; empty where unknown
``info``                   () str         JSON: ensemble, fingerprint of the annotation, hash of the checkpoint ...
========================== ============== =========================================================================
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.data.dataset import Failure
from gcvideo.errors import DataError
from gcvideo.eval.metrics import label_ranks
from gcvideo.files import write_atomically

ENSEMBLES = ("softmax", "logits", "max")


@dataclass(frozen=True, slots=True)
class VideoScores:
    """The answer for one video: each ensemble's scores are (K,) float32."""

    index: int
    id: str
    label: int
    views: int
    clip_top1: int
    clip_top5: int
    softmax: np.ndarray
    logits: np.ndarray
    max: np.ndarray

    def to_row(self) -> dict[str, Any]:
        """JSON values from which ``from_row`` makes the same scores again, bit by bit."""
        scores = {name: base64.b64encode(getattr(self, name).tobytes()).decode() for name in ENSEMBLES}
        return {**asdict(self), **scores}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> VideoScores:
        """The scores that ``to_row`` gave."""
        scores = {name: np.frombuffer(base64.b64decode(row[name]), np.float32) for name in ENSEMBLES}
        return cls(**{**row, **scores})


@dataclass
class Predictions:
    """Scores of V videos over K classes, and the videos that failed. Field by field: see the module's table."""

    ids: list[str]
    indices: np.ndarray
    labels: np.ndarray
    averages: dict[str, np.ndarray]
    views: np.ndarray
    clip_top1: np.ndarray
    clip_top5: np.ndarray
    failures: list[Failure] = field(default_factory=list)
    ensemble: str = "softmax"
    paths: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def collect(
        cls, videos: Sequence[VideoScores], *, ensemble: str = "softmax", failures: Sequence[Failure] = ()
    ) -> Predictions:
        """Gather the answers of single videos, in the order of their indices."""
        videos = sorted(videos, key=lambda video: video.index)
        empty = np.zeros((0, 0), np.float32)
        return cls(
            ids=[video.id for video in videos],
            indices=np.array([video.index for video in videos], np.int64),
            labels=np.array([video.label for video in videos], np.int64),
            averages={name: np.stack([getattr(v, name) for v in videos]) if videos else empty for name in ENSEMBLES},
            views=np.array([video.views for video in videos], np.int64),
            clip_top1=np.array([video.clip_top1 for video in videos], np.int64),
            clip_top5=np.array([video.clip_top5 for video in videos], np.int64),
            failures=sorted(failures),
            ensemble=ensemble,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scores(self) -> np.ndarray:
        """Video scores (V, K) float32 by the chosen ensemble."""
        return self.averages[self.ensemble]

    def select(self, keep: np.ndarray | Sequence[bool]) -> Predictions:
        """The videos where ``keep`` (V,) bool is true, with all failures."""
        kept = np.flatnonzero(np.asarray(keep, dtype=bool))
        return replace(
            self,
            ids=[self.ids[i] for i in kept],
            paths=[self.paths[i] for i in kept] if self.paths else [],
            indices=self.indices[kept],
            labels=self.labels[kept],
            averages={name: scores[kept] for name, scores in self.averages.items()},
            views=self.views[kept],
            clip_top1=self.clip_top1[kept],
            clip_top5=self.clip_top5[kept],
        )

    def without_numbers(self) -> int:
        """How many videos have a score that is NaN or infinite, by any ensemble."""
        finite = [np.isfinite(scores).all(axis=1) for scores in self.averages.values()]
        return int((~np.logical_and.reduce(finite)).sum())

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Top-1 and top-5 by name, as fractions in [0, 1].

        ``clip``: the share of views that are right each on its own. ``video``: the share of videos that are right
        once their views are ensembled, the figure that papers quote. Both are over the videos that have a label and
        could be read; ``video_of_all`` counts those that could not be read as wrong.
        """
        known = self.labels >= 0
        if not known.any():
            return {}
        ranks = label_ranks(self.scores[known], self.labels[known])
        views = int(self.views[known].sum())
        answered, total = int(known.sum()), int(known.sum()) + len(self.failures)
        return {
            "clip": {
                "top1": int(self.clip_top1[known].sum()) / views,
                "top5": int(self.clip_top5[known].sum()) / views,
            },
            "video": {"top1": int((ranks < 1).sum()) / answered, "top5": int((ranks < 5).sum()) / answered},
            "video_of_all": {"top1": int((ranks < 1).sum()) / total, "top5": int((ranks < 5).sum()) / total},
        }

    def save(self, path: str | Path) -> None:
        """Write ``predictions.npz``: complete or not at all."""
        arrays = {
            "ids": _strings(self.ids),
            "paths": _strings(self.paths),
            "indices": self.indices,
            "labels": self.labels,
            "scores": self.scores,
            **self.averages,
            "views": self.views,
            "clip_top1": self.clip_top1,
            "clip_top5": self.clip_top5,
            "failed_ids": _strings([failure.id for failure in self.failures]),
            "failed_paths": _strings([failure.path for failure in self.failures]),
            "failed_reasons": _strings([failure.reason for failure in self.failures]),
            "classes": _strings(self.classes),
            "info": np.array(json.dumps({**self.info, "ensemble": self.ensemble})),
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the flags for arrays too
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read ``predictions.npz``; a ``DataError`` names a file that is not one."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            info = json.loads(str(arrays["info"]))
            failed = (arrays["failed_ids"], arrays["failed_paths"], arrays["failed_reasons"])
            return cls(
                ids=arrays["ids"].tolist(),
                paths=arrays["paths"].tolist(),
                indices=arrays["indices"],
                labels=arrays["labels"],
                averages={name: arrays[name] for name in ENSEMBLES},
                views=arrays["views"],
                clip_top1=arrays["clip_top1"],
                clip_top5=arrays["clip_top5"],
                failures=[Failure(*map(str, row)) for row in zip(*failed, strict=True)],
                ensemble=info["ensemble"],
                classes=arrays["classes"].tolist(),
                info=info,
            )
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a predictions.npz of gcvideo ({str(error).splitlines()[0]})") from None


def _strings(values: Sequence[str]) -> np.ndarray:
    return np.array(list(values), dtype=np.str_)
