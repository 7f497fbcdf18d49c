"""Processes of tests: forks of one warm parent, so that starting one costs little."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from gcvideo.cli import main
from gcvideo.files import Journal

# What most of them import. The first process of a test run starts the parent, whichever test that is.
PRELOAD = [
    "tests.docs.world",
    "tests.training",
    "gcvideo.predict.predictor",
    "gcvideo.eval.trained",
    "gcvideo.prepare.transcode",
    "gcvideo.report.pages",
    "torch.utils.tensorboard",
    "fvcore.nn.precise_bn",
    "av",
    "decord",
]


_savefig = Figure.savefig


def savefig_without_svg(plot: Figure, file: Any, *, format: str, **options: Any) -> None:
    """In the place of ``Figure.savefig``: the plots of a page, half the time of a tiny training, stay empty.

    Tests of reports draw them.
    """
    if format == "svg":
        file.write('<svg width="1" height="1"></svg>')
    else:
        _savefig(plot, file, format=format, **options)


def warm_context() -> ForkServerContext:
    """The ``multiprocessing`` context whose processes are forked from the warm parent."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def start_ranks(function: Callable[..., None], *arguments: Any, processes: int) -> list[BaseProcess]:
    """Start ``function(*arguments)`` in so many processes with the environment that torchrun gives its own.

    One process alone gets none of it, as without torchrun.
    """
    context, port = warm_context(), str(free_port())
    started: list[BaseProcess] = []
    for rank in range(processes):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        arguments_of_rank = (function, arguments, environment if processes > 1 else {})
        started.append(context.Process(target=_run_rank, args=arguments_of_rank))
        started[-1].start()
    return started


def gcvideo(*words: str) -> None:
    """The command ``gcvideo WORDS``, whose exit code becomes that of this process."""
    sys.exit(main(words))


def wait(processes: list[BaseProcess], timeout: float = 120) -> list[int | None]:
    """Their exit codes, at their end or after a kill at the time limit in seconds."""
    for process in processes:
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def wait_for(condition: Callable[[], bool], processes: list[BaseProcess], timeout: float = 120) -> None:
    """Until the condition holds or one of the processes has ended."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and not condition() and all(process.is_alive() for process in processes):
        time.sleep(0.002)


def killed_after_rows(rows: int, function: Callable[[], object], output: Path) -> None:
    """Run ``function()`` in a process that SIGKILL ends right after its journal got so many rows.

    What it prints goes to the file ``output``, which a failure shows.
    """
    process = warm_context().Process(target=_die_after_rows, args=(rows, function, str(output)))
    process.start()
    assert wait([process]) == [-signal.SIGKILL], output.read_text()


def run_apart(
    function: Callable[..., object], *arguments: Any, output: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start ``function(*arguments)`` in a session of its own; what it prints goes to a file."""
    process = warm_context().Process(target=_run_apart, args=(function, arguments, str(output), environment or {}))
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_rank(function: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def _run_apart(
    function: Callable[..., object], arguments: tuple[Any, ...], output: str, environment: Mapping[str, str]
) -> None:
    os.setsid()
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(output, "w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        function(*arguments)


def _die_after_rows(rows: int, function: Callable[[], object], output: str) -> None:
    torch.set_num_threads(1)
    add, added = Journal.add, 0

    def add_and_die(*arguments: Any) -> None:
        nonlocal added
        add(*arguments)
        added += 1
        if added == rows:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add = add_and_die  # type: ignore[method-assign]
    with open(output, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        function()
