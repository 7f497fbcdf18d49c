"""Device, precision, memory format and random seed of a process; versions and a description for logs."""

import copy
import ctypes
import os
import platform
import weakref
from collections.abc import Callable
from contextlib import suppress
from glob import glob
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gcvideo import __version__, distributed
from gcvideo.console import warn
from gcvideo.errors import ConfigError

# bf16 and fp16 conv3d was wrong in cuDNN 9.8 to 9.14 (pytorch issue 163539); torch then stopped using cuDNN for it,
# which made it several times slower (issues 166122, 166643). Releases from 9.15 on are right and fast.
FIRST_GOOD_CUDNN = 91500
GPU_FILES = "/dev/nvidia[0-9]*"  # one for each NVIDIA GPU, whether or not its driver works
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR", "unable to find an engine", "valid cuDNN algorithm"),
)


def pick_device(setting: str = "auto") -> torch.device:
    """The device of this process: "cpu", its own GPU for "cuda", Apple's for "mps"; for "auto" the GPU if there is one.

    Raises:
        ConfigError: there is no such device, a GPU that torch cannot use, or there are more processes than devices.
    """
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = next((kind for kind, found in usable.items() if found and setting in ("auto", kind)), "cpu")
    if kind == "cpu" and setting != "cpu":
        if setting != "mps" and (problem := gpu_problem()):
            raise ConfigError(f"device: {setting!r}: {problem}, or set device=cpu")
        if setting != "auto":
            raise ConfigError(f"device: {setting!r}: torch finds no GPU of this kind; set device=cpu or device=auto")
    if kind == "cpu":
        return torch.device("cpu")
    index, count = distributed.local_rank(), torch.cuda.device_count() if kind == "cuda" else 1
    if "LOCAL_RANK" not in os.environ:  # tasks of srun, which sees to it that each finds a GPU, or lets them share
        index %= count
    if index >= count:
        raise ConfigError(
            f"process {index} on this machine has no GPU of its own ({count} found); "
            "start fewer processes or set device=cpu"
        )
    if kind == "cuda":
        torch.cuda.set_device(index)
    return torch.device(kind, index)


def has_streams(device: torch.device) -> bool:
    """Whether copies from page-locked memory run beside the work of a device, each in a stream of its own."""
    return device.type == "cuda"


def start_copy_to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Copy a tensor as it is now; a call of the result waits for the device as far as that copy, and gives it."""
    streams = has_streams(tensor.device)
    copy = torch.empty_like(tensor, device="cpu", pin_memory=streams).copy_(tensor, non_blocking=streams)
    done = torch.accelerator.current_stream(tensor.device).record_event() if streams else None

    def wait() -> torch.Tensor:
        if done is not None:
            done.synchronize()
        return copy

    return wait


def page_lock(memory: np.ndarray) -> None:
    """Let GPUs copy from memory by themselves, from now until it is freed."""
    runtime, place = torch.cuda.cudart(), memory.ctypes.data
    torch.cuda.check_error(int(runtime.cudaHostRegister(place, memory.nbytes, 0)))
    weakref.finalize(memory, runtime.cudaHostUnregister, place)


def to_float64(x: torch.Tensor) -> torch.Tensor:
    """A tensor in float64; on the CPU, where its device has none."""
    return (x.cpu() if x.device.type not in ("cpu", "cuda") else x).double()


def casts_inside(x: torch.Tensor) -> bool:
    """Whether kernels of a tensor's device take and give several dtypes at once, which saves casts."""
    return x.is_cuda


