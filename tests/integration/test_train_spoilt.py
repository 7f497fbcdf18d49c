"""A training whose weights, answers or labels are no use: it stops or says so, and never counts them as the best."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gcvideo.engine.trainer import Trainer
from gcvideo.errors import TrainingError
from tests.training import last_state, make_videos, metrics, train_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("spoilt"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_answers_no_numbers_is_not_the_best(
    place: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are sound, as those are whose products no longer fit into a float32."""
    config = train_config(place, f"answers-{value}", train={"epochs": 1})

    def spoil(self: Trainer) -> None:
        self.learner.tested_network.register_forward_hook(lambda *args: args[-1] * value)

    monkeypatch.setattr(Trainer, "_measure_batch_norms", spoil)
    with pytest.raises(TrainingError, match="scores of 8 of 8 validation videos are not finite"):
        Trainer(config).fit()
    assert last_state(config)["best"] is None
    assert not (config.run_dir / "checkpoints" / "best.pt").exists()
    assert metrics(config, "val") == []
