"""A run that is told to stop leaves in order, whatever it is doing: all processes together, exit code 75."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gcvideo.train import trainer as trainer_module
from gcvideo.train.signals import EXIT_CODE, Stopped
from gcvideo.train.trainer import Trainer
from tests.processes import wait, wait_for
from tests.training import last_state, make_videos, metrics, start, train_config, train_in_processes

pytestmark = pytest.mark.slow  # starts many processes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("signals"))


@pytest.fixture
def _deaf() -> Iterator[None]:
    """A signal that a training does not hear is lost, instead of ending the tests."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGUSR1, before)


def signalling(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    """Let this process get SIGUSR1 whenever it calls that function."""
    function = getattr(where, name)

    def signalled(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return function(*args, **options)

    monkeypatch.setattr(where, name, signalled)


@pytest.mark.parametrize("heard_by", [0, 1])
def test_one_process_hears_a_signal_while_two_validate(place: Path, heard_by: int) -> None:
    names = [f"copy_{heard_by}_{number}.mp4" for number in range(400)]
    for name in names:
        os.link(place / "video_0.mp4", place / name)
    long = place / f"long_{heard_by}.txt"
    long.write_text("".join(f"{name} 0\n" for name in names))
    config = train_config(
        place, f"validating{heard_by}", data={"val": {"annotation": str(long)}}, train={"epochs": 2, "val_every": 1}
    )
    running = start(config, processes=2)
    last = config.run_dir / "checkpoints" / "last.pt"
    wait_for(last.exists, running)  # the one that is saved right before a validation
    os.kill(running[heard_by].pid or 0, signal.SIGUSR1)
    assert wait(running) == [EXIT_CODE] * 2
    assert last_state(config)["step"] == 2
    config.data.val = config.data.train
    assert train_in_processes(config, processes=2, resume=True) == [0, 0]
    assert [line["step"] for line in metrics(config)] == [1, 2, 3, 4]


@pytest.mark.usefixtures("_deaf")
@pytest.mark.parametrize("moment", ["load_split", "TrainStep", "MetricsLogger"])
def test_a_signal_during_the_start_is_heard(place: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config(place, f"starting-{moment}", train={"epochs": 1})
    with monkeypatch.context() as patch:
        signalling(patch, trainer_module, moment)
        with pytest.raises(Stopped, match="SIGUSR1"):
            Trainer(config).fit()
    assert last_state(config)["step"] == 0
    assert Trainer(config).fit(resume=True)["steps"] == 2
    assert [line["step"] for line in metrics(config)] == [1, 2]


@pytest.mark.usefixtures("_deaf")
def test_a_signal_after_the_last_video_of_a_validation_keeps_what_was_validated(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(place, "validated", train={"epochs": 2, "val_every": 1})
    signalling(monkeypatch, trainer_module.log, "validation_metrics")
    with pytest.raises(Stopped, match="SIGUSR1"):
        Trainer(config).fit()
    assert (last_state(config)["epoch"], last_state(config)["step"]) == (1, 2)
    assert len(metrics(config, "val")) == 1
    assert Trainer(config).fit(resume=True)["steps"] == 4  # the signal of the last validation finds all done
    assert [line["step"] for line in metrics(config, "val")] == [2, 4]