def gpu_problem() -> str | None:
    """Why torch cannot use the NVIDIA GPU of this machine, and the fix; None where there is none, or it is hidden."""
    if not glob(GPU_FILES) or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA, on a machine with a GPU; install one with CUDA"
    try:
        torch.cuda.init()
        reason = "it finds no GPU"
    except RuntimeError as error:
        reason = str(error).partition(". ")[0]
    return (
        f"torch cannot use the GPU of this machine ({reason}); torch {torch.__version__} was built for CUDA "
        f"{torch.version.cuda}; update the driver or install a torch for it"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device's memory is full: near the limit, cuDNN and cuBLAS find no workspace."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def pick_precision(setting: str, device: torch.device) -> str:
    """Precision of inference: "fp32" or "bf16"; "auto" takes bf16 where it is faster."""
    if setting != "auto":
        return setting
    return "bf16" if bf16_is_faster(device) else "fp32"


def pick_training_precision(setting: str, device: torch.device, network: nn.Module, *, frames: int, crop: int) -> str:
    """Precision of training: as ``pick_precision``, but never bf16 where the gradients would be wrong.

    On CPUs with AVX512-BF16 instructions (a Xeon and an EPYC), torch 2.15 with oneDNN 3.13 computes wrong gradients of
    a convolution's weights in bf16 where the kernel is longer than the input, and writes beyond its memory: kernels of
    3 x 1 x 1 on two frames, of 1 x 3 x 3 on one position. Forward passes, gradients of inputs and float32 are right.

    Args:
        setting: ``train.precision``.
        device: of the training.
        network: takes clips (N, 3, T, H, W).
        frames: fewest frames of a clip in the training.
        crop: smallest height and width of a clip, in pixels.

    Raises:
        ConfigError: ``train.precision`` asks for bf16 on a CPU where a kernel is longer than its input.
    """
    precision = pick_precision(setting, device)
    if device.type != "cpu" or precision != "bf16":
        return precision
    overhang = find_overhang(network, (1, 3, frames, crop, crop))
    if overhang is None or setting == "auto":
        return "fp32" if overhang else "bf16"
    raise ConfigError(
        f"train.precision: on a CPU torch computes wrong bf16 gradients where a kernel is longer than its input, as in "
        f"{overhang}; set train.precision=fp32, or give longer or larger clips (here {frames} x {crop} x {crop})"
    )


def find_overhang(network: nn.Module, shape: tuple[int, ...]) -> str | None:
    """The first convolution with a kernel longer than its input in time, height or width, or None.

    Args:
        network: is not changed: a copy runs on the meta device, which computes nothing.
        shape: (N, C, T, H, W) of the clips.
    """
    found: list[str] = []
    network = copy.deepcopy(network).to("meta").eval()
    names = {module: name for name, module in network.named_modules()}

    def look(module: nn.Conv3d, inputs: tuple[torch.Tensor, ...]) -> None:
        kernel, positions = module.kernel_size, inputs[0].shape[2:]
        if any(k > p for k, p in zip(kernel, positions, strict=True)):
            found.append(f"{names[module]} ({' x '.join(map(str, kernel))} on {' x '.join(map(str, positions))})")

    for module in names:
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        network(torch.empty(shape, device="meta"))
    return found[0] if found else None


def bf16_is_faster(device: torch.device) -> bool:
    """Whether bf16 is faster than float32: with matrix units, and on AMD's CPUs with AVX512-BF16 (from Zen 4 on).

    Matrix units are the tensor cores of GPUs from Ampere on, and AMX of CPUs. On an EPYC with AVX512-BF16 a large
    product ran at 210 GFLOP/s in bf16 and at 95 in float32, and a training step of Slow-R50 took 0.57 times as long.
    The same instructions are no gain on Intel's: on a Xeon without AMX a product ran at 75 GFLOP/s in bf16 and at 145
    in float32, and a step took 1.2 times as long.
    """
    if device.type != "cpu":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    info = cpu_info()
    flags = info["flags"].split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and info.get("vendor_id") == "AuthenticAMD")


def cpu_info() -> dict[str, str]:
    """What Linux says about the first processor; always with "flags", which may be empty."""
    first = ""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {"flags": "", **{key.strip(): value.strip() for key, _, value in pairs}}


def pick_memory_format(setting: bool | None, precision: str, device: torch.device) -> torch.memory_format:
    """Memory format of (N, C, T, H, W) tensors.

    By default ``channels_last_3d`` for bf16, where contiguous tensors spend most of the time in copies between
    layouts, and for fp32 where oneDNN computes: there a step took 0.88 times as long as with contiguous tensors in
    oneDNN, and 0.85 times as long as with those in ATen's own convolutions. Contiguous otherwise, and on Apple's GPUs.

    Args:
        setting: ``train.channels_last``; None chooses.
        precision: "fp32" or "bf16".
        device: on a CPU, oneDNN computes all convolutions once ``reach_onednn`` has been called.
    """
    if setting is None:
        onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
        setting = onednn or (precision == "bf16" and device.type != "mps")
    return torch.channels_last_3d if setting else torch.contiguous_format


