"""Ensemble of several trained networks: the mean of their scores, each network with its own clips and views."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from gcvideo.config import TestConfig
from gcvideo.data.records import Failure, RecordTable
from gcvideo.errors import ConfigError
from gcvideo.predict.inputs import rereadable
from gcvideo.predict.predictor import Predictor


class Ensemble(Predictor):
    """Several predictors as one, which averages their scores of whole videos.

    Of several labels a video, the thresholds are averaged too. Timelines, embeddings and maps are those of one network,
    so it has none.

    Args:
        members: at least one; each reads the videos as its own config says.

    Raises:
        ConfigError: they do not have the same classes in the same order, or some give one label a video, some several.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        first = members[0]
        super().__init__(first.model, config=first.config, classes=first.classes)
        self.source = ", ".join(member.source for member in members)
        self.members, self.shows_layers = members, False
        for member in members:
            if (member.classes, member.thresholds is None) != (first.classes, first.thresholds is None):
                why = "have other classes, or one gives a video several labels (multi_label): they cannot be averaged"
                raise ConfigError(f"{member.source} and {first.source} {why}")
        if self.thresholds is not None:
            self.thresholds = np.mean([one.thresholds for one in members if one.thresholds is not None], axis=0)

    def score_files(
        self, videos: Sequence[Any] | RecordTable, *, test: TestConfig | None = None, **options: Any
    ) -> Iterator[np.ndarray | Failure]:
        """Mean scores (K,) float32 of each video; see ``Predictor.score_files``.

        Args:
            test: what differs in it from the first network's views is changed for all; the rest each has of its own.
        """
        own = asdict(self.config.test)
        changed = {name: value for name, value in asdict(test or self.config.test).items() if value != own[name]}
        kept = videos if isinstance(videos, RecordTable) else [*map(rereadable, videos)]
        scores = [one.score_files(kept, test=replace(one.config.test, **changed), **options) for one in self.members]
        for found in zip(*scores, strict=True):
            failure = next((each for each in found if isinstance(each, Failure)), None)
            yield failure or np.mean(found, axis=0)

    def timeline(self, source: Any, **options: Any) -> Any:
        """Refused: each network has its own windows."""
        raise ConfigError(f"timeline: takes one network, not {len(self.members)}")
