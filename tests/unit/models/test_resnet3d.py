"""The networks: sizes, names, placement of blocks, inputs."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gcvideo
from gcvideo.config import ContextConfig, ModelConfig
from gcvideo.errors import ConfigError, GcvideoError, InputShapeError
from gcvideo.layers import ContextBlock, NonLocalBlock, record_attention
from gcvideo.layers.context import AveragePool
from gcvideo.models import MODELS, build_model, create_model, model_config
from gcvideo.models import resnet3d as module

PUBLISHED = {
    "slow_r50": 32_454_096,
    "slow_r50_gc_c345": 42_454_992,
    "slow_r50_nl5": 39_812_560,
    "slow_r50_snl5": 36_132_304,
    "slow_r50_gc5": 34_300_368,
}


def tiny(name: str = "slow_r18", **overrides: Any) -> nn.Module:
    return create_model(name, **{"width": 8, "num_classes": 5, "dropout": 0.0, **overrides})


def clips(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 2, 32, 32), generator=torch.Generator().manual_seed(0))


def settle(model: nn.Module) -> nn.Module:
    """Give batch norms scales and statistics that matter."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm3d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = gcvideo.create_model(name, num_classes=400)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.slow
def test_every_name_has_a_config() -> None:
    assert all(isinstance(model_config(name), ModelConfig) for name in MODELS)


@pytest.mark.parametrize(
    "name",
    ["slow_r34_nl5", "c2d_r18_gc_c345", "i3d_r18_se_c345", "slow_x50_32x4d_gc_c345", "i3d_r101_nl5", "slow_r152"],
)
def test_named_models_run(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7)
        assert model(torch.empty(1, 3, 4, 64, 64)).shape == (1, 7)
    assert isinstance(model.config, ModelConfig)


def test_an_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"slow_r50_gc_c354.*slow_r50_gc_c345"):
        create_model("slow_r50_gc_c354")
    with pytest.raises(ConfigError, match=r"model slow_r50: .*model\.widht.*model\.width"):
        create_model("slow_r50", widht=16)
    with pytest.raises(ConfigError, match=r"model\.context\.reductoin.*reduction"):
        create_model("slow_r50_gc5", context={"reductoin": 16})


def test_overrides_change_fields_and_leave_the_presets_alone() -> None:
    config = model_config("slow_r50_gc5", depth=101, context={"reduction": 16})
    assert (config.depth, config.context.reduction, config.context.kind) == (101, 16, "gc")
    assert model_config("slow_r50_gc5").context.reduction == 4
    assert model_config("slow_r50_gc5", context=ContextConfig()).context.kind == "none"
    assert model_config("slow_r50_nl5", context={"kind": "se"}).context.fusion == "scale"


CONTEXTS = {
    "gc": {"kind": "gc"},
    "snl": {"kind": "snl"},
    "nl": {"kind": "nl"},
    "nl without norm": {"kind": "nl", "norm": False, "instantiation": "gaussian"},
    "nl dot product": {"kind": "nl", "instantiation": "dot_product"},
    "nl concatenation": {"kind": "nl", "instantiation": "concatenation"},
}


@pytest.mark.parametrize("position", ["after_1x1", "after_3x3", "after_add"])
@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("depth", [18, 50])
def test_fresh_blocks_that_add_change_nothing(kind: str, position: str, depth: int) -> None:
    context = {**CONTEXTS[kind], "position": position, "stages": {"res3": "all", "res4": "every_other"}}
    torch.manual_seed(3)
    plain = settle(tiny(depth=depth))
    model = tiny(depth=depth, context=context)
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert all(".context." in key for key in missing.missing_keys)
    assert torch.equal(model.eval()(x := clips(2, 3, 2, 48, 48)), plain(x))
    assert torch.equal(model.train()(x), plain.train()(x))


