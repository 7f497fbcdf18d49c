"""gcvideo's commands on the null GPU, in two processes over NCCL."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from gcvideo.config import save_config
from tests.device.conftest import FOLDER, NullGpu
from tests.training import make_videos, metrics, train_config

pytestmark = pytest.mark.slow


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
