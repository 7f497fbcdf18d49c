"""An inflated network sees a still picture as the 2D network does: against torchvision's and timm's own networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from gcvideo.errors import CheckpointError
from gcvideo.models import create_model
from gcvideo.weights import load_initial_weights
from gcvideo.weights.convert import find_naming, fit, inflate, to_gcvideo
from tests.parity.foreign import MmcvContextBlock, randomize_norms

timm = pytest.importorskip("timm")

LAYERS = {18: (BasicBlock, [2, 2, 2, 2]), 34: (BasicBlock, [3, 4, 6, 3])}
LAYERS |= {50: (Bottleneck, [3, 4, 6, 3]), 101: (Bottleneck, [3, 4, 23, 3])}


class NarrowResNet(ResNet):
    """torchvision's ResNet with the 64 channels of its stem made ``width``, all else its own code."""

    def __init__(self, depth: int, width: int, **options: int) -> None:
        self.width = width
        super().__init__(*LAYERS[depth], **options)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * 8 * LAYERS[depth][0].expansion, 1000)

    def _make_layer(self, block: type, planes: int, blocks: int, *args: object, **options: object) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, blocks, *args, **options)


def features_2d(model: nn.Module, picture: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, C, H / 32, W / 32) of a torchvision or timm ResNet."""
    x = model.bn1(model.conv1(picture)).relu()
    x = nn.functional.max_pool2d(x, 3, 2, 1)
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


def save(model: nn.Module, folder: Path) -> Path:
    path = folder / "resnet.pth"
    torch.save(model.state_dict(), path)
    return path


# How far zero padding in time reaches into the features: one frame for each temporal kernel of 3. In I3D, 5 frames
# (stem 2, res2 3) before frames are paired, then 6 (res3 2, res4 3, res5 1): 5 / 2 + 6, rounded up.
NETWORKS = [
    ("slow_r18", 18, {}, 4),
    ("slow_r34", 34, {}, 9),
    ("slow_r50", 50, {}, 9),
    ("c2d_r50", 50, {}, 0),
    ("i3d_r50", 50, {}, 9),
    ("i3d_r18", 18, {}, 5),
    ("slow_r101", 101, {}, 26),
    ("slow_x50_32x4d", 50, {"groups": 32, "width_per_group": 4}, 9),
    ("i3d_r50 3x3x3", 50, {}, 9),
]


@pytest.mark.parametrize(("name", "depth", "options", "reach"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_still_picture(name: str, depth: int, options: dict[str, int], reach: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    width = 16 if options else 8
    peer = randomize_norms(NarrowResNet(depth, width, **options)).double().eval()
    name, _, inflation = name.partition(" ")
    model = create_model(name, num_classes=7, width=width, inflation=inflation or "3x1x1").double().eval()
    report = load_initial_weights(model, save(peer, tmp_path))

    pooled = 2 if name.startswith(("i3d", "c2d")) else 1
    frames = pooled * (2 * reach + 2)
    picture = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        expected = features_2d(peer, picture)  # (1, C, 2, 2)
        got = model.features(picture.unsqueeze(2).expand(-1, -1, frames, -1, -1))  # (1, C, frames / pooled, 2, 2)
    error = (got - expected.unsqueeze(2)).abs().amax((0, 1, 3, 4)) / expected.abs().max()
    interior = error[reach : len(error) - reach]
    assert len(interior) == 2
    assert interior.max() <= 1e-5
    assert interior.max() <= 1e-12  # what float64 really gives
    if reach:  # zero padding does reach the ends, so the frames above are interior for a reason
        assert error[0] > 1e-3
        assert error[-1] > 1e-3

    assert set(report.unmatched) == {"fc.weight", "fc.bias"}
    assert set(report.missing) == {"head.proj.weight", "head.proj.bias"}
    assert len(report.copied) + len(report.unmatched) + len(report.dropped) == len(peer.state_dict())


@pytest.mark.parametrize("depth", ["r18", "r34", "r50", "r101", "r152", "x50_32x4d", "x101_32x4d"])
def test_c2d_has_the_keys_and_sizes_of_the_2d_network(depth: str) -> None:
    """timm's networks by name, at full width: every key finds a place of its shape, and nothing is left over."""
    name = f"resnet{depth[1:]}" if depth[0] == "r" else f"resnext{depth[1:]}"
    with torch.device("meta"):
        peer, model = timm.create_model(name), create_model(f"c2d_{depth}", num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters())
    state = peer.state_dict()
    _, report = to_gcvideo(state, find_naming(state, where="test", format="timm"), model)
    assert (report.unmatched, report.missing) == ({}, {})


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_their_own_resnet18(library: str, tmp_path: Path) -> None:
    import torchvision

    peer = torchvision.models.resnet18() if library == "torchvision" else timm.create_model("resnet18")
    randomize_norms(peer).eval()
    model = create_model("c2d_r18", num_classes=1000, dropout=0.0).eval()
    report = load_initial_weights(model, save(peer, tmp_path))
    assert not report.unmatched
    assert not report.missing
    picture = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # nothing of C2D looks across time, so even the logits agree
        logits = model(picture.unsqueeze(2).expand(-1, -1, 2, -1, -1))
        torch.testing.assert_close(logits, peer(picture), rtol=1e-4, atol=1e-4)


