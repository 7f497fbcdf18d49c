"""Converted networks give the logits of the toolkit they come from, and convert back to the very same tensors."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gcvideo.config import ModelConfig, config_from_dict
from gcvideo.errors import CheckpointError
from gcvideo.models import build_model
from gcvideo.weights.convert import Report, check_limits, find_naming, naming_to_write, rename, to_gcvideo
from gcvideo.weights.naming import FORMATS, GCVIDEO, model_fields
from gcvideo.weights.reading import Weights
from tests.parity import foreign
from tests.parity.foreign import Spec, randomize_norms

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from pytorchvideo.models.resnet import create_resnet

FIVE = {3: [1, 3], 4: [1, 3, 5]}
PYSLOWFAST, CAFFE2, TORCHVISION = (FORMATS[name][0] for name in ("pyslowfast", "caffe2", "torchvision"))
PYTORCHVIDEO, PYTORCHVIDEO_POOLED = FORMATS["pytorchvideo"]
MMACTION2, MMACTION2_SUBSAMPLED = FORMATS["mmaction2"]
NAMINGS = {"pyslowfast": foreign.pyslowfast, "mmaction2": foreign.mmaction2, "caffe2": foreign.caffe2}


def converted(format: str, weights: Weights, **context: Any) -> tuple[torch.nn.Module, Report]:
    """gcvideo's network with another toolkit's weights; every key must have found its place."""
    naming = find_naming(weights.tensors, where="test", format=format)
    fields = model_fields(weights, naming)
    if context:
        fields["context"] = {**fields["context"], **context}
    config = config_from_dict({"name": "converted", "model": fields}, where="test").model
    model = build_model(config)
    state, report = to_gcvideo(weights.tensors, naming, model)
    assert not report.unmatched
    assert not report.missing
    model = model.to(next(iter(weights.tensors.values())).dtype).eval()
    model.load_state_dict(state)
    return model, report


def assert_round_trip(model: Any, format: str, original: dict[str, Tensor]) -> None:
    """Back in the other toolkit's names: the same tensors, to the bit; counters of batches may have come along."""
    back, report, _ = rename(model.state_dict(), GCVIDEO, naming_to_write(format, model.config))
    assert not report.unmatched
    extra = set(back) - set(original)
    assert all(key.endswith("num_batches_tracked") for key in extra)
    assert original.keys() <= back.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in original.items())


# ---------------------------------------------------------------------------------------- pytorchvideo's own networks


def pytorchvideo_network(arch: str, width: int, classes: int) -> torch.nn.Module:
    """As pytorchvideo.models.hub.resnet builds slow_r50, c2d_r50 and i3d_r50, but narrow."""
    three, one = (3, 1, 1), (1, 1, 1)
    options: dict[str, Any] = {
        "slow": {"stem_conv_kernel_size": (1, 7, 7)},
        "c2d": {
            "stem_conv_kernel_size": (1, 7, 7),
            "stage1_pool": torch.nn.MaxPool3d,
            "stage_conv_a_kernel_size": (one, one, one, one),
        },
        "i3d": {
            "stem_conv_kernel_size": (5, 7, 7),
            "stage1_pool": torch.nn.MaxPool3d,
            "stage_conv_a_kernel_size": (three, [three, one], [three, one], [one, three]),
        },
    }[arch]
    network = create_resnet(model_depth=50, stem_dim_out=width, model_num_class=classes, dropout_rate=0, **options)
    network.blocks[-1].pool = torch.nn.AdaptiveAvgPool3d(1)  # for any size of clip
    return randomize_norms(network).eval()


@pytest.mark.parametrize("arch", ["slow", "c2d", "i3d"])
def test_pytorchvideo(arch: str) -> None:
    torch.manual_seed(0)
    peer = pytorchvideo_network(arch, width=8, classes=6).double()
    model, _ = converted("pytorchvideo", Weights(peer.state_dict()))
    assert (model.config.arch, model.config.temporal_kernels, model.config.num_classes) == (arch, {}, 6)
    clips = torch.randn(2, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), peer(clips), rtol=1e-10, atol=1e-10)
    assert_round_trip(model, "pytorchvideo", peer.state_dict())


