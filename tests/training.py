"""Tiny trainings, in this process and in processes that can be killed."""

from __future__ import annotations

import json
import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from gcvideo import distributed
from gcvideo.cli import main
from gcvideo.config import RunConfig, config_from_dict, config_to_dict, save_config
from gcvideo.errors import GcvideoError
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.train.signals import EXIT_CODE, Stopped, StopSignals
from gcvideo.train.trainer import Parts, Trainer
from tests.processes import start_ranks, wait
from tests.tiny import tiny_config, tiny_videos

# Every switch of the recipe but those that need several processes; a crop that multigrid can halve.
EVERYTHING: dict[str, Any] = {
    "model": {"dropout": 0.3, "drop_path": 0.1},
    "data": {
        "crop": 64,
        "short_side": [64, 72],
        "workers": 2,
        "augment": {
            "crop": "inception",
            "rand_augment": 2,
            "color_jitter": [0.2, 0.2, 0.2, 0.1],
            "erase": 0.5,
            "mixup": 0.8,
            "cutmix": 1.0,
            "clips_per_video": 2,
            "class_balanced": True,
        },
    },
    "optim": {
        "optimizer": "adamw",
        "lr": 1e-3,
        "warmup_start_lr": 1e-4,
        "lr_for_batch": 8,
        "schedule": "linear",
        "clip_grad_norm": 1.0,
        "decay_norm_and_bias": False,
    },
    "train": {
        "batch_size": 8,  # so that a micro-batch has two videos to mix
        "accumulate": 2,
        # Not bf16: clips of multigrid are too small for it on a CPU (device.py).
        "precision": "auto",
        "label_smoothing": 0.1,
        "freeze": ["stem"],
        "ema": 0.9,
        "precise_bn": 2,
        "checkpoint_every": 1,
        "val_clips": 2,
        "multigrid": "long",
        "multigrid_cycles": 1,
        "epochs": 7,
    },
}


def make_videos(folder: Path, count: int = 8) -> Path:
    """``folder/val.txt`` lists ``count`` tiny videos of four classes; to train and to validate on."""
    tiny_videos(folder, count)
    return folder


def train_config(folder: Path, name: str = "run", **sections: dict[str, Any]) -> RunConfig:
    """Three epochs of two steps of four clips, without dropout; everything written in ``folder/runs/name``."""
    config = config_to_dict(tiny_config(folder))
    config["name"] = name
    config["model"]["dropout"] = 0.0
    config["data"]["train"] = config["data"]["val"] = {"annotation": str(folder / "val.txt")}
    config["optim"].update(lr=0.05, warmup_epochs=0.5)
    # In float32 on any processor: tests hold these runs to arithmetic done by hand.
    config["train"].update(epochs=3, batch_size=4, log_every=1, val_every=0, checkpoint_minutes=0, precision="fp32")
    for section, values in sections.items():
        if isinstance(values, dict):
            config[section].update(values)
        else:
            config[section] = values
    return config_from_dict(config, where="the test's config")


def last_state(config: RunConfig) -> dict[str, Any]:
    return load_checkpoint(config.run_dir / "checkpoints" / "last.pt")


def complaints(config: RunConfig) -> list[str]:
    """The warnings in a run's log, and the error that ended it."""
    lines = (config.run_dir / "train.log").read_text().splitlines()
    return [line[21:] for line in lines if line[21:].startswith(("warning: ", "error: "))]


def metrics(config: RunConfig, kind: str = "train") -> list[dict[str, Any]]:
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def steps_done(config: RunConfig) -> int:
    """Of a run that may be writing at this moment."""
    path = config.run_dir / "metrics.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0


def same_tensors(one: Any, other: Any) -> bool:
    """Whether two nested states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tensors(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_tensors, one, other))
    return bool(one == other)


def start(config: RunConfig, *, processes: int = 1, hold_after: int | None = None, **options: Any) -> list[BaseProcess]:
    """Train in processes of their own.

    From step ``hold_after`` on they wait after each step until ``release`` is called, so that a kill or a signal that
    the test sends comes before the end, however busy the machine is.
    """
    return start_ranks(_train, config_to_dict(config), hold_after, options, processes=processes)


def release_file(config: RunConfig) -> Path:
    return Path(config.output) / f"{config.name}.release"


def release(config: RunConfig) -> None:
    """Let the processes that ``start(hold_after=...)`` holds go."""
    release_file(config).touch()


def run_train(config: RunConfig, *arguments: str) -> int:
    """Exit code of ``gcvideo train`` with a config."""
    path = Path(config.output) / f"{config.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    save_config(config, path)
    return main(["train", str(path), *arguments])


def train_in_processes(config: RunConfig, *, processes: int = 1, **options: Any) -> list[int | None]:
    """Train to the end in processes of their own; returns their exit codes."""
    return wait(start(config, processes=processes, **options))


def _hold_after(step: int, release: Path) -> None:
    """Let this process wait after each step from ``step`` on, until the file ``release`` exists."""
    save_or_stop = Trainer._save_or_stop

    def hold(self: Trainer, parts: Parts, stop: StopSignals, **options: int) -> None:
        save_or_stop(self, parts, stop, **options)
        while parts.state.position.step >= step and not release.exists():
            time.sleep(0.002)

    Trainer._save_or_stop = hold  # type: ignore[method-assign]


def _train(values: dict[str, Any], hold_after: int | None, options: dict[str, Any]) -> None:
    try:
        with distributed.init_from_env(timeout_minutes=2):
            config = config_from_dict(values, where="the test's config")
            if hold_after is not None:
                _hold_after(hold_after, release_file(config))
            Trainer(config).fit(**options)
    except Stopped:
        os._exit(EXIT_CODE)
    except GcvideoError:  # it is in the log
        os._exit(2)
