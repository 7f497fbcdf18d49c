"""The fast network gives the same answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from gcvideo.config import ContextConfig, ModelConfig
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.models.resnet3d import build_model


def trained(depth: int, kind: str, arch: str = "slow", *, stages: Sequence[str] = ("res3",), **sizes: int) -> nn.Module:
    """A network whose batch norms, blocks and head have values as after training."""
    torch.manual_seed(0)
    placed = {} if kind == "none" else dict.fromkeys(stages, "all")
    context = ContextConfig(kind=kind, stages=placed)  # type: ignore[arg-type]
    sizes = {"width": 8, "num_classes": 12, **sizes}
    model = build_model(ModelConfig(depth=depth, arch=arch, context=context, **sizes))  # type: ignore[arg-type]
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


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@torch.no_grad()
def test_one_thread_computes_in_onednn_too(clips: torch.Tensor) -> None:
    fast = optimize_for_inference(trained(50, "gc"))
    with torch.profiler.profile() as profile:
        fast(clips)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::mkldnn_convolution"] == 53
    assert "aten::slow_conv3d" not in counts


@pytest.mark.parametrize("kind", ["none", "gc"])
@torch.no_grad()
def test_bf16_logits_are_within_five_thousandths(kind: str, clips: torch.Tensor) -> None:
    """Slow-R50 as it is tested on Kinetics, plain and with GC in c3 to c5; error and norm are of each clip's logits."""
    model = trained(50, kind, stages=("res3", "res4", "res5"), width=64, num_classes=400)
    fast = optimize_for_inference(model, precision="bf16")
    for found, expected in zip(fast(clips.bfloat16()), model(clips), strict=True):
        assert 1e-4 < relative_error(found, expected) < 5e-3
        assert len(found.unique()) > len(found.bfloat16().unique()), "the head must tell apart what bfloat16 cannot"
    convs = [module for module in fast.modules() if isinstance(module, nn.Conv3d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last_3d) for conv in convs)


@pytest.mark.slow
@torch.no_grad()
def test_compiling_changes_nothing_and_packs_the_weights(clips: torch.Tensor) -> None:
    torch.manual_seed(0)
    # Compiling a whole network takes minutes; one convolution shows that the switch works.
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    fast = optimize_for_inference(model, compile=True)
    found, (code,) = run_and_get_code(fast, clips)
    assert relative_error(found, model.eval()(clips)) < 1e-5
    if torch.backends.mkldnn.is_available():
        assert "mkldnn._convolution_pointwise" in code, "with frozen weights the ReLU is part of the convolution"
        assert "extern_kernels.convolution" not in code
