"""On a real GPU (``pytest -m gpu``): blocks in bf16 against float64 on the CPU, graphs against single kernels."""

from __future__ import annotations

import copy
import ctypes

import pytest
import torch
from torch import nn

from gcvideo.benchmark.workloads import without_zeros
from gcvideo.layers import NonLocalBlock, gc_block, se_block, snl_block
from tests.device.steps import CASES, build, tiny

real = torch.cuda.is_available() and not hasattr(ctypes.CDLL(None), "nullcuda_counts")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not real, reason="torch finds no GPU here")]
BLOCKS = {"gc": gc_block, "snl": snl_block, "se": se_block, "nl": NonLocalBlock}


def passes(block: nn.Module, x: torch.Tensor, dy: torch.Tensor, device: str) -> list[torch.Tensor]:
    """Output and gradients of a block, in float64 on the CPU."""
    x = x.to(device).requires_grad_()
    with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
        y = block(x)
    y.backward(dy.to(y))
    found = [y.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]
    return [tensor.double().cpu() for tensor in found if tensor is not None]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_in_bf16_computes_what_it_does_in_float64(kind: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    block = without_zeros(BLOCKS[kind](64))
    exact = copy.deepcopy(block).double()
    x = torch.randn(4, 64, 4, 8, 8).bfloat16().contiguous(memory_format=layout)
    dy = torch.randn(x.shape).bfloat16()
    found, expected = passes(block.cuda(), x, dy, "cuda"), passes(exact, x.double(), dy.double(), "cpu")
    compared = slice(2) if kind == "nl" else slice(None)  # some of its gradients are smaller than rounding
    for one, other in zip(found[compared], expected[compared], strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()  # bf16 has 8 bits


@pytest.mark.parametrize("case", ["plain", "gc", "nl", "ema", "dropout", "mixup", "accumulate", "adamw"])
def test_a_graph_trains_like_single_kernels(case: str) -> None:
    weights = []
    for cuda_graph in (False, True):
        values = dict(CASES[case])
        values["train"] = {**values.get("train", {}), "cuda_graph": cuda_graph}
        step, batches = build(tiny(**values), cudnn=True)
        torch.manual_seed(1)
        for batch in batches:
            batch.clips.random_(0, 256)
        for number in range(8):
            step.step(iter(batches), number=number, lr=0.01 * (number + 1))
        assert (step._graphs is not None) == cuda_graph
        weights.append(torch.cat([parameter.detach().flatten() for parameter in step.tested_network.parameters()]))
    assert weights[1].isfinite().all()
    assert (weights[1] - weights[0]).norm() <= 1e-3 * weights[0].norm()  # atomic sums differ from run to run