def test_slow_r50_full_size_in_float32() -> None:
    torch.manual_seed(0)
    peer = pytorchvideo_network("slow", width=64, classes=400)
    model, _ = converted("pytorchvideo", Weights(peer.state_dict()))
    assert model.config == ModelConfig(arch="slow", depth=50)
    clips = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        logits, expected = model.eval()(clips), peer(clips)
    assert (logits - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    peer.load_state_dict(rename(model.state_dict(), GCVIDEO, PYTORCHVIDEO)[0])  # strict
    with torch.no_grad():
        assert torch.equal(peer(clips), expected)


# ------------------------------------------------------------------- toolkits written down from their public source


@pytest.mark.parametrize("non_local", [{}, FIVE], ids=["plain", "five-non-local"])
@pytest.mark.parametrize("arch", ["slow", "c2d", "i3d"])
@pytest.mark.parametrize("format", NAMINGS)
def test_written_down_toolkits(format: str, arch: str, non_local: dict[int, list[int]]) -> None:
    naming = NAMINGS[format]
    spec = Spec(arch, non_local=non_local, subsample="after" if format == "mmaction2" else "before")
    state = foreign.random_state(spec, naming)
    context = {"instantiation": "embedded_gaussian"} if non_local else {}
    model, _ = converted(format, Weights(state), **context)
    assert model.config.arch == arch
    assert model.config.context.subsample == spec.subsample or not non_local
    clips = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), foreign.logits(state, spec, naming, clips), rtol=1e-10, atol=1e-10)
    assert_round_trip(model, format, state)


@pytest.mark.parametrize("placed", [{3: [0, 2], 4: [0, 2, 4]}, {4: [5]}], ids=["mmaction2", "one"])
def test_placement_is_read_from_the_keys(placed: dict[int, list[int]]) -> None:
    """mmaction2 puts the five blocks at 0, 2, 4 where the others have 1, 3, 5; after the sum in either case."""
    spec = Spec("i3d", non_local=placed, subsample="after", instantiation="dot_product")
    state = foreign.random_state(spec, foreign.mmaction2)
    model, _ = converted("mmaction2", Weights(state), instantiation="dot_product")
    assert model.config.context.stages == {f"res{stage}": blocks for stage, blocks in placed.items()}
    assert model.config.context.position == "after_add"
    clips = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = foreign.logits(state, spec, foreign.mmaction2, clips)
        torch.testing.assert_close(model(clips), expected, rtol=1e-10, atol=1e-10)


# Keys that the public sources show, beside the part of gcvideo's network that they name.
PUBLISHED_KEYS = [
    # slowfast/utils/c2_model_loading.py gives the first two columns side by side in its comments and patterns.
    (CAFFE2, "conv1_w", "stem.conv.weight"),
    (CAFFE2, "res_conv1_bn_s", "stem.norm.weight"),
    (CAFFE2, "res_conv1_bn_riv", "stem.norm.running_var"),
    (CAFFE2, "res4_4_branch2c_bn_b", "res4.4.branch2.norm_c.bias"),
    (CAFFE2, "res4_0_branch1_w", "res4.0.branch1_conv.weight"),
    (CAFFE2, "nonlocal_conv3_1_theta_w", "res3.1.context.theta.weight"),
    (CAFFE2, "nonlocal_conv4_5_bn_s", "res4.5.context.norm.weight"),
    (CAFFE2, "pred_b", "head.proj.bias"),
    (PYSLOWFAST, "s1.pathway0_stem.bn.running_mean", "stem.norm.running_mean"),
    (PYSLOWFAST, "s4.pathway0_res4.branch2.c_bn.bias", "res4.4.branch2.norm_c.bias"),
    (PYSLOWFAST, "s3.pathway0_nonlocal1.conv_theta.weight", "res3.1.context.theta.weight"),
    (PYSLOWFAST, "s4.pathway0_nonlocal5.bn.weight", "res4.5.context.norm.weight"),
    (FORMATS["pyslowfast"][1], "s4.pathway0_nonlocal5.norm.weight", "res4.5.context.norm.weight"),  # its first release
    (PYSLOWFAST, "head.projection.bias", "head.proj.bias"),
    (MMACTION2, "backbone.conv1.conv.weight", "stem.conv.weight"),
    (MMACTION2, "backbone.layer3.4.conv3.bn.bias", "res4.4.branch2.norm_c.bias"),
    (MMACTION2, "backbone.layer3.0.downsample.conv.weight", "res4.0.branch1_conv.weight"),
    (MMACTION2, "backbone.layer2.0.non_local_block.theta.conv.weight", "res3.0.context.theta.weight"),
    (MMACTION2, "backbone.layer2.0.non_local_block.conv_out.bn.weight", "res3.0.context.norm.weight"),
    (MMACTION2_SUBSAMPLED, "backbone.layer2.0.non_local_block.g.0.conv.bias", "res3.0.context.g.bias"),
    (MMACTION2, "cls_head.fc_cls.weight", "head.proj.weight"),
    (PYTORCHVIDEO, "blocks.3.res_blocks.4.branch2.norm_c.bias", "res4.4.branch2.norm_c.bias"),
    (PYTORCHVIDEO_POOLED, "blocks.4.res_blocks.4.branch2.norm_c.bias", "res4.4.branch2.norm_c.bias"),
    (TORCHVISION, "layer3.0.downsample.1.running_var", "res4.0.branch1_norm.running_var"),
]


