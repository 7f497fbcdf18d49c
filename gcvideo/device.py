"""What the machine can do, and how to use it: device, memory layout, allocator, random state."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib import metadata

import torch
from torch import nn

from gcvideo import __version__, distributed
from gcvideo.console import warn
from gcvideo.errors import ConfigError

# bf16 and fp16 conv3d was wrong in cuDNN 9.8 to 9.14 (pytorch issue 163539); torch answered by taking it off cuDNN,
# which made it several times slower (issues 166122, 166643). Releases from 9.15 on are right and fast.
FIRST_GOOD_CUDNN = 91500


def pick_device(setting: str = "auto") -> torch.device:
    """The device of this process: "cpu", its own GPU for "cuda", the GPU if there is one for "auto".

    Raises:
        ConfigError: "cuda" where there is no GPU, or more processes than GPUs.
    """
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' was asked for, but torch finds no GPU; set device=cpu or device=auto")
    index = distributed.local_rank()
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"process {index} on this machine has no GPU of its own ({torch.cuda.device_count()} found); "
            "start fewer processes or set device=cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def pick_memory_format(setting: bool | None, precision: str, *, onednn: bool) -> torch.memory_format:
    """How (N, C, T, H, W) tensors lie in memory in training.

    By default ``channels_last_3d`` for bf16, where contiguous tensors spend most of the time in copies between
    layouts, and for fp32 where oneDNN computes: there a step took 0.88 times as long as with contiguous tensors in
    oneDNN, and 0.85 times as long as with those in ATen's own convolutions. Contiguous otherwise.
    """
    channels_last = precision == "bf16" or onednn if setting is None else setting
    return torch.channels_last_3d if channels_last else torch.contiguous_format


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
    """Let one thread on a CPU compute all convolutions in oneDNN, as several threads do.

    ATen would compute fp32 convolutions whose kernels are 1 x 1 in height and width by itself there, slower and with
    copies of channels-last tensors, unless they have strides or dilations. A dilation where a kernel has size 1 means
    nothing, so it is set there for its name alone.
    """
    if torch.get_num_threads() > 1:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1) and module.stride == (1, 1, 1):
            module.dilation = (module.dilation[0], 2, 2)


def tune(device: torch.device) -> None:
    """Set the process-wide switches that make convolutions over clips fast. Call before the first large tensor."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # clips have one shape, so the search pays at once
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        warn_about_cudnn(torch.backends.cudnn.version())
    else:
        keep_freed_memory()
        # A CPU takes numbers below 1e-38 one by one. Gradients get there as a loss nears zero: steps of Slow-R50 with
        # GC blocks on one clip, learnt by heart, then took up to 2.4 times as long.
        torch.set_flush_denormal(True)


def warn_about_cudnn(version: int | None) -> None:
    """Warn where bf16 conv3d is slow or wrong. ``version`` as torch reports it: 91002 is 9.10.2."""
    if version is None:
        warn("torch has no cuDNN: convolutions will be slow")
    elif version < FIRST_GOOD_CUDNN:
        shown = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
        warn(
            f"cuDNN {shown} has no fast and correct bf16 conv3d: install 9.15 or newer "
            "(pip install -U nvidia-cudnn-cu12), or set train.precision=fp32"
        )


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


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make everything that torch draws in a step (dropout, drop-path, mixing) a function of these three numbers.

    A run that goes on from a checkpoint therefore draws what the run that never stopped would have drawn, and no
    random state has to be saved.
    """
    # SplitMix64's finaliser (Steele et al. 2014) spreads neighbouring inputs over all 64 bits.
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + rank * 0x8CB92BA72F3D8DD7 + 1) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    torch.manual_seed((z ^ (z >> 31)) % 2**63)


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for checkpoints and reports."""
    found = {"gcvideo": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("torchvision", "pytorchvideo", "numpy", "av", "decord", "torchcodec"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def describe(device: torch.device, precision: str) -> str:
    """One line on the machine, for the log."""
    cuda = device.type == "cuda"
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if cuda else f"CPU, {threads} thread{'s' * (threads > 1)}"
    processes = distributed.world_size()
    return f"{name}{f' x {processes} processes' if processes > 1 else ''}, {precision}"


def memory_peak(device: torch.device) -> int:
    """Largest amount of memory in use so far, in bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
