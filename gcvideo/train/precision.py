"""Which number format to compute in: float32, or bf16 where it is faster and right."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from gcvideo.config import RunConfig
from gcvideo.errors import ConfigError
from gcvideo.train.multigrid import smallest_clip


def pick_precision(setting: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" takes bf16 where it is faster."""
    if setting != "auto":
        return setting
    return "bf16" if bf16_pays(device) else "fp32"


def pick_training_precision(config: RunConfig, network: nn.Module, device: torch.device) -> str:
    """As ``pick_precision``, but never bf16 where the gradients would be wrong.

    On CPUs with AVX512-BF16 instructions (a Xeon and an EPYC), torch 2.15 with oneDNN 3.13 computes wrong gradients of
    a convolution's weights in bf16 where the kernel is longer than the input, and writes beyond its memory: kernels of
    3 x 1 x 1 on two frames, of 1 x 3 x 3 on one position. Forward passes, gradients of inputs and float32 are right.

    Raises:
        ConfigError: ``train.precision`` asks for bf16 on a CPU where a kernel is longer than its input.
    """
    setting = config.train.precision
    precision = pick_precision(setting, device)
    if device.type != "cpu" or precision != "bf16":
        return precision
    frames, crop = smallest_clip(config)
    overhang = find_overhang(network, (1, 3, frames, crop, crop))
    if overhang is None:
        return precision
    if setting == "auto":
        return "fp32"
    raise ConfigError(
        f"train.precision: on a CPU torch computes wrong bf16 gradients where a kernel is longer than its input, as in "
        f"{overhang}; set train.precision=fp32, or give longer or larger clips (here {frames} x {crop} x {crop})"
    )


def find_overhang(network: nn.Module, shape: tuple[int, ...]) -> str | None:
    """The first convolution with a kernel longer than its input in time, height or width, or None.

    Args:
        network: left as it is; a copy of it runs on the meta device, which computes nothing.
        shape: (N, C, T, H, W) of the clips.
    """
    found: list[str] = []
    names: dict[nn.Module, str] = {}

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv3d)
        kernel, size = tuple(module.kernel_size), tuple(inputs[0].shape[2:])
        if any(k > s for k, s in zip(kernel, size, strict=True)):
            found.append(f"{names[module]} ({_times(kernel)} on {_times(size)})")

    network = copy.deepcopy(network).to("meta").eval()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d):
            names[module] = name
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        network(torch.empty(shape, device="meta"))
    return found[0] if found else None


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 is the faster format: with matrix units, and on AMD's CPUs with AVX512-BF16 (from Zen 4 on).

    On an EPYC of that kind a large product ran at 210 GFLOP/s in bf16 and at 95 in float32, and a training step of
    Slow-R50 took 0.57 times as long. The same instructions are no gain on Intel's: on a Xeon without AMX a product ran
    at 75 GFLOP/s in bf16 and at 145 in float32, and a step took 1.2 times as long.
    """
    if has_bf16_units(device):
        return True
    cpu = _cpu()
    return device.type == "cpu" and cpu.get("vendor_id") == "AuthenticAMD" and "avx512_bf16" in cpu["flags"].split()


def has_bf16_units(device: torch.device) -> bool:
    """Whether the device has matrix units for bf16: tensor cores, or AMX on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return "amx_bf16" in _cpu()["flags"].split()


def _cpu() -> dict[str, str]:
    """What Linux says of the first processor: "flags" at least, empty where it says nothing."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    pairs = (line.partition(":") for line in first.splitlines())
    return {"flags": "", **{key.strip(): value.strip() for key, _, value in pairs}}


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))
