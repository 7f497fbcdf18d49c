"""The null GPU from inside: counters of its libraries, and what a process on it must switch off."""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch

CUDA = (  # the order of nullcuda_counts in null_gpu/nullcuda.c
    "launches",  # kernels; products of cuBLAS are "products"
    "mallocs",  # of device memory, which torch's allocator did not have
    "copies",
    "syncs",  # waits of the host for a stream or the device
    "host_allocs",  # page-locked memory
    "event_syncs",  # waits of the host for an event
    "driver_launches",  # kernels of Triton
    "graph_launches",
    "captured",  # kernels and copies recorded into graphs
)
NCCL = ("all_reduce", "all_gather", "broadcast")  # the order of nullnccl_counts in null_gpu/nullnccl.c


def _read(function: str, names: tuple[str, ...]) -> dict[str, int]:
    numbers = (ctypes.c_long * len(names))()
    getattr(ctypes.CDLL(None), function)(numbers)  # None: what is preloaded is found like the program's own symbols
    return dict(zip(names, numbers, strict=True))


def cuda_counts() -> dict[str, int]:
    """Calls since the process began."""
    return {**_read("nullcuda_counts", CUDA), **_read("nullblas_counts", ("products",))}


def nccl_counts() -> dict[str, int]:
    """Collectives since the process began."""
    return _read("nullnccl_counts", NCCL)


def leave(work: Callable[[], Any]) -> NoReturn:
    """Do the work and leave without torch's clean-up, which calls what the libraries do not have."""
    code: Any = 1
    try:
        if not hasattr(ctypes.CDLL(None), "nullcuda_counts"):
            sys.exit("not on the null GPU: start it with tests/device/null_gpu/run.sh")
        # cuDNN brings its own copy of the CUDA runtime, which finds no driver: torch's own convolutions take its place.
        torch.backends.cudnn.enabled = False
        torch.backends.cuda.enable_cudnn_sdp(False)
        code = work()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