@pytest.mark.parametrize(("naming", "theirs", "ours"), PUBLISHED_KEYS, ids=[row[1] for row in PUBLISHED_KEYS])
def test_published_keys(naming: Any, theirs: str, ours: str) -> None:
    part = naming.parse(theirs)
    assert part is not None
    assert GCVIDEO.key(part) == ours
    assert naming.parse("x" + theirs) is None
    assert GCVIDEO.parse(ours) == part


# -------------------------------------------------------------------------- what checkpoints say beside their weights


@pytest.mark.parametrize(("pool", "subsample"), [(2, "before"), (1, "none")])
def test_pyslowfast_config_inside(pool: int, subsample: str) -> None:
    spec = Spec("i3d", non_local=FIVE, instantiation="dot_product", subsample=subsample)
    state = foreign.random_state(spec, foreign.pyslowfast)
    kernel = [1, pool, pool]
    text = f"MODEL: {{ARCH: i3d}}\nNONLOCAL: {{INSTANTIATION: dot_product, POOL: {[[kernel], [kernel]]}}}\n"
    model, _ = converted("pyslowfast", Weights(state, {"cfg": text}))
    assert (model.config.context.instantiation, model.config.context.subsample) == ("dot_product", subsample)
    clips = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = foreign.logits(state, spec, foreign.pyslowfast, clips)
        torch.testing.assert_close(model(clips), expected, rtol=1e-10, atol=1e-10)


def test_pyslowfast_without_temporal_pooling() -> None:
    state = foreign.random_state(Spec("i3d"), foreign.pyslowfast)
    model, _ = converted("pyslowfast", Weights(state, {"cfg": "MODEL: {ARCH: i3d_nopool}"}))
    assert model.config.arch == "slow"
    assert model.features(torch.zeros(1, 3, 4, 64, 64, dtype=torch.float64)).shape[2] == 4
    assert_round_trip(model, "pyslowfast", state)


def test_mmaction2_config_inside() -> None:
    """Its I3D configs have non-local blocks whose logits are not divided by the square root of the width."""
    spec = Spec("i3d", non_local={4: [0]}, instantiation="softmax_unscaled", subsample="none")
    naming = partial(foreign.mmaction2, subsampled=False)
    state = foreign.random_state(spec, naming)
    text = "non_local_cfg=dict(sub_sample=False, use_scale=False, norm_cfg=dict(type='BN3d'), mode='embedded_gaussian')"
    model, _ = converted("mmaction2", Weights(state, {"meta": {"cfg": text}}))
    context = model.config.context
    assert (context.instantiation, context.scale, context.subsample) == ("embedded_gaussian", False, "none")
    clips = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = foreign.logits(state, spec, naming, clips)
        torch.testing.assert_close(model(clips), expected, rtol=1e-10, atol=1e-10)
    assert_round_trip(model, "mmaction2", state)


@pytest.mark.parametrize("instantiation", ["gaussian", "concatenation"])
def test_mmaction2_forms_that_the_keys_tell(instantiation: str) -> None:
    spec = Spec(non_local={4: [2]}, instantiation=instantiation, subsample="after")
    state = foreign.random_state(spec, foreign.mmaction2)
    model, _ = converted("mmaction2", Weights(state))
    assert model.config.context.instantiation == instantiation
    clips = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = foreign.logits(state, spec, foreign.mmaction2, clips)
        torch.testing.assert_close(model(clips), expected, rtol=1e-10, atol=1e-10)
    assert_round_trip(model, "mmaction2", state)
    check_limits(naming_to_write("mmaction2", model.config), model.config, where="test")


