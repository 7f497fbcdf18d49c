"""Peak memory of networks in inference and in training.

On a GPU it is what torch's allocator counts. On a CPU nothing counts, so the growth of the resident set is taken, in a
process of its own for every figure. Weights, gradients, optimizer state, activations and scratch space are all in it;
interpreter and libraries are not. ``python -m gcvideo.benchmark.memory`` loads the libraries once, reads questions
as JSON lines, and forks for each.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from gcvideo.benchmark.timing import forward_action, train_action
from gcvideo.config import RunConfig, config_from_dict, config_to_dict
from gcvideo.errors import GcvideoError

KINDS = ("inference", "train")


def peak_memory(
    configs: Sequence[RunConfig], shapes: Sequence[Sequence[int]], *, device: torch.device, precision: str
) -> Iterator[dict[str, int | None]]:
    """Bytes at the peak of a forward pass ("inference") and of two training steps ("train"), network by network.

    Args:
        shapes: (N, 3, T, H, W) of the clips of each network.

    Yields:
        None for both where the system does not tell (a CPU without /proc).

    Raises:
        GcvideoError: a measuring process died, as it does where memory runs out.
    """
    if device.type == "cuda":
        for config, shape in zip(configs, shapes, strict=True):
            yield {kind: _cuda_peak(config, shape, kind, device, precision) for kind in KINDS}
        return
    if not Path("/proc/self/clear_refs").exists():
        yield from (dict.fromkeys(KINDS) for _ in configs)
        return
    questions = [
        {"config": config_to_dict(config), "shape": list(shape), "kind": kind, "precision": precision}
        for config, shape in zip(configs, shapes, strict=True)
        for kind in KINDS
    ]
    answers = _ask(questions, threads=torch.get_num_threads())
    for config in configs:
        found: dict[str, int | None] = {}
        for kind in KINDS:
            answer = next(answers, None)
            if answer is None:
                raise GcvideoError(f"{config.name}: the process that measures its memory ({kind}) died")
            found[kind] = answer
        yield found


def _cuda_peak(config: RunConfig, shape: Sequence[int], kind: str, device: torch.device, precision: str) -> int:
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _work(config, shape, kind, device, precision)()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _work(
    config: RunConfig, shape: Sequence[int], kind: str, device: torch.device, precision: str
) -> Callable[[], None]:
    """Build the network and run it."""

    def work() -> None:
        clips = torch.zeros(tuple(shape), dtype=torch.uint8)
        if kind == "inference":
            forward_action(config, clips, device=device, precision=precision)()
            return
        step = train_action(config, clips, device=device, precision=precision)
        step()
        step()  # only now are the optimizer's state and the activations there at once

    return work


def _ask(questions: Sequence[dict[str, Any]], *, threads: int) -> Iterator[int]:
    """The answers to the questions, as they come; fewer where a process died."""
    package = str(Path(__file__).resolve().parents[2])  # for a source tree that is not installed
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "gcvideo.benchmark.memory", str(threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(question) + "\n" for question in questions))
        process.stdin.close()
        for line in process.stdout:
            yield int(line)


def _answer_all(threads: int) -> int:
    """Answer the questions on stdin, one line each. No tensor is touched before the fork: a thread pool would not
    survive it."""
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_answer, args=(json.loads(line), threads, sender))
        process.start()
        sender.close()  # so that the end of the child is the end of the pipe
        try:
            print(receiver.recv(), flush=True)
        except EOFError:
            return 1
        process.join()
    return 0


def _answer(question: dict[str, Any], threads: int, answer: Connection) -> None:
    """Send the growth of this process's resident set at its peak, in bytes."""
    torch.set_num_threads(threads)
    config = config_from_dict(question["config"], where="the question")
    details = (question["kind"], torch.device("cpu"), question["precision"])
    # The libraries set up their pools on first use: that is not the network's.
    _work(replace(config, model=replace(config.model, width=16)), (1, 3, 2, 96, 96), *details)()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: hand back what was freed
    if trim is not None:
        trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man 5 proc)
    _work(config, question["shape"], *details)()
    answer.send(_status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(_answer_all(int(sys.argv[1])))
