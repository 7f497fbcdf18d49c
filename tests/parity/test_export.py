"""Exported networks agree with the network itself, at any batch size, under onnxruntime and as exported programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gcvideo.cli import main
from gcvideo.config import DataConfig, ModelConfig, RunConfig, TestConfig
from gcvideo.errors import ConfigError
from gcvideo.layers import NonLocalBlock
from gcvideo.models import create_model
from gcvideo.predict import export
from tests.parity.foreign import randomize_norms

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def randomize_zeros(model: nn.Module) -> nn.Module:
    """Fresh blocks end in zeros, which would hide the layers before them."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return randomize_norms(model).eval()


def network(name: str, *, frame_difference: bool = False, **context: Any) -> nn.Module:
    model = create_model(name, width=8, num_classes=5, frame_difference=frame_difference, context=context)
    return randomize_zeros(model)


# Every architecture and every kind of block; slow with gc goes through the whole command further below.
NETWORKS = {
    "i3d-se": lambda: network("i3d_r18", kind="se", reduction=4, stages={"res4": "all"}, frame_difference=True),
    "c2d-snl": lambda: network("c2d_r18", kind="snl", stages={"res4": "all"}),
    "slow-nl": lambda: network("slow_r18", kind="nl", stages={"res4": "all"}),
}
# The other forms of the non-local block differ from nl in the block alone.
BLOCKS = {
    kind: lambda kind=kind: randomize_zeros(NonLocalBlock(3, instantiation=kind, reduction=1))
    for kind in ("gaussian", "dot_product", "concatenation")
}


def run_config(model: nn.Module, *, frames: int, size: int) -> RunConfig:
    config = getattr(model, "config", ModelConfig())
    return RunConfig(name="tiny", model=config, data=DataConfig(frames=frames), test=TestConfig(crop=size))


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS), *BLOCKS])
def test_agrees_with_eager(name: str) -> None:
    model = {**NETWORKS, **BLOCKS}[name]()
    config = run_config(model, frames=4, size=64 if name in NETWORKS else 8)
    for format in (".pt2", ".onnx") if name == "i3d-se" else (".onnx",):
        dynamic = None if name in NETWORKS else []  # blocks alone would be given far too many positions
        content, about, error = export.export_network(model, config, format=format, dynamic=dynamic)
        assert error <= 1e-4  # batches of 1 and 3, and other T, H and W
        if name in NETWORKS:
            pairs = name != "slow-nl"  # pooled in time
            assert about["dynamic"]["T"] == {"least": 4 if pairs else 1, "multiple": 2 if pairs else 1}
            assert about["dynamic"]["H"] == about["dynamic"]["W"] == {"least": 64, "multiple": 1}
    graph = onnx.load_from_string(content).graph
    assert graph.input[0].name == "clips"
    assert graph.output[0].name == "logits"
    shape = [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, *(["T", "H", "W"] if name in NETWORKS else [4, 8, 8])]


class OneSize(nn.Module):
    """An own backbone whose layers fix T, H and W."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 2 * 8 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def test_a_network_of_one_size_is_exported_for_that_size_alone() -> None:
    model = OneSize().eval()
    config = run_config(model, frames=2, size=8)
    _, about, error = export.export_network(model, config, format=".pt2")
    assert about["dynamic"] == {}
    assert error <= 1e-4
    with pytest.raises(ConfigError, match="--dynamic T: the network takes one size only"):
        export.export_network(model, config, format=".pt2", dynamic=["T"])
    slow = create_model("slow_r18", width=4, num_classes=5).eval()
    with pytest.raises(ConfigError, match=r"--dynamic H: the network takes H from 64; the clips are .*'H': 32"):
        export.export_network(slow, run_config(slow, frames=1, size=32), format=".pt2", dynamic=["H"])


def test_comparison_notices_a_difference() -> None:
    model = OneSize().eval()
    content, _, error = export.export_network(model, run_config(model, frames=2, size=8), format=".pt2", dynamic=[])
    assert error <= 1e-4
    nn.init.constant_(model.head.bias, 0.01)
    assert export.compare(model, content, format=".pt2") > 1e-4


@pytest.mark.slow
def test_the_file_is_a_valid_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, account = tmp_path / "out.onnx", tmp_path / "out.json"
    command = ["export", "slow_r18", str(target), "--json", str(account), "--frames", "2", "--size", "32", "--dynamic"]
    assert main([*command, "--num-classes", "5"]) == 0
    assert "logits within" in capsys.readouterr().out
    found = json.loads(account.read_text())
    assert found["relative_error"] <= 1e-4
    assert (found["clip"], found["classes"], found["test"]["crop"]) == ([3, 2, 32, 32], None, 32)
    onnx.checker.check_model(target, full_check=True)


def test_refusals_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    for arguments, message in (
        (["slow_r18", "out.pb"], "the suffix gives the format"),
        (["slow_r81", "out.pt2"], "unknown model 'slow_r81'; did you mean 'slow_r18'?"),
        (["nowhere/best.pt", "out.pt2"], "no such checkpoint"),
        (["slow_r18", str(tmp_path / "out.pt2"), "--size", "16"], "too small"),
        (["slow_r18", "out.pt2", "--frames", "0"], "--frames: must be at least 1"),
    ):
        assert main(["export", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert main(["export", "slow_r18", "out.onnx"]) == 2
    assert "pip install 'gcvideo[export]'" in capsys.readouterr().err