def test_one_seed_gives_one_backbone_with_any_blocks() -> None:
    states = []
    for context in ({}, {"kind": "gc", "stages": {"res2": "all"}}, {"kind": "nl", "stages": {"res4": [1]}}):
        torch.manual_seed(11)
        states.append(tiny(context=context).state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[key], value) for key, value in states[0].items())


def test_scale_fusion_starts_by_halving_the_branch() -> None:
    torch.manual_seed(0)
    plain = settle(tiny(zero_init_last_norm=False))
    model = tiny(context={"kind": "se", "stages": {"res5": [1]}})
    model.load_state_dict(plain.state_dict(), strict=False)
    features = []
    plain.res5[1].branch2.register_forward_hook(lambda *args: features.append(args[-1]))
    plain_y, x = plain.features(clips()), plain.res5[0](plain.res4(plain.res3(plain.res2(plain.stem(clips())))))
    torch.testing.assert_close(model.eval().features(clips()), (x + features[0] / 2).relu())
    assert not torch.allclose(plain_y, model.features(clips()))


def test_blocks_go_where_the_config_says() -> None:
    stages = {"res2": [0, 2], "res3": "every_other", "res4": "all"}
    model = tiny("slow_r50", context={"kind": "gc", "stages": stages})
    placed = {name for name, block in model.blocks() if block.context is not None}
    expected = {"res2.0", "res2.2", "res3.1", "res3.3", *(f"res4.{i}" for i in range(6))}
    assert placed == expected


@pytest.mark.parametrize(("depth", "hidden", "full"), [(50, 16, 64), (18, 16, 16)])
def test_positions_see_the_right_features(depth: int, hidden: int, full: int) -> None:
    for position, channels in (("after_3x3", hidden), ("after_1x1", full), ("after_add", full)):
        context = {"kind": "gc", "stages": {"res3": [0]}, "position": position}
        model = settle(tiny(depth=depth, context=context))
        x = model.res2(model.stem(clips()))
        with record_attention(model) as traces:
            y = model.res3[0](x)
        seen = traces["res3.0.context"].input
        assert seen.shape[1] == channels
        branch = model.res3[0].branch2
        if position == "after_3x3":
            first = branch.act_a(branch.norm_a(branch.conv_a(x)))
            expected = branch.act_b(branch.norm_b(branch.conv_b(first))) if depth == 50 else first
        elif position == "after_1x1":
            expected = branch(x)
        else:
            expected = y  # the fresh block changes nothing
        torch.testing.assert_close(seen, expected)


def test_zero_initialised_last_norms() -> None:
    for flag in (True, False):
        model = tiny("slow_r50", zero_init_last_norm=flag)
        assert all((block.branch2.norm_c.weight == float(not flag)).all() for _, block in model.blocks())


def test_state_dict_keys_are_those_of_the_documentation() -> None:
    documented = re.findall(r"^    ((?:stem|res|head).*)$", module.__doc__ or "", flags=re.MULTILINE)
    patterns = set()
    for line in documented:
        first = ""
        for key in re.split(r"\s{2,}", line.strip()):
            if re.fullmatch(r"[\w.{},\-*]+", key) is None:
                continue
            if key.startswith("."):  # shares all but its last part, or parts, with the first key of the line
                parts = first.split(".")
                keep = len(parts) - 2 if key.count(".") > 1 or parts[-1] == "*" else len(parts) - 1
                key = ".".join(parts[:keep]) + key
            else:
                first = key
            key = re.escape(key).replace(r"res\{2\.\.5\}", "res[2-5]").replace(r"\{i\}", r"\d+").replace(r"\*", r"\w+")
            patterns.add(re.sub(r"\\\{([\w,]+)\\\}", lambda m: f"({m[1].replace(',', '|')})", key))
    kinds = [{}, {"kind": "gc", "fusion": "scale_add"}, {"kind": "snl"}, {"kind": "se"}]
    kinds += [{"kind": "nl"}, {"kind": "nl", "instantiation": "concatenation"}]
    keys: set[str] = set()
    for kind in kinds:
        keys |= set(tiny("slow_r50", context={**kind, "stages": {"res2": [0]}} if kind else {}).state_dict())
    unknown = [key for key in keys if not any(re.fullmatch(pattern, key) for pattern in patterns)]
    unused = [pattern for pattern in patterns if not any(re.fullmatch(pattern, key) for key in keys)]
    assert (unknown, unused) == ([], [])