def reach_onednn(network: nn.Module) -> None:
    """Let one thread compute all convolutions in oneDNN, as several threads do.

    ATen would compute fp32 convolutions whose kernels are 1 x 1 in height and width by itself there, slower and with
    copies of channels-last tensors, unless they have strides or dilations. So a dilation is set in height and width,
    where it changes nothing because the kernel has size 1 there. With it, a float32 training step of Slow-R50 took
    0.75 times as long as pytorchvideo's (EPYC, Zen 4).
    """
    if torch.get_num_threads() > 1 or not torch.backends.mkldnn.is_available():
        return
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1) and module.stride == (1, 1, 1):
            module.dilation = (module.dilation[0], 2, 2)


def tune(device: torch.device) -> None:
    """Set the process-wide switches that make convolutions over clips fast. Call before the first large tensor."""
    if device.type == "cuda":
        if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
            torch.cuda.set_stream(torch.cuda.Stream(device))  # work on the default stream cannot become a CUDA graph
        torch.backends.cudnn.benchmark = True  # clips have one shape, so the search pays at once
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        warn_about_cudnn(torch.backends.cudnn.version() or 0)
    else:
        keep_freed_memory()
        # Numbers below 1e-38 as zero: gradients become that small as a loss nears zero, and a CPU computes with them
        # one at a time, which made steps on one overfitted clip up to 2.4 times as long.
        torch.set_flush_denormal(True)


def keep_freed_memory(most: int | None = None) -> None:
    """Tell glibc to keep freed memory instead of handing each large tensor's pages back to the system.

    By default malloc maps every block of 32 MiB or more afresh, and the page faults cost more than the arithmetic:
    ``x + 1`` on 50 MB took 27 ms instead of 5.7 ms. The environment variables MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_
    and MALLOC_TOP_PAD_ do the same from outside.

    Args:
        most: bytes to keep, of blocks of up to 32 MiB; None: all of any.
    """
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # M_... in glibc's malloc.h
    bounded = {trim_threshold: most, mmap_threshold: 32 << 20}
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for key, value in (bounded if most else {mmap_max: 0, trim_threshold: -1, top_pad: 1 << 28}).items():
            libc.mallopt(key, value)


def warn_about_cudnn(version: int) -> None:
    """Warn where bf16 conv3d is slow or wrong. ``version`` as torch reports it: 91002 is 9.10.2."""
    if version < FIRST_GOOD_CUDNN and torch.version.cuda:
        warn(
            f"cuDNN {version} has no fast and correct bf16 conv3d: install 9.15 or newer "
            f"(pip install -U nvidia-cudnn-cu{str(torch.version.cuda).partition('.')[0]}), or set train.precision=fp32"
        )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make everything that torch draws in a step (dropout, drop-path, mixing) a function of these three numbers.

    A resumed run therefore draws the same numbers as an uninterrupted one, and no random state has to be saved.

    Args:
        seed: of the run.
        step: optimizer steps taken.
        rank: of this process.
    """
    # SplitMix64's finaliser (Steele et al. 2014) spreads neighbouring inputs over all 64 bits.
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + rank * 0x8CB92BA72F3D8DD7 + 1) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    torch.manual_seed((z ^ (z >> 31)) % 2**63)


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for checkpoints and reports."""
    found = {"gcvideo": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("torchvision", "pytorchvideo", "numpy", "av", "decord"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def describe(device: torch.device, precision: str) -> str:
    """One line on the machine, for the log."""
    threads = torch.get_num_threads()
    name = f"CPU, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else "GPU of Apple"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    processes = distributed.world_size()
    return f"{name}{f' x {processes} processes' if processes > 1 else ''}, {precision}"


def memory_peak(device: torch.device) -> int:
    """Largest amount of memory in use so far, in bytes: of an NVIDIA GPU, elsewhere of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
