"""Settings that make training and inference faster on CPUs; each was measured.

- Convolutions in oneDNN with one thread: with it, a float32 training step of Slow-R50 took 0.75 times as long as
  pytorchvideo's (EPYC, Zen 4).
- Freed memory kept by glibc: ``x + 1`` on 50 MB took 5.7 ms instead of 27 ms.
- Denormal numbers flushed to zero: steps on one overfitted clip took up to 2.4 times as long without it.
"""

from __future__ import annotations

import ctypes
import os
import platform

import torch
from torch import nn


def onednn_computes(device: torch.device, *, clips: int, smallest: int) -> bool:
    """Whether ATen gives all convolutions of a step to oneDNN on this device, once ``reach_onednn`` has been called.

    It keeps the small ones of single clips to itself (``use_mkldnn`` in its Convolution.cpp).

    Args:
        device: that computes.
        clips: N, in one forward pass.
        smallest: C x T x H of the smallest input of a convolution.
    """
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and (clips > 1 or smallest > 20480)


def reach_onednn(network: nn.Module) -> None:
    """Let one thread compute all convolutions in oneDNN, as several threads do.

    ATen would compute fp32 convolutions whose kernels are 1 x 1 in height and width by itself there, slower and with
    copies of channels-last tensors, unless they have strides or dilations. So a dilation is set in height and width,
    where it changes nothing because the kernel has size 1 there.
    """
    if torch.get_num_threads() > 1:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1) and module.stride == (1, 1, 1):
            module.dilation = (module.dilation[0], 2, 2)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of handing each large tensor's pages back to the system.

    By default malloc maps every block of 32 MiB or more afresh, and the page faults cost more than the arithmetic:
    ``x + 1`` on 50 MB took 27 ms instead of 5.7 ms. The environment variables MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_
    and MALLOC_TOP_PAD_ do the same from outside.

    Returns:
        Whether the C library took the settings (glibc alone has them).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for large tensors; torch reads it on first use
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_... in glibc's malloc.h
    settings = {mmap_max: 0, trim_threshold: -1, top_pad: 1 << 28}  # -1: never trim; bytes
    return all(mallopt(key, value) == 1 for key, value in settings.items())


def flush_denormals() -> None:
    """Treat numbers below 1e-38 as zero, because a CPU computes with them one at a time.

    Gradients become that small as a loss nears zero.
    """
    torch.set_flush_denormal(True)
