"""``gcvideo convert`` from file to file, and what it refuses."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gcvideo.cli import main
from gcvideo.config import config_from_dict
from gcvideo.errors import CheckpointError
from gcvideo.models import build_model, create_model
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.weights.reading import read_weights, write_weights
from tests.parity import foreign
from tests.parity.foreign import Spec

FIVE = {3: [1, 3], 4: [1, 3, 5]}
SOFTMAX = "model.context.instantiation=embedded_gaussian"


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def restored(path: Path) -> torch.nn.Module:
    checkpoint = load_checkpoint(path)
    model = build_model(config_from_dict(checkpoint["config"], where=str(path)).model)
    model.load_state_dict(checkpoint["model"])
    return model.eval()


@pytest.fixture
def pyslowfast(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A PySlowFast checkpoint of a tiny I3D with five non-local blocks."""
    state = foreign.random_state(Spec("i3d", non_local=FIVE), foreign.pyslowfast, dtype=torch.float32)
    path = tmp_path / "I3D_NLN.pyth"
    torch.save({"model_state": state, "epoch": 196}, path)
    return path, state


def test_to_gcvideo_and_back(pyslowfast: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, state = pyslowfast
    classes = tmp_path / "classes.txt"
    classes.write_text("a\nb\nc\nd\ne\n")
    ours, back, account = tmp_path / "ours.pt", tmp_path / "back.pyth", tmp_path / "account.json"
    options = ("--from", "pyslowfast", "--to", "gcvideo", "--classes", classes, "--json", account)
    assert convert(path, ours, SOFTMAX, *options) == 0
    output = capsys.readouterr().out
    assert f"{path} (PySlowFast): {len(state)} tensors copied" in output
    assert "counts no batches" in output
    assert json.loads(account.read_text())[0]["unmatched"] == {}
    assert load_checkpoint(ours)["classes"] == ["a", "b", "c", "d", "e"]
    clips = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    doubled = {key: tensor.double() for key, tensor in state.items()}
    expected = foreign.logits(doubled, Spec("i3d", non_local=FIVE), foreign.pyslowfast, clips)
    with torch.no_grad():
        torch.testing.assert_close(restored(ours).double()(clips), expected, rtol=1e-10, atol=1e-10)

    assert convert(ours, back, "--from", "gcvideo", "--to", "pyslowfast") == 0
    again = torch.load(back, weights_only=True)["model_state"]
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_half_of_the_bytes(pyslowfast: tuple[Path, Any], tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    options = (SOFTMAX, "--from", "pyslowfast", "--to", "gcvideo")
    assert convert(pyslowfast[0], whole, *options) == convert(pyslowfast[0], half, *options, "--half") == 0
    expected, found = read_weights(whole), read_weights(half)
    assert found.extra["config"]["model"] == expected.extra["config"]["model"]
    for key, tensor in found.tensors.items():
        kernel = tensor.dim() > 1
        assert tensor.dtype == (torch.float16 if kernel else expected.tensors[key].dtype), key
        torch.testing.assert_close(tensor, expected.tensors[key].to(tensor.dtype), rtol=0, atol=0)


def test_from_one_toolkit_to_another(pyslowfast: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = pyslowfast
    target = tmp_path / "i3d.pkl"
    assert convert(path, target, SOFTMAX, "--from", "pyslowfast", "--to", "caffe2") == 0
    with target.open("rb") as file:
        blobs = pickle.load(file)["blobs"]
    expected = foreign.random_state(Spec("i3d", non_local=FIVE), foreign.caffe2)
    assert {name: blob.shape for name, blob in blobs.items()} == {k: tuple(v.shape) for k, v in expected.items()}
    # A raw pickle comes back only when its source is trusted.
    ours = tmp_path / "ours.pt"
    assert convert(target, ours, SOFTMAX, "--from", "caffe2", "--to", "gcvideo") == 2
    assert convert(target, ours, SOFTMAX, "--from", "caffe2", "--to", "gcvideo", "--unsafe-pickle") == 0


def test_softmax_or_dot_product_must_be_said(
    pyslowfast: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(pyslowfast[0], tmp_path / "x.pt", "--from", "pyslowfast", "--to", "gcvideo") == 2
    assert "add model.context.instantiation=embedded_gaussian or" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


def test_what_does_not_match_is_refused_unless_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = foreign.random_state(Spec(), foreign.mmaction2, dtype=torch.float32)
    state["backbone.layer4.2.tam.weight"] = torch.zeros(3)
    del state["backbone.layer2.1.conv2.bn.bias"]
    path, target = tmp_path / "slowonly.pth", tmp_path / "ours.pt"
    torch.save({"state_dict": state, "meta": {}}, path)
    assert convert(path, target, "--from", "mmaction2", "--to", "gcvideo") == 2
    captured = capsys.readouterr()
    assert "backbone.layer4.2.tam.weight found no place" in captured.err
    assert "not a key of mmaction2 known here" in captured.out
    assert "res3.1.branch2.norm_b.bias" in captured.out
    assert not target.exists()
    assert convert(path, target, "--from", "mmaction2", "--to", "gcvideo", "--partial") == 0
    assert "res3.1.branch2.norm_b.bias" not in load_checkpoint(target)["model"]


def test_shapes_that_contradict_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = foreign.random_state(Spec(), foreign.mmaction2, dtype=torch.float32)
    path = tmp_path / "slowonly.pth"
    torch.save({"state_dict": state}, path)
    arguments = ("model.width=8", "--from", "mmaction2", "--to", "gcvideo")
    assert convert(path, tmp_path / "ours.pt", *arguments) == 2
    reason = "has shape [4, 3, 1, 7, 7], the network's stem.conv.weight [8, 3, 1, 7, 7]"
    assert f"backbone.conv1.conv.weight found no place: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("toolkit", ["torchvision", "timm"])
def test_imagenet_and_back(toolkit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = pytest.importorskip("torchvision.models" if toolkit == "torchvision" else "timm.models")
    state = library.resnet18(num_classes=5).state_dict()
    path, ours, back = tmp_path / "resnet18.pth", tmp_path / "ours.pt", tmp_path / "back.pth"
    torch.save(state, path)
    assert convert(path, ours, "model.arch=i3d", "--from", toolkit, "--to", "gcvideo") == 0
    assert restored(ours).stem.conv.weight.shape == (64, 3, 5, 7, 7)
    assert convert(ours, back, "--from", "gcvideo", "--to", toolkit) == 0
    assert "kernels are summed over time" in capsys.readouterr().out
    again = torch.load(back, weights_only=True)
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(again[key], tensor)


def test_safetensors_keep_the_config(tmp_path: Path) -> None:
    model = create_model("slow_r18_gc_c345", width=8, num_classes=3)
    path, tensors, back = tmp_path / "a.pt", tmp_path / "a.safetensors", tmp_path / "b.pt"
    from gcvideo.config import RunConfig, config_to_dict
    from gcvideo.train.checkpoint import save_checkpoint

    config = config_to_dict(RunConfig(name="a", model=model.config))
    content = {"config": config, "classes": ["x", "y", "z"], "fingerprint": "abc", "epoch": 3, "step": 7}
    save_checkpoint(path, {"model": model.state_dict(), **content})
    assert convert(path, tensors, "--from", "gcvideo", "--to", "gcvideo") == 0
    assert convert(tensors, back, "--from", "gcvideo", "--to", "gcvideo") == 0
    again = load_checkpoint(back)
    assert {key: again[key] for key in content} == content
    assert all(torch.equal(again["model"][key], tensor) for key, tensor in model.state_dict().items())


def test_a_block_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = foreign.MmcvContextBlock(16, 1 / 4, ("channel_add",))
    path, ours = tmp_path / "block.pth", tmp_path / "ours.pt"
    torch.save(block.state_dict(), path)
    assert convert(path, ours, "--from", "mmcv", "--to", "gcvideo") == 0
    assert "conv_mask.bias: the softmax over positions cancels" in capsys.readouterr().out
    assert torch.load(ours, weights_only=True)["pool.weight"].shape == (1, 16)
    assert convert(path, tmp_path / "x.pth", "--from", "mmcv", "--to", "pyslowfast") == 2
    assert "a context block alone goes to gcvideo, mmcv or timm" in capsys.readouterr().err


def test_refusals_in_one_line(pyslowfast: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = pyslowfast
    absent = tmp_path / "no.pth"
    wrong_key = (path, tmp_path / "x.pt", SOFTMAX, "model.widht=4", "--from", "pyslowfast", "--to", "gcvideo")
    for arguments, message in (
        (wrong_key, "did you mean 'model.width'?"),
        ((path, path, "--from", "pyslowfast", "--to", "gcvideo"), "source and target are the same file"),
        ((absent, tmp_path / "x.pt", "--from", "pyslowfast", "--to", "gcvideo"), "no such checkpoint"),
        ((path, tmp_path / "x.pkl", SOFTMAX, "--from", "pyslowfast", "--to", "gcvideo"), ".pkl is Caffe2's"),
        ((path, tmp_path / "x.pt", "--from", "caffe2", "--to", "gcvideo"), "did you mean --from pyslowfast?"),
        (
            (path, tmp_path / "x.pt", SOFTMAX, "model.widht=4", "--from", "pyslowfast", "--to", "gcvideo"),
            "did you mean 'model.width'?",
        ),
    ):
        assert convert(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- reading files


class Hostile:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch-legacy"])
def test_nothing_in_a_file_is_run(kind: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "hostile.pth"
    content = {"state_dict": {"conv1.weight": torch.zeros(2)}, "meta": Hostile(trace)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(CheckpointError, match="gcvideo convert --unsafe-pickle"):
        read_weights(path)
    assert not trace.exists()
    read_weights(path, unsafe_pickle=True)
    assert trace.exists()  # so the file was a threat


def test_foreign_objects_are_named(tmp_path: Path) -> None:
    path = tmp_path / "videomae.pth"
    torch.save({"model": {"w": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(CheckpointError, match=r"holds argparse\.Namespace"):
        read_weights(path)
    assert read_weights(path, unsafe_pickle=True).tensors.keys() == {"w"}


def test_damaged_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"state_dict": {"w": torch.arange(1000.0)}}, whole)
    data = whole.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF  # inside the tensor
    for name, content in {
        "cut.pth": data[: len(data) // 2],
        "flipped.pth": bytes(flipped),
        "text.pth": b"hello",
        "empty.pth": b"",
        "bad.safetensors": b"hello world, not safetensors",
        "cut.pkl": pickle.dumps({"blobs": {"a": 1}})[:-5],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_weights(path, unsafe_pickle=name.endswith(".pkl"))


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "config.pth"
    torch.save({"epoch": 3, "lr": 0.1}, path)
    with pytest.raises(CheckpointError, match="holds no tensors; its keys are epoch, lr"):
        read_weights(path)


def test_writing_needs_a_folder_one_may_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_weights(tmp_path / "file" / "x.pth", {"w": torch.zeros(1)})
