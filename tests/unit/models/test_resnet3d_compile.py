"""Networks and blocks under torch.compile and torch.export."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gcvideo.layers import ContextBlock, NonLocalBlock, se_block
from gcvideo.models import create_model

pytestmark = pytest.mark.slow

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "slow gc": ("slow_r18", {"kind": "gc"}),
    "slow nl": ("slow_r18", {"kind": "nl"}),
    "i3d snl": ("i3d_r18", {"kind": "snl"}),
    "c2d se": ("c2d_r18", {"kind": "se"}),
    "slow gc in bottlenecks": ("slow_r50", {"kind": "gc", "position": "after_3x3", "fusion": "scale_add"}),
    "i3d gc in ResNeXt": ("i3d_x50_32x4d", {"kind": "gc", "position": "after_add"}),
}
BLOCKS = {
    "gc": lambda: ContextBlock(8),
    "snl": lambda: ContextBlock(8, transform="linear"),
    "se": lambda: se_block(8, reduction=2),
    "scale_add": lambda: ContextBlock(8, fusion="scale_add"),
    "gaussian": lambda: NonLocalBlock(8, instantiation="gaussian"),
    "embedded_gaussian": lambda: NonLocalBlock(8),
    "dot_product": lambda: NonLocalBlock(8, instantiation="dot_product"),
    "concatenation": lambda: NonLocalBlock(8, instantiation="concatenation"),
}


def randomise(module: nn.Module) -> nn.Module:
    """Replace the zeros of fresh blocks, which would make them do nothing."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() < 2 or not parameter.any():
            nn.init.normal_(parameter, mean=0.3, std=0.3)
    return module


def network(key: str) -> nn.Module:
    name, context = NETWORKS[key]
    placed = {**context, "stages": {"res2": [1], "res4": [1]}}
    width = 16 if "_x" in name else 8  # ResNeXt's 4 channels a group need 16
    return randomise(create_model(name, num_classes=5, width=width, dropout=0.0, context=placed))


def clips(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def assert_same_training_step(eager: nn.Module, compiled: Any, x: Tensor) -> None:
    outputs, leaves = [], [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    for forward, leaf in zip((eager, compiled), leaves, strict=True):
        outputs.append(forward(leaf))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-3, atol=1e-4)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("key", NETWORKS)
def test_a_network_is_one_graph(key: str) -> None:
    """Capture alone: generating code for a network takes minutes and is PyTorch's own affair."""
    model = network(key).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(clips(2, 3, 2, 32, 32)), model(clips(2, 3, 2, 32, 32)))


@pytest.mark.parametrize("key", NETWORKS)
def test_a_network_exports_with_a_dynamic_batch(key: str) -> None:
    model = network(key).eval()
    example = (clips(2, 3, 2, 32, 32),)
    program = torch.export.export(model, example, dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    for batch in (1, 3):
        x = clips(batch, 3, 2, 32, 32)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", BLOCKS)
def test_a_block_trains_in_one_graph(key: str) -> None:
    block = randomise(BLOCKS[key]())
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same_training_step(block, compiled, clips(2, 8, 2, 4, 4))


@pytest.mark.parametrize("key", ["gc", "embedded_gaussian"])
def test_a_block_compiles_under_autocast(key: str) -> None:
    block, x = randomise(BLOCKS[key]()), clips(2, 8, 2, 4, 4)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = compiled(x), block(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)


def test_gc_compiles_to_native_code_in_channels_last() -> None:
    block = randomise(BLOCKS["gc"]())
    x = clips(2, 8, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    assert_same_training_step(block, torch.compile(block, fullgraph=True), x)
