"""Features of a layer: those that the whole network computes there, and nothing behind it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gcvideo.errors import ConfigError
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.models import create_model
from gcvideo.models.features import FeatureNetwork
from tests.own_parts import TinyNet

CHANNELS = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32, "head": 32}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = create_model("i3d_r18_gc_c345", width=4, num_classes=5, frame_difference=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(2, 3, 4, 32, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", CHANNELS)
def test_the_features_of_a_layer_are_its_output(network: nn.Module, clips: torch.Tensor, layer: str) -> None:
    seen: dict[str, torch.Tensor] = {}
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda m, a, y, name=name: (seen.__setitem__(name, y), ran.append(name))[0])
        for name, module in network.named_children()
    ]
    with torch.no_grad():
        network(clips)
        ran.clear()
        found = FeatureNetwork(network, layer, pooled=False)(clips)
        expected = seen["res5" if layer == "head" else layer]
        pooled = FeatureNetwork(network, layer)(clips)
    for handle in handles:
        handle.remove()
    assert torch.equal(found, expected)
    assert ran[-1] == ("res5" if layer == "head" else layer), "a later stage was computed"
    torch.testing.assert_close(pooled, expected.mean((2, 3, 4)))
    assert pooled.shape == (2, CHANNELS[layer])


def test_the_vector_of_the_head_is_what_the_last_layer_classifies(network: nn.Module, clips: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(network.head.proj(FeatureNetwork(network)(clips)), network(clips))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_optimized_networks_have_the_same_features(network: nn.Module, clips: torch.Tensor, precision: str) -> None:
    fast = optimize_for_inference(network, precision=precision)
    with torch.no_grad():
        expected = FeatureNetwork(network)(clips)
        found = FeatureNetwork(fast)(clips.to(next(fast.parameters()).dtype))
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < {"fp32": 1e-5, "bf16": 2e-2}[precision]


def test_own_networks_have_the_features_of_their_head(clips: torch.Tensor) -> None:
    own = TinyNet(4, 5).eval()
    features = FeatureNetwork(own)
    torch.testing.assert_close(own.head(features(clips)), own(clips))
    assert features.model.conv1.weight is own.conv1.weight, "the weights are shared"
    with pytest.raises(ConfigError, match="no 'res5'; its layers are head"):
        FeatureNetwork(own, "res5")
    with pytest.raises(ConfigError, match="no linear layer"):
        FeatureNetwork(nn.Conv3d(3, 4, 1))


def test_unknown_layers_are_refused(network: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"no 'res6'.*res5.*; its layers are head, stem, res2, res3, res4, res5"):
        FeatureNetwork(network, "res6")
