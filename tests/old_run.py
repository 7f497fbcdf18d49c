"""The run that lies in ``tests/data/run_0_1``: how version 0.1.0 made it, and what it needs to go on.

``python -m tests.old_run FOLDER`` makes such a run with the present version. The stored one is kept as it is: it stands
for the runs that people have.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import gcvideo
from gcvideo.cli import main as gcvideo_main
from gcvideo.config import RunConfig, config_from_dict
from gcvideo.train.trainer import Trainer
from tests.golden import STOP_AT, exact_videos, stop_in_the_middle

STORED = Path(__file__).parent / "data" / "run_0_1"
KEPT = ("config.yaml", "metrics.jsonl", "results.json", "predictions.npz", "scores.json", "checkpoints/last.pt")


def config() -> RunConfig:
    """ResNet-18 of width 2 with GC in res3. All paths are relative, so the run goes on wherever ``videos/`` lies."""
    values = {
        "name": "run_0_1",
        "output": "runs",
        "device": "cpu",
        "model": {
            "depth": 18,
            "width": 2,
            "num_classes": 4,
            "dropout": 0.0,
            "context": {"kind": "gc", "stages": {"res3": "all"}},
        },
        "data": {
            "train": {"annotation": "videos/val.txt"},
            "val": {"annotation": "videos/val.txt"},
            "frames": 4,
            "stride": 2,
            "crop": 32,
            "short_side": [32, 40],
            "workers": 0,
        },
        "optim": {"lr": 0.05},
        "train": {
            "epochs": 3,
            "batch_size": 4,
            "precision": "fp32",
            "log_every": 1,
            "checkpoint_every": 1,
            "checkpoint_minutes": 0,
            "keep_checkpoints": 10,
        },
        "test": {"clips": 2, "crops": 3, "short_side": 36, "crop": 32},
    }
    return config_from_dict(values, where="the stored run")


def clip_scores(checkpoint: Path, folder: Path) -> dict[str, float]:
    """What a checkpoint says of a video that it was not trained on, in float32: label -> score."""
    exact_videos(folder, 1, seed=100)
    predictor = gcvideo.load(checkpoint, device="cpu", precision="fp32")
    return {best.label: best.score for best in predictor.predict(folder / "video_0.mp4", top=4)}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m tests.old_run FOLDER", file=sys.stderr)
        return 2
    target = Path(arguments[0]).absolute()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        exact_videos(Path("videos"))
        run = config().run_dir
        Trainer(config()).fit()
        whole = run.rename("whole")
        stop_in_the_middle(whole, run)
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= STOP_AT))
        (run / "results.json").unlink()
        assert gcvideo_main(["test", str(run / "checkpoints" / "last.pt")]) == 0
        (run / "scores.json").write_text(json.dumps(clip_scores(run / "checkpoints" / "last.pt", Path("clip"))) + "\n")
        for name in KEPT:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, target / name)
        os.chdir(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
