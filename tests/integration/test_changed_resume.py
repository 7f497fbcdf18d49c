"""What ``--resume`` does where the config, the data or the run itself are no longer those of the checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gcvideo.cli import main
from gcvideo.config import RunConfig, save_config
from gcvideo.errors import ConfigError
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.train.state import differences
from gcvideo.train.trainer import Trainer
from tests.training import complaints, last_state, make_videos, train_config


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
        ("optim.optimizer: was sgd", "optim", {"optimizer": "adamw", "lr": 0.02}),
        ("optim.decay_norm_and_bias: was True", "optim", {"decay_norm_and_bias": False}),
        (r"train.freeze: was \[\]", "train", {"freeze": ["stem"]}),
    ],
)
def test_another_optimizer_is_refused_by_the_key_that_changed(
    trained: RunConfig, key: str, section: str, values: dict[str, Any]
) -> None:
    config = again(trained, key.split(":")[0], **{section: values})
    with pytest.raises(ConfigError, match=rf"^{key} in the checkpoint .*model\.weights=.*last\.pt$"):
        Trainer(config).fit(resume=True)


def test_adamw_does_not_go_on_as_sgd(place: Path) -> None:
    config = train_config(place, "adamw", optim={"optimizer": "adamw", "lr": 0.02}, train={"epochs": 1})
    Trainer(config).fit()
    config.optim.optimizer, config.train.epochs = "sgd", 2
    with pytest.raises(ConfigError, match=r"^optim\.optimizer: was adamw"):
        Trainer(config).fit(resume=True)
    fresh = train_config(place, "fresh", train={"epochs": 1})
    fresh.model.weights = str(config.run_dir / "checkpoints" / "last.pt")  # as the message says
    Trainer(fresh).fit()


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_keeps_its_test_and_its_times(place: Path) -> None:
    config = train_config(place, "tested", train={"epochs": 1})
    first = Trainer(config).fit()
    assert main(["test", str(config.run_dir)]) == 0
    path = config.run_dir / "results.json"
    before = json.loads(path.read_text())
    assert before["answered"] == 8
    yaml = place / "tested.yaml"
    save_config(config, yaml)
    assert main(["train", str(yaml), "--resume"]) == 0
    after = json.loads(path.read_text())
    assert {**after, "training": None} == {**before, "training": None}
    assert "<h2>Test</h2>" in (config.run_dir / "report.html").read_text()
    for name in ("data_seconds", "compute_seconds"):
        assert after["training"][name] == pytest.approx(first[name])
    assert after["training"]["data_seconds"] > 0


def test_a_run_that_was_trained_further_loses_the_test_of_what_it_was(trained: RunConfig) -> None:
    config = again(trained, "further", train={"epochs": 2})
    path = config.run_dir / "results.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "answered": 8}))
    Trainer(config).fit(resume=True)
    after = json.loads(path.read_text())
    assert after.keys() == {"training"}
    assert after["training"]["data_seconds"] > before["training"]["data_seconds"]  # of both parts
    assert after["training"]["compute_seconds"] > before["training"]["compute_seconds"]


def test_another_order_of_the_training_list_is_told(tmp_path: Path) -> None:
    annotation = make_videos(tmp_path) / "val.txt"
    lines = annotation.read_text().splitlines(keepends=True)
    config = train_config(tmp_path, train={"epochs": 1})
    Trainer(config).fit()
    state = load_checkpoint(config.run_dir / "checkpoints" / "last.pt")
    Trainer(config).fit(resume=True)
    assert complaints(config) == []
    annotation.write_text("".join(reversed(lines)))
    Trainer(config).fit(resume=True)
    (warning,) = complaints(config)
    assert "fingerprint of the order of the training videos was " in warning
    older = {key: value for key, value in state.items() if key != "order"}
    assert differences(older, {"config": state["config"], "order": "another"}) == {}
