"""Exported networks agree with the network itself, at any batch size, under onnxruntime and as exported programs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gcvideo.cli import main
from gcvideo.config import RunConfig, config_to_dict
from gcvideo.layers import NonLocalBlock
from gcvideo.models import create_model
from gcvideo.predict import export
from gcvideo.train.checkpoint import save_checkpoint
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


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS), *BLOCKS])
def test_agrees_with_eager(name: str) -> None:
    model = {**NETWORKS, **BLOCKS}[name]()
    size = 64 if name in NETWORKS else 8
    for format in (".pt2", ".onnx"):
        content, error = export.export_network(model, frames=4, size=size, format=format, metadata={"classes": None})
        assert error <= 1e-4  # batches of 1 and 3
    graph = onnx.load_from_string(content).graph
    assert graph.input[0].name == "clips"
    assert graph.output[0].name == "logits"
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_comparison_notices_a_difference() -> None:
    model = BLOCKS["dot_product"]()
    content, error = export.export_network(model, frames=2, size=4, format=".pt2", metadata={})
    assert error <= 1e-4
    nn.init.constant_(model.out.bias, 0.01)
    assert export.compare(model, content, frames=2, size=4, format=".pt2") > 1e-4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = network("slow_r18", kind="gc", stages={"res5": [1]})
    config = config_to_dict(RunConfig(name="tiny", model=model.config))
    config["data"]["frames"], config["test"]["crop"] = 2, 32
    path = tmp_path / "best.pt"
    content = {"config": config, "classes": ["a", "b", "c", "d", "e"], "fingerprint": "", "epoch": 1, "step": 1}
    save_checkpoint(path, {"model": model.state_dict(), **content})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_command(suffix: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, account = tmp_path / f"out{suffix}", tmp_path / "out.json"
    assert main(["export", str(checkpoint), str(target), "--json", str(account)]) == 0
    assert "logits within" in capsys.readouterr().out
    assert json.loads(account.read_text())["relative_error"] <= 1e-4
    if suffix == ".onnx":
        onnx.checker.check_model(target, full_check=True)
        stored = {entry.key: entry.value for entry in onnx.load(target).metadata_props}[export.METADATA]
    else:
        files = {export.METADATA: ""}
        torch.export.load(io.BytesIO(target.read_bytes()), extra_files=files)
        stored = files[export.METADATA]
    assert json.loads(stored)["classes"] == ["a", "b", "c", "d", "e"]
    assert json.loads(stored)["clip"] == [3, 2, 32, 32]


def test_refusals_in_one_line(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
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
