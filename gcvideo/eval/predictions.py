"""Predictions of a test: the scores of every video by every ensemble; save, load, average and score them.

``predictions.npz`` holds plain arrays (no pickles), so that any tool can read it:

========================== ============== =========================================================================
``ids``, ``paths``         (V,) str       the videos, in the order of the annotation
``indices``                (V,) int64     their places in the annotation
``labels``                 (V,) int64     -1 where the annotation gives none; of several labels a video (V, K) int8, 1
                                          where it has the class
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

from gcvideo.data.records import Failure
from gcvideo.errors import DataError
from gcvideo.eval.metrics import label_ranks, score_classes
from gcvideo.files import write_atomically

ENSEMBLES = ("softmax", "logits", "max")
# Integer columns of ``Predictions``, and the field of ``VideoScores`` that each is made of.
COUNTS = {"indices": "index", "labels": "label", "views": "views", "clip_top1": "clip_top1", "clip_top5": "clip_top5"}


@dataclass(frozen=True, slots=True)
class VideoScores:
    """Scores of one video: each ensemble's are (K,) float32."""

    index: int
    id: str
    label: int | Sequence[int]
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


def _integers(values: Sequence[Any], classes: int) -> np.ndarray:
    """int64 (V,); of label sets int8 (V, K), 1 for the classes in each; -1 where a set is unknown, and is -1 itself."""
    if all(isinstance(value, int) for value in values):
        return np.array(values, np.int64)
    return np.array([[-1 if value == -1 else k in value for k in range(classes)] for value in values], np.int8)


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
        """Gather the scores of single videos, in the order of their indices."""
        videos = sorted(videos, key=lambda video: video.index)
        empty = np.zeros((0, 0), np.float32)
        classes = len(videos[0].softmax) if videos else 0
        columns = {name: [getattr(video, own) for video in videos] for name, own in COUNTS.items()}
        counts: dict[str, Any] = {name: _integers(column, classes) for name, column in columns.items()}
        return cls(
            ids=[video.id for video in videos],
            averages={name: np.stack([getattr(v, name) for v in videos]) if videos else empty for name in ENSEMBLES},
            failures=sorted(failures),
            ensemble=ensemble,
            **counts,
        )

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """Predictions on different videos as one, as of all processes or folds, in the order of their indices."""
        filled = [part for part in parts if len(part)] or list(parts[:1])
        counts: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in filled]) for name in COUNTS}
        whole = replace(
            filled[0],
            ids=[id_ for part in filled for id_ in part.ids],
            paths=[path for part in filled for path in part.paths],
            averages={name: np.concatenate([part.averages[name] for part in filled]) for name in ENSEMBLES},
            failures=sorted(failure for part in parts for failure in part.failures),
            **counts,
        )
        return whole.select(np.argsort(whole.indices, kind="stable"))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scores(self) -> np.ndarray:
        """Video scores (V, K) float32 by the chosen ensemble."""
        return self.averages[self.ensemble]

    @property
    def known(self) -> np.ndarray:
        """Which videos have a label, or of several the word that they have none: bool (V,)."""
        return np.min(self.labels.reshape(len(self), self.labels[:1].size), axis=1, initial=0) >= 0

    @property
    def multi_label(self) -> bool:
        """Whether the labels are several a video."""
        return self.labels.ndim == 2

    def select(self, keep: np.ndarray | Sequence[bool]) -> Predictions:
        """The videos where ``keep`` (V,) bool is true, or those at the indices in it, with all failures."""
        kept = np.asarray(keep)
        return replace(
            self,
            ids=np.array(self.ids, object)[kept].tolist(),
            paths=np.array(self.paths, object)[kept].tolist() if self.paths else [],
            averages={name: scores[kept] for name, scores in self.averages.items()},
            **{name: getattr(self, name)[kept] for name in COUNTS},
        )

    @classmethod
    def average(
        cls, several: Sequence[Predictions], *, names: Sequence[str], weights: Sequence[float] | None = None
    ) -> Predictions:
        """Ensemble several networks that were tested on the same videos: the mean of their scores, by each ensemble.

        Args:
            several: videos are matched by their ids; the result has the order of the first.
            names: of the files, for the errors.
            weights: of the networks, 0 or more; equal by default.

        Raises:
            DataError: they have other videos, labels or classes.
        """
        first = several[0]
        if len(several) == 1:
            return first  # with its own checkpoint
        aligned = [one.aligned_with(first, names=(name, names[0])) for name, one in zip(names, several, strict=True)]
        summed = ("views", "clip_top1", "clip_top5")
        totals = {name: np.sum([getattr(one, name) for one in aligned], axis=0) for name in summed}
        info = {**first.info, "checkpoint": {"average_of": [one.info.get("checkpoint") for one in several]}}
        averages = {
            name: np.average([one.averages[name] for one in aligned], axis=0, weights=weights).astype(np.float32)
            for name in ENSEMBLES
        }
        return replace(first, averages=averages, info=info, **totals)

    def aligned_with(self, other: Predictions, *, names: tuple[str, str]) -> Predictions:
        """These videos in the order of the other ones'; a ``DataError`` says where the two files, ``names``, differ."""
        both = f"{names[0]} and {names[1]} are of different tests: "
        if self.scores.shape[1:] != other.scores.shape[1:] or self.classes != other.classes:
            raise DataError(f"{both}they have other classes")
        order, wanted = (np.argsort(np.array(ids, np.str_), kind="stable") for ids in (self.ids, other.ids))
        if [self.ids[i] for i in order] != [other.ids[i] for i in wanted]:
            differing = sorted({*self.ids} ^ {*other.ids}) or sorted(self.ids)
            only = names[differing[0] not in self.ids]
            raise DataError(f"{both}they do not hold the same videos; {differing[0]!r} is in {only} alone")
        matched = self.select(order[np.argsort(wanted, kind="stable")])
        pairs = zip(matched.labels.tolist(), other.labels.tolist(), strict=True)
        if unequal := [index for index, (one, two) in enumerate(pairs) if one != two]:
            raise DataError(f"{both}they label {other.ids[unequal[0]]!r} differently")
        return matched

    def count_non_finite(self) -> int:
        """How many videos have a score that is NaN or infinite, by any ensemble."""
        finite = [np.isfinite(scores).all(axis=1) for scores in self.averages.values()]
        return int((~np.logical_and.reduce(finite)).sum())

    def accuracy(self) -> dict[str, dict[str, float]]:
        """Top-1 and top-5 by name, as fractions in [0, 1].

        ``clip``: the share of views that are right each on its own. ``video``: the share of videos that are right
        once their views are ensembled, the metric that papers quote. Both are over the videos that have a label and
        could be read; ``video_of_all`` counts those that could not be read as wrong.

        Of several labels a video instead ``video``: ``mAP``, the mean over the classes of ``score_classes`` that
        any video has, and ``chance``, what scores at random reach: the mean share of the videos with each class.
        """
        known = self.known
        if not known.any():
            return {}
        if self.multi_label:
            truth = self.labels[known] == 1
            precisions, shares = score_classes(self.scores[known], truth)[0], truth.mean(axis=0)
            if not truth.any():
                return {}
            return {"video": {"mAP": float(np.nanmean(precisions)), "chance": float(shares[shares > 0].mean())}}
        ranks = label_ranks(self.scores[known], self.labels[known])
        views, videos = int(self.views[known].sum()), int(known.sum())
        hits = {"top1": int((ranks < 1).sum()), "top5": int((ranks < 5).sum())}
        return {
            "clip": {top: int(getattr(self, f"clip_{top}")[known].sum()) / views for top in hits},
            "video": {top: count / videos for top, count in hits.items()},
            "video_of_all": {top: count / (videos + len(self.failures)) for top, count in hits.items()},
        }

    def summary(self) -> dict[str, Any]:
        """Accuracy, counts and failures, as plain values for ``results.json``."""
        return {
            **self.accuracy(),
            "ensemble": "sigmoid" if self.multi_label and self.ensemble == "softmax" else self.ensemble,
            "videos": len(self) + len(self.failures),
            "answered": len(self),
            "failed": len(self.failures),
            "views": int(self.views.sum()),
            "failures": [failure._asdict() for failure in self.failures],
        }

    def save(self, path: str | Path, *, compress: bool = True) -> None:
        """Write ``predictions.npz``: complete or not at all. Compressing 20,000 videos' scores takes many seconds."""
        failed = {f"failed_{name}s": [getattr(f, name) for f in self.failures] for name in Failure._fields}
        texts = {"ids": self.ids, "paths": self.paths, "classes": self.classes, **failed}
        arrays: dict[str, Any] = {
            "scores": self.scores,
            **self.averages,
            **{name: getattr(self, name) for name in COUNTS},
            **{name: np.array(list(values), dtype=np.str_) for name, values in texts.items()},
            "info": np.array(json.dumps({**self.info, "ensemble": self.ensemble})),
        }
        buffer = io.BytesIO()
        (np.savez_compressed if compress else np.savez)(buffer, **arrays)
        write_atomically(path, buffer.getbuffer())

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read ``predictions.npz``, or that of a run by its folder; a ``DataError`` names a file that is not one."""
        path = Path(path).expanduser()
        path = path / "predictions.npz" if path.is_dir() else path
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            info = json.loads(str(arrays["info"]))
            failed = [arrays[f"failed_{name}s"] for name in Failure._fields]
            return cls(
                ids=arrays["ids"].tolist(),
                paths=arrays["paths"].tolist(),
                averages={name: arrays[name] for name in ENSEMBLES},
                failures=[Failure(*map(str, row)) for row in zip(*failed, strict=True)],
                ensemble=info["ensemble"],
                classes=arrays["classes"].tolist(),
                info=info,
                **{name: arrays[name] for name in COUNTS},
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a predictions.npz of gcvideo ({str(error).splitlines()[0]})") from None
