"""What the machine can do, and random draws that depend on the step alone."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from gcvideo import device as runtime
from gcvideo.config import ModelConfig
from gcvideo.errors import ConfigError
from gcvideo.models.resnet3d import build_model
from tests.processes import run_apart, wait

CPU = torch.device("cpu")


def test_auto_takes_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "GPU_FILES", "/dev/none[0-9]")
    assert runtime.pick_device("auto") == CPU
    with pytest.raises(ConfigError, match="finds no GPU of this kind; set device=cpu"):
        runtime.pick_device("cuda")


@pytest.mark.parametrize("setting", ["auto", "cuda"])
def test_a_gpu_that_torch_cannot_use_is_not_passed_over(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is too old, or torch was built without CUDA; who wants the CPU says so, or hides the GPU."""

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it")

    (tmp_path / "nvidia3").touch()  # a container may show only some of a machine's GPUs
    monkeypatch.setattr(runtime, "GPU_FILES", f"{tmp_path}/nvidia[0-9]*")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match=r"too old \(found .* was built for CUDA 13\.2; update .* set device=cpu"):
        runtime.pick_device(setting)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match=r"a build without CUDA, .* install one with CUDA, or set device=cpu"):
        runtime.pick_device(setting)
    assert runtime.pick_device("cpu") == CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert runtime.gpu_problem() is None


@pytest.mark.parametrize(("threads", "line"), [(1, "CPU, 1 thread, fp32"), (2, "CPU, 2 threads, fp32")])
def test_one_line_says_what_computes(monkeypatch: pytest.MonkeyPatch, threads: int, line: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert runtime.describe(CPU, "fp32") == line


def test_more_processes_than_gpus_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 on this machine has no GPU of its own"):
        runtime.pick_device("cuda")


@pytest.mark.parametrize(("gpus", "chosen"), [(4, 3), (1, 0), (2, 1)])
def test_each_task_of_srun_takes_its_gpu(monkeypatch: pytest.MonkeyPatch, gpus: int, chosen: int) -> None:
    """One of all GPUs of the machine, the only one that ``--gpus-per-task=1`` shows, or one to share."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert runtime.pick_device("auto") == torch.device("cuda", chosen)


def test_channels_last_is_taken_where_it_is_faster_unless_told() -> None:
    cuda = torch.device("cuda")
    assert runtime.pick_memory_format(None, "bf16", cuda) == torch.channels_last_3d
    assert runtime.pick_memory_format(None, "fp32", CPU) == torch.channels_last_3d
    assert runtime.pick_memory_format(None, "fp32", cuda) == torch.contiguous_format
    assert runtime.pick_memory_format(True, "fp32", cuda) == torch.channels_last_3d
    assert runtime.pick_memory_format(False, "bf16", CPU) == torch.contiguous_format


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_one_thread_computes_in_onednn_and_gets_the_same(one_thread: None) -> None:
    network = build_model(ModelConfig(depth=50, width=8, num_classes=4, dropout=0.0))
    clips = torch.randn(2, 3, 4, 32, 32)
    expected = network(clips)
    expected.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad(set_to_none=True)
    runtime.reach_onednn(network)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        found = network(clips)
        found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close([p.grad for p in network.parameters()], gradients, rtol=1e-3, atol=1e-3)
    called = {event.key: event.count for event in profiler.key_averages()}
    convolutions = sum(isinstance(module, nn.Conv3d) for module in network.modules())
    assert called["aten::mkldnn_convolution"] == convolutions
    assert not [name for name in called if "slow_conv" in name]


@pytest.mark.parametrize(("version", "warns"), [(90800, True), (91400, True), (91002, True), (91500, False)])
def test_an_old_cudnn_is_warned_about(
    version: int, warns: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the name of the package that this torch uses."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    runtime.warn_about_cudnn(version)
    assert ("install 9.15 or newer (pip install -U nvidia-cudnn-cu13)" in capsys.readouterr().err) == warns


def test_numbers_too_small_for_a_fast_cpu_are_zero() -> None:
    torch.set_flush_denormal(False)
    assert (torch.tensor([1e-40]) * 1).item() > 0
    runtime.tune(CPU)
    assert (torch.tensor([1e-40]) * 1).item() == 0


def free_much() -> None:
    """Print how many bytes more are resident after 1.2 GB were taken and freed."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    runtime.keep_freed_memory()
    before = resident()
    x = torch.ones(300_000_100)
    del x
    print(resident() - before)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_more_than_a_gibibyte_is_kept(tmp_path: Path) -> None:
    """What a training step frees at its end, the next one needs again."""
    output = tmp_path / "output.txt"
    assert wait([run_apart(free_much, output=output)]) == [0]
    assert int(output.read_text()) > 1.2e9


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
