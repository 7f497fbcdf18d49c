"""A start that fails over a mistake costs nothing: neither the run that the folder holds, nor the next start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gcvideo.cli import main
from gcvideo.config import RunConfig, load_config, save_config
from gcvideo.errors import ConfigError, GcvideoError
from gcvideo.train import trainer as trainer_module
from gcvideo.train.trainer import Trainer
from tests.training import complaints, last_state, make_videos, metrics, train_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("mistaken"))


def contents(folder: Path) -> dict[str, bytes]:
    """All that a run has left, but the log, which notes the mistake."""
    other = ("train.log", ".overwrite")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in other]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize(
    ("section", "values"),
    [("data", {"train": {"annotation": "typo.txt"}}), ("model", {"width": 8, "weights": "typo.pt"})],
)
def test_a_mistake_does_not_cost_the_old_run(
    place: Path, section: str, values: dict[str, Any], options: dict[str, bool]
) -> None:
    name = f"old-{section}-{'-'.join(options)}"
    config = train_config(place, name, train={"epochs": 1})
    Trainer(config).fit()
    before = contents(config.run_dir)
    with pytest.raises(GcvideoError):
        Trainer(train_config(place, name, **{section: values})).fit(**options)
    assert contents(config.run_dir) == before
    assert "typo" in complaints(config)[-1]
    assert "final: " in (config.run_dir / "train.log").read_text()  # of the old run


def test_batch_norms_of_one_value_are_refused(place: Path) -> None:
    small = {"model": {"arch": "i3d"}, "train": {"batch_size": 1}, "data": {"frames": 2, "crop": 32}}
    config = train_config(place, "one-value", **small)
    with pytest.raises(ConfigError, match=r"train\.batch_size: .* per channel .* give more clips"):
        Trainer(config).fit()


def test_a_checkpoint_that_does_not_fit_leaves_the_config_as_it_was(place: Path) -> None:
    config = train_config(place, "unfit", train={"epochs": 1})
    Trainer(config).fit()
    with pytest.raises(GcvideoError, match="does not fit the network"):
        Trainer(train_config(place, "unfit", model={"width": 8})).fit(resume=True)
    assert load_config(config.run_dir / "config.yaml") == config


def test_overwriting_takes_nothing_over_from_the_old_run(place: Path) -> None:
    """But its log, which the new run continues, and its weights where the config names them."""
    config = train_config(place, "anew", train={"epochs": 1})
    Trainer(config).fit()
    bad = '{"id": "video_0.mp4", "path": "", "reason": "was cut short", "from_epoch": 0}\n'
    (config.run_dir / "quarantine.jsonl").write_text(bad)
    config.model.weights = str(config.run_dir / "checkpoints" / "last.pt")
    assert Trainer(config).fit(overwrite=True)["failures"]["count"] == 0
    assert (config.run_dir / "train.log").read_text().count("run folder ") == 2


@pytest.mark.slow
def test_a_restart_finishes_the_overwriting_that_it_was_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun a start that dies before it has removed the old run must not end up going on with that run."""

    class Died(Exception):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Died

    config = train_config(place, "restarted", train={"epochs": 1})
    Trainer(config).fit()
    path = place / "restarted.yaml"
    config.seed = 5
    save_config(config, path)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "TrainStep", die)
        with pytest.raises(Died):
            main(["train", str(path), "--overwrite"])
    assert last_state(config)["config"]["seed"] == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(["train", str(path), "--overwrite"]) == 0
    assert last_state(config)["config"]["seed"] == 5
    saved = os.stat(config.run_dir / "checkpoints" / "last.pt")
    assert main(["train", str(path), "--overwrite"]) == 0  # started anew once more: it goes on
    assert os.stat(config.run_dir / "checkpoints" / "last.pt") == saved


def test_under_torchrun_the_mistake_is_the_last_line(tmp_path: Path) -> None:
    """Also behind what torchrun prints, for which the shell stands here, when its workers have ended."""
    environment = {**os.environ, "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0"}
    command = f"{sys.executable} -m gcvideo train {tmp_path}/nowhere.yaml; sleep 0.2; echo Traceback >&2; exit 1"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(["bash", "-c", command], env=environment, cwd=root, capture_output=True, text=True)
    first, traceback, last = done.stderr.splitlines()
    assert (traceback, last) == ("Traceback", first)
    assert "nowhere.yaml" in first


def unreadable(place: Path) -> RunConfig:
    for number in range(4):
        (place / f"empty_{number}.mp4").touch()
    (place / "empty.txt").write_text("".join(f"empty_{number}.mp4 0\n" for number in range(4)))
    return train_config(place, "unreadable", data={"train": {"annotation": str(place / "empty.txt")}})


def test_a_mistake_that_the_first_step_finds_does_not_block_the_folder(place: Path) -> None:
    mistakes = [
        train_config(place, "clips", data={"augment": {"clips_per_video": 3}}),
        unreadable(place),
    ]
    for mistaken in mistakes:
        with pytest.raises(GcvideoError):
            Trainer(mistaken).fit()
        corrected = train_config(place, mistaken.name, train={"epochs": 1})
        Trainer(corrected).fit()
        assert [line["step"] for line in metrics(corrected)] == [1, 2]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_process_misses_weights_and_biases_before_anything_is_written(
    place: Path, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("RANK", rank)
    config = train_config(place, "wandb", train={"wandb": "project"})
    with pytest.raises(ConfigError, match="pip install"):
        Trainer(config).build()
    assert not config.run_dir.exists()
