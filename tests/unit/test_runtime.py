"""What the machine can do, and random draws that depend on the step alone."""

from __future__ import annotations

import platform

import pytest
import torch

from gcvideo.engine import runtime
from gcvideo.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_takes_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.pick_device("auto") == CPU
    with pytest.raises(ConfigError, match="finds no GPU; set device=cpu"):
        runtime.pick_device("cuda")


def test_more_processes_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 on this machine has no GPU of its own"):
        runtime.pick_device("cuda")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"avx2"}, "fp32"), ({"avx512f"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16", "amx_tile"}, "bf16")],
)
def test_bf16_only_where_the_cpu_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: flags)
    assert runtime.pick_precision("auto", CPU) == precision
    assert runtime.pick_precision("bf16", CPU) == "bf16"  # who asks for it gets it
    assert runtime.pick_precision("fp32", CPU) == "fp32"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 CPU")
def test_the_flags_of_this_cpu_are_found() -> None:
    assert "sse2" in runtime._cpu_flags()


def test_channels_last_follows_the_precision_unless_told() -> None:
    assert runtime.pick_memory_format(None, "bf16") == torch.channels_last_3d
    assert runtime.pick_memory_format(None, "fp32") == torch.contiguous_format
    assert runtime.pick_memory_format(True, "fp32") == torch.channels_last_3d
    assert runtime.pick_memory_format(False, "bf16") == torch.contiguous_format


@pytest.mark.parametrize(("version", "warns"), [(90800, True), (91400, True), (91002, True), (91500, False)])
def test_an_old_cudnn_is_warned_about(version: int, warns: bool, capsys: pytest.CaptureFixture[str]) -> None:
    runtime.warn_about_cudnn(version)
    assert ("install 9.15 or newer" in capsys.readouterr().err) == warns


def test_freed_memory_is_kept_on_glibc() -> None:
    assert runtime.keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def draw(seed: int, step: int, rank: int) -> tuple[float, ...]:
    runtime.seed_step(seed, step, rank)
    return tuple(torch.rand(4).tolist())


def test_draws_are_a_function_of_seed_step_and_rank() -> None:
    draws = {(seed, step, rank): draw(seed, step, rank) for seed in (0, 1) for step in (0, 1, 2) for rank in (0, 1)}
    assert len(set(draws.values())) == 12
    torch.rand(100)  # whatever was drawn in between
    assert all(draw(*key) == drawn for key, drawn in draws.items())


def test_versions_name_what_a_result_depends_on() -> None:
    assert {"gcvideo", "python", "torch", "torchvision", "numpy", "av"} <= runtime.versions().keys()
