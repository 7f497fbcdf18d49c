"""gcvideo's commands on the null GPU: ``run.sh python -m tests.device.command train CONFIG ... + test ...``.

Kernels compute nothing, so a loss or a weight is what lay in memory. What reads such values and would stop the run is
told here that all is well; a name that no longer exists fails at once. Several commands, parted by "+", follow each
other in one process. With ``STOP_AT=N`` the last rank gets SIGUSR1 after step N of the first command.
"""

from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.parallel.distributed as ddp

from gcvideo import device as runtime
from gcvideo.cli import main
from gcvideo.eval.metrics import NO_STEP, TrainMeter
from gcvideo.eval.predictions import Predictions
from gcvideo.train.nan_guard import NonFiniteGuard
from gcvideo.train.step import TrainStep
from tests.device import null


def override(owner: Any, name: str, value: Any) -> Any:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def pretend() -> None:
    override(NonFiniteGuard, "check_weights", lambda self, *networks, **rest: None)
    override(Predictions, "count_non_finite", lambda self: 0)
    first_bad_step = override(
        TrainMeter, "first_bad_step", lambda self: (first_bad_step(self), NO_STEP)[1]
    )  # still waits
    known = {"steps": 1, "clips": 8, "loss": 1.0}
    later = override(
        TrainMeter, "read_later", lambda self, use, **o: later(self, lambda means: use({**means, **known}), **o)
    )
    # It compares the shapes of parameters between ranks on the device.
    override(ddp, "_verify_param_shape_across_processes", lambda *args, **rest: None)
    override(runtime, "warn_about_cudnn", lambda version: None)
    override(torch.profiler, "profile", Profile)


class Profile:
    """In place of torch's profiler, which needs the driver's own: calls as the null GPU counts them."""

    def __enter__(self) -> Profile:
        self.before = null.cuda_counts()
        return self

    def __exit__(self, *_: object) -> None:
        self.after = null.cuda_counts()

    def key_averages(self) -> list[SimpleNamespace]:
        names = {"launches": "cudaLaunchKernel", "graph_launches": "cudaGraphLaunch", "copies": "cudaMemcpyAsync"}
        names |= {"syncs": "cudaStreamSynchronize"}
        return [SimpleNamespace(key=key, count=self.after[n] - self.before[n]) for n, key in names.items()]


def stop_at(number: int) -> None:
    """Send this process SIGUSR1 after so many steps."""
    taken = 0

    def counted(self: TrainStep, *args: Any, **options: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == number:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, *args, **options)

    step = override(TrainStep, "step", counted)


def run() -> int:
    pretend()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if rank == world - 1 and "STOP_AT" in os.environ:
        stop_at(int(os.environ["STOP_AT"]))
    words, codes = [*sys.argv[1:], "+"], []
    while words:
        end = words.index("+")
        codes.append(main(words[:end]))
        words = words[end + 1 :]
    line = f"RANK {rank} {codes} {null.nccl_counts()} {null.cuda_counts()}\n"
    os.write(1, line.encode())  # at once: the ranks share the output, and Python's is not buffered
    return 0


if __name__ == "__main__":
    null.leave(run)
