"""The fast network gives the same answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gcvideo.config import ContextConfig, ModelConfig
from gcvideo.engine.inference import optimize_for_inference
from gcvideo.models.resnet3d import build_model


def trained(depth: int, kind: str, arch: str = "slow") -> nn.Module:
    """A network whose batch norms, blocks and head have values as after training."""
    torch.manual_seed(0)
    context = ContextConfig(kind=kind, stages={} if kind == "none" else {"res3": "all"})  # type: ignore[arg-type]
    model = build_model(ModelConfig(depth=depth, width=8, num_classes=12, arch=arch, context=context))  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.05)
    nn.init.normal_(model.head.proj.weight, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


CASES = [(50, "none", "slow"), (50, "gc", "slow"), (50, "nl", "slow"), (18, "se", "slow"), (50, "snl", "i3d")]


@pytest.mark.parametrize(("depth", "kind", "arch"), CASES)
@torch.no_grad()
def test_folded_batch_norms_change_nothing(depth: int, kind: str, arch: str, clips: torch.Tensor) -> None:
    model = trained(depth, kind, arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(clips)
    fast = optimize_for_inference(model)
    assert relative_error(fast(clips), expected) < 1e-5
    left = [name for name, module in fast.named_modules() if isinstance(module, nn.BatchNorm3d)]
    assert all("context" in name for name in left), "the norm of a non-local block follows no convolution"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), (
        "the model is left alone"
    )


@pytest.mark.parametrize("kind", ["none", "gc"])
@torch.no_grad()
def test_bf16_stays_within_half_a_percent(kind: str, clips: torch.Tensor) -> None:
    model = trained(50, kind)
    fast = optimize_for_inference(model, precision="bf16")
    found = fast(clips.bfloat16())
    assert found.dtype == torch.bfloat16
    assert 0 < relative_error(found, model(clips)) < 1e-2
    convs = [module for module in fast.modules() if isinstance(module, nn.Conv3d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last_3d) for conv in convs)


@pytest.mark.slow
@torch.no_grad()
def test_compiling_changes_nothing(clips: torch.Tensor) -> None:
    torch.manual_seed(0)
    # Compiling a whole network takes minutes; one convolution shows that the switch works.
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    fast = optimize_for_inference(model, compile=True)
    assert relative_error(fast(clips), model.eval()(clips)) < 1e-5
