"""What ``--resume`` does where the config, the data or the run itself are no longer those of the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gcvideo.config import RunConfig
from gcvideo.engine.trainer import Trainer
from gcvideo.errors import ConfigError
from tests.training import last_state, make_videos, train_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("changed"))


@pytest.fixture(scope="module")
def trained(place: Path) -> RunConfig:
    """A run of one epoch with SGD; tests go on with copies of it."""
    config = train_config(place, "trained", train={"epochs": 1})
    Trainer(config).fit()
    return config


def again(trained: RunConfig, name: str, **sections: dict[str, Any]) -> RunConfig:
    """A copy of the run, and a config that differs from its own."""
    config = train_config(Path(trained.output).parent, name, **sections)
    assert config.output == trained.output
    shutil.copytree(trained.run_dir, config.run_dir)
    return config


def groups(config: RunConfig) -> list[dict[str, Any]]:
    return last_state(config)["optimizer"]["param_groups"]


def test_changed_settings_of_the_optimizer_are_put_into_effect(place: Path, trained: RunConfig) -> None:
    optim = {"weight_decay": 0.5, "momentum": 0.5, "nesterov": False}
    config = again(trained, "settings", optim=optim, train={"epochs": 2})
    Trainer(config).fit(resume=True)
    (group,) = groups(config)
    assert {key: group[key] for key in optim} == optim
    unchanged = again(trained, "unchanged", train={"epochs": 2})
    Trainer(unchanged).fit(resume=True)
    weight = "stem.conv.weight"
    decayed, kept = (last_state(run)["model"][weight].norm() for run in (config, unchanged))
    assert decayed < 0.99 * kept


@pytest.mark.parametrize(
    ("key", "section", "values"),
    [
        ("optim.optimizer: was 'sgd'", "optim", {"optimizer": "adamw", "lr": 1e-3}),
        ("optim.decay_norm_and_bias: was True", "optim", {"decay_norm_and_bias": False}),
        (r"train.freeze: was \[\]", "train", {"freeze": ["stem"]}),
    ],
)
def test_another_optimizer_is_refused_by_the_key_that_changed(
    trained: RunConfig, key: str, section: str, values: dict[str, Any]
) -> None:
    config = again(trained, key.split(":")[0], **{section: values})
    with pytest.raises(ConfigError, match=rf"^{key} in .*last\.pt .*model\.weights=.*last\.pt$"):
        Trainer(config).fit(resume=True)


def test_adamw_does_not_go_on_as_sgd(place: Path) -> None:
    config = train_config(place, "adamw", optim={"optimizer": "adamw", "lr": 1e-3}, train={"epochs": 1})
    Trainer(config).fit()
    config.optim.optimizer, config.train.epochs = "sgd", 2
    with pytest.raises(ConfigError, match=r"^optim\.optimizer: was 'adamw'"):
        Trainer(config).fit(resume=True)
    fresh = train_config(place, "fresh", train={"epochs": 1})
    fresh.model.weights = str(config.run_dir / "checkpoints" / "last.pt")  # as the message says
    Trainer(fresh).fit()