def test_channels_last_model_gives_the_same_logits() -> None:
    context = {"kind": "gc", "stages": {"res2": "all", "res5": "all"}}
    model = settle(tiny(context=context))
    expected = model(clips())
    model = model.to(memory_format=torch.channels_last_3d)
    x = clips().contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert model.features(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_any_crop_is_classified_by_the_mean_over_positions() -> None:
    model = settle(tiny())
    for shape in ((1, 3, 1, 32, 32), (1, 3, 3, 33, 70), (2, 3, 4, 64, 97)):
        x = clips(*shape)
        features = model.features(x)
        assert features.shape == (shape[0], 64, shape[2], -(-shape[3] // 32), -(-shape[4] // 32))
        scores = features.permute(0, 2, 3, 4, 1) @ model.head.proj.weight.T + model.head.proj.bias
        torch.testing.assert_close(model(x), scores.mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("slow_r18", (3, 2, 32, 32), r"\(N, 3, T, H, W\)"),
        ("slow_r18", (1, 1, 2, 32, 32), r"\(N, 3, T, H, W\)"),
        ("slow_r18", (1, 3, 2, 31, 64), "31 x 64 pixels.*32"),
        ("c2d_r18", (1, 3, 3, 32, 32), "even number of frames, not 3"),
        ("i3d_r18", (1, 3, 5, 32, 32), "even number of frames, not 5"),
    ],
)
def test_inputs_that_the_strides_do_not_allow(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputShapeError, match=message) as caught:
        tiny(name)(torch.zeros(shape))
    assert isinstance(caught.value, GcvideoError)
    assert isinstance(caught.value, ValueError)


def test_inputs_too_small_for_the_subsampling_of_a_non_local_block() -> None:
    model = tiny(context={"kind": "nl", "stages": {"res5": [0]}})
    with pytest.raises(InputShapeError, match=r"1 x 2 positions .* model\.context\.subsample=none"):
        model(clips(1, 3, 2, 32, 64))
    assert model(clips(1, 3, 2, 33, 33)).shape == (1, 5)
    assert tiny(context={"kind": "nl", "stages": {"res5": [0]}, "subsample": "none"})(clips()).shape == (2, 5)


def test_temporal_kernels() -> None:
    def kernels(**config: Any) -> list[list[tuple[int, ...]]]:
        with torch.device("meta"):
            model = build_model(ModelConfig(**config))
        stages = [[block.branch2 for block in stage] for stage in (model.res2, model.res3, model.res4, model.res5)]
        return [[(model.stem.conv.kernel_size[0],)]] + [
            [(branch.conv_a.kernel_size[0], branch.conv_b.kernel_size[0]) for branch in stage] for stage in stages
        ]

    flat, first = (1, 1), (3, 1)
    assert kernels() == [[(1,)], [flat] * 3, [flat] * 4, [first] * 6, [first] * 3]
    assert kernels(arch="c2d") == [[(1,)], [flat] * 3, [flat] * 4, [flat] * 6, [flat] * 3]
    # Every other block of the released Caffe2 network: res2 [3, 3, 3], res3 [3, 1, 3, 1], ..., res5 [1, 3, 1].
    i3d = [[(5,)], [first] * 3, [first, flat] * 2, [first, flat] * 3, [flat, first, flat]]
    assert kernels(arch="i3d") == i3d
    middle = [
        [(b, a) if stage else (a,) for a, *rest in blocks for b in rest or [1]] for stage, blocks in enumerate(i3d)
    ]
    assert kernels(arch="i3d", inflation="3x3x3") == middle
    custom = kernels(temporal_kernels={"stem": [3], "res2": [5, 1]})
    assert custom[:2] == [[(3,)], [(5, 1), flat, (5, 1)]]


def test_resnext_groups_and_widths() -> None:
    with torch.device("meta"):
        model = create_model("slow_x50_32x4d")
    convolution = model.res3[0].branch2.conv_b
    assert (convolution.in_channels, convolution.groups) == (256, 32)  # 128 x 4 / 64 x 32
    assert model.res3[0].channels == 512


def test_i3d_and_c2d_halve_the_number_of_frames_once() -> None:
    for name, frames in (("slow_r18", 4), ("c2d_r18", 2), ("i3d_r18", 2)):
        assert tiny(name).features(clips(1, 3, 4, 32, 32)).shape[2] == frames


def test_drop_path_grows_linearly_and_rests_in_evaluation() -> None:
    model = tiny(drop_path=0.7, zero_init_last_norm=False)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for _, block in model.blocks()]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    x = clips()
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_frame_difference_sees_motion_alone() -> None:
    model, plain = settle(tiny(frame_difference=True)), settle(tiny())  # residual branches tell frames apart
    plain.load_state_dict(model.state_dict())
    x = clips()
    differences = torch.zeros_like(x)
    for t in range(1, x.shape[2]):
        differences[:, :, t] = x[:, :, t] - x[:, :, t - 1]
    assert torch.equal(model(x), plain(differences))
    torch.testing.assert_close(model(x + 1), model(x))  # a change of light that lasts
    assert not torch.allclose(plain(x + 1), plain(x))


def test_dropout_is_the_configs() -> None:
    assert tiny(dropout=0.3).head.dropout.p == 0.3
    assert tiny(dropout=0.0).head.dropout is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"groups": 32, "width_per_group": 4, "depth": 18}, "ResNeXt needs the bottlenecks"),
        ({"temporal_kernels": {"res6": [3]}}, "no stage 'res6'"),
        ({"temporal_kernels": {"res3": [2]}}, "odd"),
        ({"temporal_kernels": {"res3": []}}, "odd"),
    ],
)
def test_model_configs_that_contradict_themselves(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**values)


