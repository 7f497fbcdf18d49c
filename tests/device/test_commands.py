"""gcvideo's commands on the null GPU, in two processes over NCCL."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from gcvideo.config import save_config
from tests.device.conftest import FOLDER, NullGpu
from tests.training import make_videos, metrics, train_config

pytestmark = pytest.mark.slow


def test_the_device_is_checked(null_gpu: NullGpu, tmp_path: Path) -> None:
    """Calls are those of a real GPU, numbers and times are not."""
    command = ["benchmark", "device", "--batch", "2", "--crop", "32", "--rounds", "1"]
    done = null_gpu(
        *(str(FOLDER / "run.sh"), sys.executable, "-m", "tests.device.command", *command),
        *("--json", str(tmp_path / "device.json")),
    )
    assert "RANK 0 [0]" in done.stdout, done.stderr[-4000:]
    checks = {check["check"]: check for check in json.loads((tmp_path / "device.json").read_text())["checks"]}
    assert [name for name in checks if name.startswith("calls") and not checks[name]["holds"]] == []
    assert checks["calls.Launch.2"]["measured"] >= 4
    assert {name.split(".")[0] for name in checks} >= {"numerics", "block", "step", "host", "fed"}


def test_two_ranks_train_stop_resume_and_test(null_gpu: NullGpu, tmp_path: Path) -> None:
    everything = {"epochs": 10, "ema": 0.9, "precise_bn": 2, "val_every": 10}
    train = train_config(make_videos(tmp_path), "two", device="cuda", data={"workers": 1}, train=everything)
    path = tmp_path / "two.yaml"
    save_config(train, path)
    resumed = ["train", str(path), "--resume"]
    done = null_gpu(
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"),
        *(str(FOLDER / "run.sh"), sys.executable, "-m", "tests.device.command"),
        *("train", str(path), "+", *resumed, "+", "test", str(train.run_dir / "checkpoints" / "last.pt")),
        GLOO_SOCKET_IFNAME="lo",
        STOP_AT="3",
    )
    ranks = re.findall(r"RANK (\d) \[75, 0, 0\] .*'graph_launches': (\d+)", done.stdout)
    # Of 20 steps, 4 came before the stop, which is agreed on a step late, and 11 before the recording.
    assert sorted(ranks) == [("0", "5"), ("1", "5")], done.stdout[-2000:] + done.stderr[-4000:]
    assert "stopped by" in done.stderr
    assert "FORKED CHILD" not in done.stderr
    assert [line["step"] for line in metrics(train)] == list(range(1, 21))
    assert (train.run_dir / "predictions.npz").exists()
