"""Which precision is chosen, and that its gradients are right."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from gcvideo import device as runtime
from gcvideo.config import ModelConfig, RunConfig, config_to_dict
from gcvideo.errors import ConfigError
from gcvideo.models.resnet3d import build_model
from gcvideo.train.schedule import smallest_clip
from gcvideo.train.state import differences
from gcvideo.train.step import TrainStep
from tests.training import train_config

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, flags: str, vendor: str = "GenuineIntel") -> None:
    monkeypatch.setattr(runtime, "cpu_info", lambda: {"flags": flags, "vendor_id": vendor})


def config_of(folder: Path, *, frames: int = 4, crop: int = 96, **train: Any) -> RunConfig:
    data = {"frames": frames, "crop": crop, "short_side": [crop, crop]}
    return train_config(folder, data=data, train=train)


@pytest.mark.parametrize(
    ("flags", "vendor", "expected"),
    [
        ("sse2 avx2", "AuthenticAMD", "fp32"),
        ("avx512f", "AuthenticAMD", "fp32"),
        ("avx512_bf16", "GenuineIntel", "fp32"),
        ("avx512_bf16", "AuthenticAMD", "bf16"),
        ("avx512_bf16 amx_bf16 amx_tile", "GenuineIntel", "bf16"),
    ],
)
def test_bf16_only_where_the_cpu_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, flags: str, vendor: str, expected: str
) -> None:
    pretend(monkeypatch, flags, vendor)
    assert runtime.pick_precision("auto", CPU) == expected
    assert runtime.pick_precision("bf16", CPU) == "bf16"  # who asks for it gets it
    assert runtime.pick_precision("fp32", CPU) == "fp32"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 CPU")
def test_the_flags_of_this_cpu_are_found() -> None:
    assert "sse2" in runtime.cpu_info()["flags"].split()


def test_a_kernel_longer_than_its_input_is_found() -> None:
    slow = build_model(ModelConfig(depth=18, width=4, num_classes=4))
    assert runtime.find_overhang(slow, (1, 3, 4, 96, 96)) is None
    assert runtime.find_overhang(slow, (1, 3, 4, 64, 64)) == "res5.0.branch2.conv_b (1 x 3 x 3 on 4 x 2 x 2)"
    assert runtime.find_overhang(slow, (1, 3, 2, 96, 96)) == "res4.0.branch2.conv_a (3 x 3 x 3 on 2 x 12 x 12)"
    assert next(slow.parameters()).device == CPU  # the network itself is left alone


def test_training_takes_float32_where_bf16_gradients_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, "amx_bf16")
    assert TrainStep(config_of(tmp_path, precision="auto"), CPU).precision == "bf16"
    assert TrainStep(config_of(tmp_path, precision="auto", crop=64), CPU).precision == "fp32"
    with pytest.raises(
        ConfigError, match=r"train.precision: .* as in res5.*; set train.precision=fp32, .* 4 x 64 x 64"
    ):
        TrainStep(config_of(tmp_path, precision="bf16", crop=64), CPU)


@pytest.mark.parametrize(("kind", "smallest"), [("none", (8, 112)), ("long", (2, 79))])
def test_the_smallest_clip_of_a_training(tmp_path: Path, kind: str, smallest: tuple[int, int]) -> None:
    assert smallest_clip(config_of(tmp_path, frames=8, crop=112, multigrid=kind)) == smallest


def test_bf16_gradients_are_right_where_bf16_is_taken(tmp_path: Path) -> None:
    """The smallest clip that is let through: kernels as long as their inputs."""
    learner = TrainStep(config_of(tmp_path, frames=3, crop=96, precision="bf16"), CPU)
    clips = torch.randint(0, 256, (4, 3, 3, 96, 96), dtype=torch.uint8)
    gradients = {}
    for name in ("bf16", "fp32"):
        learner.precision = name
        learner.network.zero_grad(set_to_none=True)
        with learner.autocast():
            logits = learner.network(learner.prepare(clips))
        torch.nn.functional.cross_entropy(logits.float(), torch.arange(4)).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in learner.network.parameters() if p.grad is not None])
    assert torch.nn.functional.cosine_similarity(gradients["bf16"], gradients["fp32"], dim=0) > 0.95


def test_going_on_in_another_precision_is_told(tmp_path: Path) -> None:
    config = config_to_dict(config_of(tmp_path, precision="auto"))
    same = {"config": config, "fingerprint": "f", "classes": None, "world_size": 1, "versions": {}}
    before, now = {**same, "precision": "bf16"}, {**same, "precision": "fp32"}
    assert differences(before, now) == {"precision": "was bf16 in the checkpoint and is fp32 now"}
    assert differences(before, before) == {}
    assert differences(same, now) == {}  # an older checkpoint does not say
