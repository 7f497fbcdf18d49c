"""Own blocks and backbones by dotted path: built, trained, tested, explained, counted, exported and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gcvideo.benchmark.complexity import count_config
from gcvideo.cli import main
from gcvideo.config import ContextConfig, ModelConfig
from gcvideo.errors import ConfigError
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.models import build_model
from gcvideo.models.resnet3d import last_feature_layer
from gcvideo.train.trainer import Trainer
from tests.own_parts import CBAM, TinyNet
from tests.training import make_videos, train_config

BLOCK: dict[str, Any] = {
    "context": {"kind": "tests.own_parts:CBAM", "options": {"reduction": 4}, "stages": {"res3": "all"}}
}
BACKBONE: dict[str, Any] = {"arch": "tests.own_parts:tiny_net", "options": {"width": 6}, "context": {"kind": "none"}}
PARTS = pytest.mark.parametrize("part", [BLOCK, BACKBONE], ids=["block", "backbone"])


def config_of(part: dict[str, Any], **fields: Any) -> ModelConfig:
    values = {"depth": 18, "width": 8, "num_classes": 4, **part, **fields}
    return ModelConfig(**{**values, "context": ContextConfig(**values["context"])})


def test_an_own_block_stands_at_each_place_with_its_options() -> None:
    model = build_model(config_of(BLOCK))
    blocks = [(name, m) for name, m in model.named_modules() if isinstance(m, CBAM)]
    assert [name for name, _ in blocks] == ["res3.0.context", "res3.1.context"]
    assert blocks[0][1].channel_gate[0].out_features == 4  # 16 channels / reduction 4
    assert model.eval()(torch.randn(2, 3, 2, 32, 32)).shape == (2, 4)


def test_one_seed_gives_one_backbone_with_any_block() -> None:
    torch.manual_seed(0)
    plain = build_model(config_of({"context": {"kind": "none"}})).state_dict()
    torch.manual_seed(0)
    own = build_model(config_of(BLOCK)).state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in plain.items())


def test_an_own_backbone_is_what_its_builder_returns() -> None:
    model = build_model(config_of(BACKBONE))
    assert isinstance(model, TinyNet)
    assert model.conv1.out_channels == 6
    assert last_feature_layer(model) is model.conv2
    model.cam_layer = "norm1"  # type: ignore[assignment]
    assert last_feature_layer(model) is model.norm1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"context": {**BLOCK["context"], "kind": "tests.own_parts:CBAN"}}, r"kind: .* has no attribute 'CBAN'"),
        ({"context": {**BLOCK["context"], "kind": "tests.own_parts:tiny_net"}}, r"kind: .* no subclass of nn\.Module"),
        ({"context": {**BLOCK["context"], "options": {"ratio": 4}}}, r"context\.options: .* unexpected .* 'ratio'"),
        ({**BACKBONE, "arch": "tests.own_parts:no_network"}, r"model\.arch: .* returns a str"),
    ],
)
def test_a_part_that_is_none_is_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(config_of(part))


@PARTS
def test_own_parts_are_counted(part: dict[str, Any]) -> None:
    params = sum(p.numel() for p in build_model(config_of(part)).parameters())
    found = count_config(config_of(part), (1, 3, 4, 32, 32))
    assert found.params == params
    assert found.macs > 0


@PARTS
@torch.no_grad()
def test_the_fast_network_computes_the_same(part: dict[str, Any]) -> None:
    """No batch norm of an own part is folded into a convolution that it may not follow."""
    torch.manual_seed(0)
    model = build_model(config_of(part)).train()
    clips = torch.randn(2, 3, 4, 32, 32)
    for _ in range(3):
        model(clips)  # moves the statistics of the batch norms
    model.eval()
    torch.testing.assert_close(optimize_for_inference(model)(clips), model(clips), rtol=1e-4, atol=1e-5)
    assert optimize_for_inference(model, precision="bf16")(clips.bfloat16()).dtype == torch.float32


@pytest.mark.slow
@PARTS
def test_own_parts_train_predict_and_export(
    part: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_videos(tmp_path)
    config = train_config(tmp_path, model=part, train={"epochs": 1})
    Trainer(config).fit()
    run, video = config.run_dir, str(tmp_path / "video_0.mp4")
    assert main(["predict", video, "--checkpoint", str(run), "--maps", str(tmp_path / "maps"), "--workers", "0"]) == 0
    assert (tmp_path / "maps" / "video_0_maps.png").is_file()
    assert main(["test", str(run), "data.workers=0"]) == 0
    assert main(["export", str(run), str(tmp_path / "own.pt2")]) == 0
    fine = train_config(tmp_path, name="fine", model={**part, "weights": str(run)}, train={"epochs": 1})
    capsys.readouterr()
    Trainer(fine).fit()
    assert "starts fresh" not in capsys.readouterr().out


def test_a_checkpoint_whose_part_is_gone_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_videos(tmp_path)
    config = train_config(tmp_path, model=BACKBONE, train={"epochs": 1})
    Trainer(config).fit()
    capsys.readouterr()
    monkeypatch.delattr("tests.own_parts.tiny_net")
    assert main(["predict", str(tmp_path / "video_0.mp4"), "--checkpoint", str(config.run_dir)]) == 2
    error = capsys.readouterr().err
    assert "best.pt: model.arch: 'tests.own_parts:tiny_net'" in error
    assert error.count("\n") == 1