def test_context_blocks_start_fresh_and_change_nothing(tmp_path: Path) -> None:
    peer = randomize_norms(NarrowResNet(18, 8)).double().eval()
    model = create_model("c2d_r18_gc_c345", num_classes=1000, width=8).double().eval()
    report = load_initial_weights(model, save(peer, tmp_path))
    assert report.missing
    assert all(".context." in key and reason == "starts fresh" for key, reason in report.missing.items())
    picture = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        got = model.features(picture.unsqueeze(2).expand(-1, -1, 2, -1, -1))[:, :, 0]
        torch.testing.assert_close(got, features_2d(peer, picture))


def gcnet(*, ratio: float, depth: int = 50, width: int = 8) -> NarrowResNet:
    """GCNet's 2D network with random weights: its ContextBlock after bn3, before the sum, in all blocks of c3 to c5.

    Keys and placing are those of mmdet/models/backbones/resnet.py of xvjiarui/GCNet (insert_pos "after_1x1").
    """
    peer = randomize_norms(NarrowResNet(depth, width))
    for stage in (peer.layer2, peer.layer3, peer.layer4):
        for block in stage:
            last = block.bn3 if depth >= 50 else block.bn2
            block.context_block = MmcvContextBlock(last.num_features, ratio, ("channel_add",))
            for parameter in block.context_block.parameters():
                nn.init.normal_(parameter, std=0.5)
            last.register_forward_hook(lambda _, __, y, context=block.context_block: context(y))
    return peer.double().eval()


def repeat_the_ends(model: nn.Module) -> None:
    """Pad in time with copies of the first and last frame in place of zeros, so that a still picture has no ends."""
    for conv in model.modules():
        if isinstance(conv, nn.Conv3d) and (frames := conv.padding[0]):
            conv.padding = (0, *conv.padding[1:])
            ends = (0, 0, 0, 0, frames, frames)
            conv.register_forward_pre_hook(
                lambda _, inputs, ends=ends: nn.functional.pad(inputs[0], ends, mode="replicate")
            )


