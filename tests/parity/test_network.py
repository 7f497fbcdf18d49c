"""Whole networks against the papers' formulas in NumPy float64: see ``formulas.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gcvideo.models import create_model
from tests.parity import formulas
from tests.parity.foreign import randomize_norms

# Name, and fields of the blocks; between them every kind of block, every backbone and both residual blocks.
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("slow_r50_gc_c345", {}),
    ("i3d_r50_nl5", {}),
    ("i3d_r18_gc_c345", {"kind": "snl"}),
    ("c2d_r18_se_c345", {}),
    ("slow_r18", {"kind": "nl", "instantiation": "dot_product", "subsample": "after", "stages": {"res3": "all"}}),
]


@pytest.mark.parametrize(("name", "context"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_network_equals_its_formulas(name: str, context: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = randomize_norms(create_model(name, num_classes=5, width=8, context=context)).double().eval()
    fields = model.config.context
    placed = {key.partition(".context.")[0] for key in model.state_dict() if ".context." in key}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".context." in key and ".norm." not in key:  # fresh blocks end in zeros, which would hide mistakes
                parameter.normal_(std=0.2)
    clips = torch.randn(2, 3, 4, 64, 64, dtype=torch.float64)
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    how = {"pooled_in_time": model.config.arch != "slow"}
    how |= {"kind": fields.instantiation, "subsample": fields.subsample} if fields.kind == "nl" else {}
    expected = formulas.network(clips.numpy(), state, **how)
    with torch.no_grad():
        np.testing.assert_allclose(model(clips).numpy(), expected, rtol=1e-9, atol=1e-10)
    without = {key: value for key, value in state.items() if ".context." not in key}
    assert placed
    assert np.abs(formulas.network(clips.numpy(), without, **how) - expected).max() > 1e-3  # the blocks count
