"""Initial weights from gcvideo's own checkpoints; other toolkits' are in tests/parity."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gcvideo.config import RunConfig, config_from_dict, config_to_dict, load_config
from gcvideo.data.crops import normalize
from gcvideo.errors import CheckpointError
from gcvideo.models import build_model
from gcvideo.prepare.motion import CLASSES, draw_clip
from gcvideo.train.checkpoint import save_checkpoint
from gcvideo.weights import load_initial_weights, restore_model
from gcvideo.weights.convert import Report
from tests.training import train_config

LABELS = ["left", "right", "up", "down"]
BACKBONE = {"arch": "tests.own_parts:tiny_net", "context": {"kind": "none"}}


def saved(config: RunConfig, path: Path, **more: Any) -> nn.Module:
    torch.manual_seed(7)
    network = build_model(config.model)
    save_checkpoint(path, {"model": network.state_dict(), "config": config_to_dict(config), **more})
    return network


def test_a_head_for_another_number_of_classes_starts_fresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = saved(train_config(tmp_path), tmp_path / "best.pt")
    network = build_model(train_config(tmp_path, model={"num_classes": 7}).model)
    load_initial_weights(network, tmp_path / "best.pt")
    for name, tensor in network.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, trained.state_dict()[name]), name
    assert network.head.proj.weight.shape[0] == 7
    assert "head.proj.weight, head.proj.bias: starts fresh" in capsys.readouterr().out


def test_blocks_put_into_a_trained_network_change_nothing_at_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = saved(train_config(tmp_path, model={"context": {"kind": "none"}}), tmp_path / "plain.pt")
    network = build_model(train_config(tmp_path).model)
    load_initial_weights(network, tmp_path / "plain.pt")
    assert "res3.{0,1}.context.pool.weight, " in capsys.readouterr().out
    clips = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(network.eval()(clips), trained.eval()(clips))


@pytest.mark.parametrize("model", [{}, BACKBONE], ids=["resnet", "own backbone"])
@pytest.mark.parametrize("classes", [["left", "up", "right", "down"], ["up", "jump", "left"], ["a", "b", "c", "d"]])
def test_a_head_keeps_the_rows_of_classes_of_the_same_name(
    model: dict[str, Any], classes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = saved(train_config(tmp_path, model=model), tmp_path / "best.pt", classes=LABELS)
    network = build_model(train_config(tmp_path, model={**model, "num_classes": len(classes)}).model)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    load_initial_weights(network, tmp_path / "best.pt", classes=classes)
    for key, tensor in network.state_dict().items():
        for label, name in enumerate(classes) if key.startswith("head.") else ():
            expected = trained.state_dict()[key][LABELS.index(name)] if name in LABELS else before[key][label]
            assert torch.equal(tensor[label], expected), (key, name)
    common = len(set(classes) & set(LABELS))
    assert f"rows of {common} of {len(classes)} classes by name" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [LABELS, None])
def test_a_head_for_the_same_classes_is_taken_whole(classes: list[str] | None, tmp_path: Path) -> None:
    trained = saved(train_config(tmp_path), tmp_path / "best.pt", classes=LABELS)
    network = build_model(train_config(tmp_path).model)
    report = load_initial_weights(network, tmp_path / "best.pt", classes=classes)
    assert torch.equal(network.head.proj.weight, trained.head.proj.weight)
    assert not report.missing
    assert not report.notes


def test_the_error_names_the_keys_that_fit(tmp_path: Path) -> None:
    kernels = {"stem": [3], "res4": [1, 3]}
    saved(train_config(tmp_path, model={"arch": "i3d", "temporal_kernels": kernels}), tmp_path / "best.pt")
    network = build_model(train_config(tmp_path, model={"width": 8}).model)
    fix = """; set model.arch=i3d model.width=4 'model.temporal_kernels={"stem": [3], "res4": [1, 3]}'"""
    with pytest.raises(CheckpointError, match=re.escape(fix)):
        load_initial_weights(network, tmp_path / "best.pt")
    overrides = shlex.split(fix.removeprefix("; set "))
    config = config_from_dict(config_to_dict(train_config(tmp_path)), where="test", overrides=overrides)
    load_initial_weights(build_model(config.model), tmp_path / "best.pt")


def test_other_input_than_the_source_was_trained_with_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(train_config(tmp_path, model={"frame_difference": True}), tmp_path / "best.pt")
    load_initial_weights(build_model(train_config(tmp_path).model), tmp_path / "best.pt")
    assert "the source was trained with model.frame_difference=true" in capsys.readouterr().out


def motion_network(*overrides: str) -> nn.Module:
    return build_model(load_config("ucf101_10/from_motion.yaml", list(overrides)).model)


def fresh_parts(report: Report) -> set[str]:
    return {key.split(".")[0] if key.startswith("head") else "context" for key in report.missing}


@pytest.mark.parametrize(
    ("kind", "stages", "fresh"),
    [
        ("none", "{}", {"head"}),
        ("gc", "{res3: all, res4: all}", {"head"}),
        ("gc", "{res4: all, res5: all}", {"head", "context"}),
        ("nl", "{res3: all}", {"head", "context"}),
    ],
)
def test_weights_of_procedural_motion_come_with_gcvideo(kind: str, stages: str, fresh: set[str]) -> None:
    network = motion_network(f"model.context.kind={kind}", f"model.context.stages={stages}")
    before = network.stem.conv.weight.clone()
    assert fresh_parts(load_initial_weights(network, "motion")) == fresh
    assert network.stem.conv.weight.dtype == torch.float32
    assert not torch.equal(network.stem.conv.weight, before)


def test_weights_of_procedural_motion_name_the_network_that_they_fit() -> None:
    with pytest.raises(
        CheckpointError, match=r"motion\.safetensors: .*; set model\.width=16 'model\.temporal_kernels="
    ):
        load_initial_weights(motion_network("model.width=8", "model.temporal_kernels={stem: [5]}"), "motion")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [[], ["model.frame_difference=false"], ["model.context={kind: gc, stages: {res3: all, res4: all}}"]]
)
def test_weights_of_procedural_motion_know_motion(changes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    network = motion_network(f"model.num_classes={len(CLASSES)}", *changes).eval()
    load_initial_weights(network, "motion", classes=CLASSES)
    assert "was trained with" not in capsys.readouterr().out
    data = load_config("ucf101_10/from_motion.yaml").data
    clips = np.stack([draw_clip(i, np.random.default_rng((i, 9)), frames=8, size=80) for i in range(len(CLASSES))])
    inputs = normalize(torch.from_numpy(clips).permute(0, 4, 1, 2, 3), mean=data.mean, std=data.std)
    with torch.no_grad():
        predicted = network(inputs).argmax(dim=1)
    assert (predicted == torch.arange(len(CLASSES))).float().mean() > 0.6  # chance: 0.015


def test_a_run_folder_stands_for_its_checkpoint(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    trained = saved(config, config.run_dir / "checkpoints" / "last.pt")
    network = build_model(config.model)
    load_initial_weights(network, config.run_dir)
    assert torch.equal(network.head.proj.weight, trained.head.proj.weight)
    with pytest.raises(CheckpointError, match=r"neither checkpoints/best\.pt nor checkpoints/last\.pt"):
        load_initial_weights(network, tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    saved(train_config(tmp_path), tmp_path / "narrow.pt")
    wide = train_config(tmp_path, model={"width": 8})
    with pytest.raises(CheckpointError, match=r"narrow\.pt: .* stem\.conv\.weight: has shape .* set model\.width=4"):
        load_initial_weights(build_model(wide.model), tmp_path / "narrow.pt")
    state = torch.load(tmp_path / "narrow.pt", weights_only=True)
    with pytest.raises(CheckpointError, match=r"narrow\.pt: the weights do not fit the network of its config: size"):
        restore_model(state, wide, tmp_path / "narrow.pt")


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    saved(train_config(tmp_path, model=BACKBONE), tmp_path / "own.pt")
    with pytest.raises(CheckpointError, match=r"own\.pt: keys like 'conv1\.weight' are not those of gcvideo, "):
        load_initial_weights(build_model(train_config(tmp_path).model), tmp_path / "own.pt")