@pytest.mark.parametrize(
    ("wrapped", "name", "ratio"),
    [
        ("backbone", "c2d_r18", 1 / 4),
        ("detector", "slow_r50", 1 / 16),
        ("classifier", "i3d_r50", 1 / 4),
        ("classifier", "c2d_r50", 1 / 16),
    ],
)
def test_gcnet_sees_a_still_picture_as_in_2d(wrapped: str, name: str, ratio: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = gcnet(ratio=ratio, depth=int(name[-2:]))
    state, heads = peer.state_dict(), {"neck.lateral_convs.0.conv.weight", "roi_head.bbox_head.fc_cls.bias"}
    head = {key: state.pop(key) for key in ("fc.weight", "fc.bias")}
    if wrapped != "backbone":
        state = {f"backbone.{key}": tensor for key, tensor in state.items()}
    state |= {key: torch.zeros(3) for key in heads} if wrapped == "detector" else {}
    state |= {f"head.{key}": tensor for key, tensor in head.items()} if wrapped == "classifier" else {}
    path = tmp_path / "gcnet.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, path)

    context = {"kind": "gc", "reduction": round(1 / ratio), "stages": dict.fromkeys(("res3", "res4", "res5"), "all")}
    model = create_model(name, num_classes=1000, width=8, dropout=0.0, context=context).double().eval()
    report = load_initial_weights(model, path)
    assert "GCNet" in report.source
    assert not report.unmatched
    assert set(report.missing) == (set() if wrapped == "classifier" else {"head.proj.weight", "head.proj.bias"})
    assert {key for key in report.dropped if "mask.bias" not in key} == (heads if wrapped == "detector" else set())

    picture = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    clip = picture.unsqueeze(2).expand(-1, -1, 8, -1, -1)
    with torch.no_grad():
        expected = features_2d(peer, picture).unsqueeze(2)
        ends = (model.features(clip) - expected).abs().max() / expected.abs().max()
        repeat_the_ends(model)
        error = (model.features(clip) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-11
    # Zeros beyond the ends reach every frame, as the context is that of the whole clip; nothing of C2D looks there.
    assert ends <= 1e-11 if name.startswith("c2d") else ends > 1e-4
    if wrapped == "classifier":
        with torch.no_grad():
            torch.testing.assert_close(model(clip), peer(picture), rtol=1e-9, atol=1e-9)


def test_wrapped_keys_and_containers(tmp_path: Path) -> None:
    peer = NarrowResNet(18, 8)
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {f"module.{key}": value for key, value in peer.state_dict().items()}, "epoch": 89}, path)
    model = create_model("slow_r18", num_classes=1000, width=8)
    assert not load_initial_weights(model, path).missing
    assert torch.equal(model.head.proj.weight, peer.fc.weight)


def test_a_network_that_does_not_fit_is_refused_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = create_model("slow_r50", num_classes=1000, width=8)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"pth: .* layer1\.0\.conv1\.weight: has shape .* set model\.\*"):
        load_initial_weights(model, save(NarrowResNet(18, 8), tmp_path))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_deep_stem_is_refused_by_name(tmp_path: Path) -> None:
    path = save(timm.create_model("resnet18d"), tmp_path)  # three convolutions in the stem
    with pytest.raises(CheckpointError, match=r"nothing for stem\.conv\.weight.*; conv1\.0\.weight: not a key"):
        load_initial_weights(create_model("slow_r18"), path)


def test_foreign_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3), "cls_token": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"keys like 'blocks\.0\.attn\.qkv\.weight' are not those of gcvideo, "):
        load_initial_weights(create_model("slow_r18", width=8), path)


def test_kernels() -> None:
    kernel = torch.randn(4, 3, 7, 7, dtype=torch.float64)
    inflated = inflate(kernel, 5)
    assert inflated.shape == (4, 3, 5, 7, 7)
    torch.testing.assert_close(inflated[:, :, 2], kernel / 5)
    torch.testing.assert_close(inflated.sum(2), kernel)
    assert fit(kernel, (4, 3, 1, 7, 7)).shape == (4, 3, 1, 7, 7)
    assert fit(kernel, (4, 3, 1, 3, 3)) is None
    assert fit(torch.zeros(6, 2), (6, 2, 1, 1, 1)).shape == (6, 2, 1, 1, 1)
    assert fit(torch.zeros(6, 2), (2, 6)) is None


def test_the_config_key_that_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gcvideo.config import config_from_dict
    from gcvideo.train.step import TrainStep

    peer = NarrowResNet(18, 8)
    fields = {"arch": "i3d", "depth": 18, "width": 8, "num_classes": 3, "weights": str(save(peer, tmp_path))}
    config = config_from_dict({"name": "tiny", "device": "cpu", "model": fields}, where="test")
    network = TrainStep(config, torch.device("cpu")).network
    torch.testing.assert_close(network.stem.conv.weight, inflate(peer.conv1.weight.detach(), 5), check_stride=False)
    output = capsys.readouterr()
    assert "head.proj.weight, head.proj.bias: starts fresh" in output.out
    assert "kernels repeated over time and divided by their length" in output.out
    assert "not matched (1): fc.weight: has shape [1000, 64]" in output.out