@pytest.mark.parametrize(
    ("format", "context", "message"),
    [
        ("mmaction2", {"subsample": "before"}, "subsample is before, which mmaction2 does not know"),
        ("pyslowfast", {"subsample": "after"}, "subsample is after"),
        ("pyslowfast", {"scale": False}, "scale is False"),
        ("caffe2", {"instantiation": "concatenation"}, "instantiation is concatenation"),
        ("mmaction2", {"instantiation": "gaussian", "subsample": "none"}, "scale is True"),
        ("caffe2", {"position": "after_1x1"}, "position is after_1x1"),
        ("timm", {"kind": "gc", "position": "after_add"}, "position is after_add"),
        ("gcnet", {"kind": "gc", "relu": False}, "relu is False"),
    ],
)
def test_weights_that_would_fit_another_network_are_refused(format: str, context: Any, message: str) -> None:
    assert_refused(format, {"context": {"kind": "nl", "stages": {"res4": [1]}, **context}}, message)


def test_weights_for_frame_differences_are_refused() -> None:
    assert_refused("pytorchvideo", {"frame_difference": True}, "frame_difference is True, which pytorchvideo does not")


def assert_refused(format: str, fields: dict[str, Any], message: str) -> None:
    config = config_from_dict({"name": "x", "model": fields}, where="test").model
    with pytest.raises(CheckpointError, match=message):
        check_limits(naming_to_write(format, config), config, where="test")


def test_mmaction2_c2d_has_2d_convolutions() -> None:
    state = foreign.random_state(Spec("c2d"), foreign.mmaction2)
    flat = {key: tensor.squeeze(2) if tensor.dim() == 5 else tensor for key, tensor in state.items()}
    model, _ = converted("mmaction2", Weights(flat))
    assert model.config.arch == "c2d"
    clips = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = foreign.logits(state, Spec("c2d"), foreign.mmaction2, clips)
        torch.testing.assert_close(model(clips), expected, rtol=1e-10, atol=1e-10)


def test_caffe2_affine_norms() -> None:
    """Some Caffe2 networks were trained with frozen norms, kept as scale and bias alone."""
    spec = Spec("i3d")
    state = foreign.random_state(spec, foreign.caffe2)
    for key in state:  # what a batch norm with these statistics computes is scale and bias alone
        if key.endswith("_rm"):
            state[key] = torch.zeros_like(state[key])
        if key.endswith("_riv"):
            state[key] = torch.full_like(state[key], 1 - 1e-5)
    affine = {key: tensor for key, tensor in state.items() if not key.endswith(("_rm", "_riv"))}
    model, report = converted("caffe2", Weights(affine))
    assert any("affine" in note for note in report.notes)
    clips = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = foreign.logits(state, spec, foreign.caffe2, clips)
        torch.testing.assert_close(model(clips), expected, rtol=1e-10, atol=1e-10)


def test_caffe2_training_state_is_dropped_and_named() -> None:
    state = foreign.random_state(Spec(), foreign.caffe2)
    state["pred_w"] = state["pred_w"][:, :, None, None, None]  # its test network has a convolution for a head
    extra = {"conv1_w_momentum": torch.zeros(3), "lr": torch.zeros(())}
    _, report = converted("caffe2", Weights({**state, **extra}))
    assert set(report.dropped) == set(extra)
    assert "momentum of the optimizer" in report.dropped["conv1_w_momentum"]


def test_what_a_toolkit_lacks_is_named() -> None:
    from gcvideo.models import create_model

    model = create_model("slow_r18_gc_c345", width=8)
    _, report, _ = rename(model.state_dict(), GCVIDEO, naming_to_write("pytorchvideo", model.config))
    assert set(report.unmatched) == {key for key in model.state_dict() if ".context." in key}
    assert set(report.unmatched.values()) == {"pytorchvideo has no such layer"}


def test_the_account_shortens_keys_but_loses_none() -> None:
    keys = [f"res4.{i}.context.{part}.{leaf}" for i in (1, 3) for part in ("g", "out") for leaf in ("weight", "bias")]
    report = Report(source="x.pth", copied=["stem.conv.weight"], missing=dict.fromkeys([*keys, "head.bias"], "why"))
    short = "".join(f"res4.{{1,3}}.context.{part}.{leaf}, " for part in ("g", "out") for leaf in ("weight", "bias"))
    assert report.lines() == ["x.pth: 1 tensors copied", f"not in the source (9): {short}head.bias: why"]
