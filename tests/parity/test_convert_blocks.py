"""Context blocks of 2D toolkits: alone, and inside a 2D network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gcvideo.config import config_from_dict
from gcvideo.layers import ContextBlock
from gcvideo.models import build_model
from gcvideo.weights.convert import find_naming, naming_to_write, rename, to_gcvideo
from gcvideo.weights.naming import BLOCK_FORMATS, GCVIDEO, model_fields
from gcvideo.weights.reading import Weights
from tests.parity.foreign import MmcvContextBlock, randomize_norms

timm = pytest.importorskip("timm")
GlobalContext = timm.layers.global_context.GlobalContext

FUSIONS = {"add": ("channel_add",), "scale": ("channel_mul",), "scale_add": ("channel_mul", "channel_add")}


def randomize(module: nn.Module) -> nn.Module:
    """Every parameter random: fresh blocks end in zeros, which would hide mistakes."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def make_peer(toolkit: str, fusion: str, attention: bool) -> nn.Module:
    if toolkit == "mmcv":
        return randomize(MmcvContextBlock(32, 1 / 4, FUSIONS[fusion], "att" if attention else "avg"))
    options = {"fuse_add": "add" in fusion, "fuse_scale": "scale" in fusion}
    return randomize(GlobalContext(32, use_attn=attention, rd_ratio=1 / 4, **options))


@pytest.mark.parametrize("attention", [True, False], ids=["attention", "average"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("toolkit", ["mmcv", "timm"])
def test_block(toolkit: str, fusion: str, attention: bool) -> None:
    peer = make_peer(toolkit, fusion, attention)
    state, report, _ = rename(peer.state_dict(), BLOCK_FORMATS[toolkit], BLOCK_FORMATS["gcvideo"])
    block = ContextBlock(32, pool="attention" if attention else "average", fusion=fusion, reduction=4).double()
    block.load_state_dict(state)  # strict: no key is missing or left over
    picture = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    expected = peer(picture)
    torch.testing.assert_close(block(picture.unsqueeze(2)).squeeze(2), expected, rtol=1e-10, atol=1e-10)

    mask = {"mmcv": "conv_mask.bias", "timm": "conv_attn.bias"}[toolkit]
    assert set(report.dropped) == ({mask} if attention else set())
    assert not report.unmatched
    back, *_ = rename(block.state_dict(), BLOCK_FORMATS["gcvideo"], BLOCK_FORMATS[toolkit])
    assert {key: tensor.shape for key, tensor in back.items()} == {k: v.shape for k, v in peer.state_dict().items()}
    peer.load_state_dict(back)  # the mask's bias is zero now, and nothing changes
    torch.testing.assert_close(peer(picture), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [-40.0, 0.5, 1e3])
@pytest.mark.parametrize("toolkit", ["mmcv", "timm"])
def test_the_dropped_mask_bias_is_harmless(toolkit: str, bias: float) -> None:
    peer = make_peer(toolkit, "add", attention=True)
    picture = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    expected = peer(picture)
    mask = peer.conv_mask if toolkit == "mmcv" else peer.conv_attn
    nn.init.constant_(mask.bias, bias)
    torch.testing.assert_close(peer(picture), expected, rtol=1e-10, atol=1e-10)
    mask.zero_grad()
    peer(picture).square().sum().backward()
    assert mask.bias.grad.abs().max() < 1e-9 * mask.weight.grad.abs().max()  # nor would training ever move it
    state, report, _ = rename(peer.state_dict(), BLOCK_FORMATS[toolkit], BLOCK_FORMATS["gcvideo"])
    assert list(report.dropped.values()) == ["the softmax over positions cancels a constant added to every logit"]
    assert not any("mask" in key or "attn" in key for key in state)


def test_timm_to_mmcv() -> None:
    timm_block, mmcv_block = make_peer("timm", "scale_add", True), make_peer("mmcv", "scale_add", True)
    state, *_ = rename(timm_block.state_dict(), BLOCK_FORMATS["timm"], BLOCK_FORMATS["mmcv"])
    mmcv_block.load_state_dict(state)
    picture = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(mmcv_block(picture), timm_block(picture), rtol=1e-10, atol=1e-10)


# ----------------------------------------------------------------------------------------- inside a whole 2D network


def timm_network(attention: str) -> nn.Module:
    return randomize_norms(
        randomize(timm.create_model("resnet18", num_classes=9, block_args={"attn_layer": attention}))
    )


def logits_of_still(model: nn.Module, picture: Tensor) -> Tensor:
    return model(picture.unsqueeze(2).expand(-1, -1, 2, -1, -1))


@pytest.mark.parametrize(("attention", "fusion"), [("gca", "add"), ("gc", "scale")])
def test_timm_network_with_context_blocks(attention: str, fusion: str) -> None:
    peer = timm_network(attention)
    naming = find_naming(peer.state_dict(), where="test", format="timm")
    fields = model_fields(Weights(peer.state_dict()), naming, arch="c2d")
    assert fields["context"]["fusion"] == fusion
    assert fields["context"]["reduction"] == 8
    config = config_from_dict({"name": "x", "model": fields}, where="test").model
    model = build_model(config).double().eval()
    state, report = to_gcvideo(peer.state_dict(), naming, model)
    assert not report.unmatched
    assert not report.missing
    assert all(key.endswith("se.conv_attn.bias") for key in report.dropped)
    model.load_state_dict(state)
    picture = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(picture)
        torch.testing.assert_close(logits_of_still(model, picture), expected, rtol=1e-10, atol=1e-10)
        back, *_ = rename(model.state_dict(), GCVIDEO, naming_to_write("timm", config))
        peer.load_state_dict(back)
        torch.testing.assert_close(peer(picture), expected, rtol=1e-10, atol=1e-10)
