"""Peak memory of networks in inference and in training, in bytes.

On a GPU it is what torch's allocator counts. On a CPU it is the growth of the resident set, each in a new process.
Weights, gradients, optimizer state, activations and scratch space are all in it; interpreter and libraries are not.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from gcvideo.benchmark.timing import CPU, Contender
from gcvideo.benchmark.workloads import forward_pass, random_clips, training_step
from gcvideo.config import RunConfig
from gcvideo.errors import GcvideoError

KINDS = ("inference", "train")


def peak_memory(
    configs: Sequence[RunConfig], shapes: Sequence[Sequence[int]], *, device: torch.device, precision: str
) -> Iterator[dict[str, int | None]]:
    """Bytes at the peak of a forward pass ("inference") and of two training steps ("train"), network by network.

    Args:
        configs: of the networks.
        shapes: (N, 3, T, H, W) of the clips of each network.
        device: on a CPU, torch's present number of threads computes.
        precision: "fp32", "bf16" or "auto".

    Yields:
        None for both where the system does not tell (a CPU without /proc).

    Raises:
        GcvideoError: a measuring process died, as it does where memory runs out.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # so that the libraries are loaded once
    for config, shape in zip(configs, shapes, strict=True):
        found: dict[str, int | None] = dict.fromkeys(KINDS)
        for kind in KINDS:
            if device.type == "cuda":
                gc.collect()
                before = torch.cuda.memory_allocated(device)
                found[kind] = cuda_peak(partial(run, config, shape, kind, device, precision)) - before
            elif Path("/proc/self/clear_refs").exists():
                with ProcessPoolExecutor(1, mp_context=context) as fresh:
                    job = fresh.submit(resident_growth, config, shape, kind, precision, torch.get_num_threads())
                    try:
                        found[kind] = job.result()
                    except BrokenProcessPool:
                        raise GcvideoError(
                            f"{config.name}: the process that measures its memory ({kind}) died"
                        ) from None
        yield found


def cuda_peak(contender: Contender) -> int:
    """Largest number of bytes that torch has allocated on the GPU during a call."""
    torch.cuda.reset_peak_memory_stats()
    contender()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def resident_growth(config: RunConfig, shape: Sequence[int], kind: str, precision: str, threads: int) -> int:
    """How many bytes the resident set of this process grows at its peak; to be called in a new process."""
    torch.set_num_threads(threads)
    # The libraries set up their pools on first use, which is not the network's memory.
    run(replace(config, model=replace(config.model, width=16)), (1, 3, 2, 96, 96), kind, CPU, precision)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: return what was freed
    if trim is not None:
        trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (man 5 proc)
    run(config, shape, kind, CPU, precision)
    return _status("VmHWM") - before


def run(config: RunConfig, shape: Sequence[int], kind: str, device: torch.device, precision: str) -> None:
    """Build a network and run one forward pass, or two steps: from the second on there is an optimizer state."""
    make, calls = (forward_pass, 1) if kind == "inference" else (training_step, 2)
    contender = make(config, random_clips(shape), device=device, precision=precision)
    for _ in range(calls):
        contender()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