def test_transform_first_belongs_to_the_linear_transform() -> None:
    with pytest.raises(ConfigError, match="transform_first"):
        ContextConfig(kind="gc", stages={"res3": "all"}, transform_first=True)
    with torch.device("meta"):
        model = create_model("slow_r50_snl5", context={"transform_first": True})
    assert model.res3[1].context.transform_first


def test_options_of_the_config_reach_the_block() -> None:
    context = {"instantiation": "dot_product", "subsample": "after", "norm": False, "bias": False, "scale": False}
    block = tiny(context={"kind": "nl", "stages": {"res3": [1]}, "reduction": 4, **context}).res3[1].context
    assert isinstance(block, NonLocalBlock)
    assert (block.instantiation, block.subsample, block.norm, block.g.bias) == ("dot_product", "after", None, None)
    assert (block.inner, block.scale) == (4, 1.0)


def test_options_of_the_config_reach_a_context_block() -> None:
    context = {"kind": "gc", "stages": {"res3": [1]}, "reduction": 2, "layer_norm": False, "relu": False, "bias": False}
    block = tiny(context={**context, "pool": "average", "fusion": "scale_add"}).res3[1].context
    assert isinstance(block, ContextBlock)
    assert isinstance(block.pool, AveragePool)
    assert list(block.transform) == ["scale", "add"]
    for transform in block.transform.values():
        assert [(name, type(layer)) for name, layer in transform.named_children()] == [
            ("fc1", nn.Linear),
            ("fc2", nn.Linear),
        ]
        assert (transform.fc1.out_features, transform.fc1.bias) == (8, None)  # half of 16
    linear = tiny(context={"kind": "gc", "stages": {"res3": [1]}, "transform": "linear"}).res3[1].context
    assert list(linear.transform["add"].state_dict()) == ["fc.weight", "fc.bias"]
