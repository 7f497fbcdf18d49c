"""The shipped ablation configs: every row of the tables, each differing from its neighbours in one thing."""

from __future__ import annotations

import pytest
import torch

from gcvideo.benchmark.complexity import count_config
from gcvideo.config import RunConfig, load_config, shipped_configs
from gcvideo.models import build_model

pytestmark = pytest.mark.slow  # as a whole

FILES = sorted((shipped_configs() / "ablations").glob("*.yaml"))
ROWS = {
    "block": {"nl1", "snl1", "gc1", "gc_all"},
    "position": {"after_1x1", "after_3x3", "after_add"},
    "stages": {"c3", "c4", "c5", "c345", "c2345"},
    "bottleneck": {"linear", "plain", "relu", "ln_relu"},
    "ratio": {"4", "8", "16", "32"},
    "fusion": {"avg_scale", "avg_add", "att_scale", "att_add"},
    "instantiation": {"gaussian", "embedded_gaussian", "dot_product", "concatenation"},
}


@pytest.fixture(scope="module")
def configs() -> dict[str, RunConfig]:
    return {file.stem: load_config(file) for file in FILES}


def test_every_row_has_its_file() -> None:
    expected = {f"{table}_{row}" for table, rows in ROWS.items() for row in rows}
    assert {file.stem for file in FILES} == expected | {"baseline"}


@pytest.mark.slow
def test_files_rest_on_one_base_and_differ_in_the_model_alone(configs: dict[str, RunConfig]) -> None:
    baseline = configs["baseline"]
    assert baseline.model.context.kind == "none"
    for name, config in configs.items():
        assert config.name == f"ablation_{name}"
        for section in ("data", "test", "optim", "train"):
            assert getattr(config, section) == getattr(baseline, section), (name, section)
        if name != "baseline":
            assert config.model.context != baseline.model.context


@pytest.mark.parametrize(
    ("row", "params"),
    [
        ("baseline", 32_454_096),
        ("block_gc_all", 42_454_992),
        ("stages_c345", 42_454_992),
        ("stages_c2345", 42_555_408),
        ("ratio_4", 42_454_992),
        ("ratio_16", 34_975_824),
        ("position_after_1x1", 42_454_992),
        ("fusion_att_add", 42_454_992),
        ("bottleneck_ln_relu", 42_454_992),
        ("instantiation_embedded_gaussian", 39_812_560),
    ],
)
def test_sizes_of_rows_that_are_published(row: str, params: int, configs: dict[str, RunConfig]) -> None:
    assert count_config(configs[row].model, (1, 3, 1, 64, 64)).params == params


@pytest.mark.slow
def test_one_block_is_one_block(configs: dict[str, RunConfig]) -> None:
    """Parameters of a single block of width 1024, in closed form."""
    plain = count_config(configs["baseline"].model, (1, 3, 1, 64, 64)).params
    c, d, p = 1024, 512, 256
    sizes = {
        "block_nl1": 4 * c * d + 3 * d + 3 * c,
        "block_snl1": c * c + 2 * c,
        "block_gc1": 2 * c * p + 3 * p + 2 * c,
    }
    for row, size in sizes.items():
        assert count_config(configs[row].model, (1, 3, 1, 64, 64)).params - plain == size, row


@pytest.mark.slow
def test_no_layer_norm_takes_its_parameters_away(configs: dict[str, RunConfig]) -> None:
    hidden = 4 * 128 + 6 * 256 + 3 * 512
    shape = (1, 3, 1, 64, 64)
    rows = ("ln_relu", "relu", "plain")
    sizes = [count_config(configs[f"bottleneck_{row}"].model, shape).params for row in rows]
    assert sizes[0] - sizes[1] == 2 * hidden
    assert sizes[1] == sizes[2]  # a ReLU has none


def test_each_row_of_the_bottleneck_has_the_layers_of_its_name(configs: dict[str, RunConfig]) -> None:
    layers = {}
    for row in ROWS["bottleneck"]:
        with torch.device("meta"):
            model = build_model(configs[f"bottleneck_{row}"].model)
        layers[row] = [type(layer).__name__ for layer in model.res4[0].context.transform["add"]]
    assert layers == {
        "linear": ["Linear"],
        "plain": ["Linear", "Linear"],
        "relu": ["Linear", "ReLU", "Linear"],
        "ln_relu": ["Linear", "LayerNorm", "ReLU", "Linear"],
    }


@pytest.mark.slow
def test_ratios_in_closed_form(configs: dict[str, RunConfig]) -> None:
    """13 GC blocks, C + 2 C p + 3 p + C parameters each, with p = C / r."""
    shape = (1, 3, 1, 64, 64)
    plain = count_config(configs["baseline"].model, shape).params
    for row in ROWS["ratio"]:
        sizes = [(c, c // int(row)) for c in 4 * [512] + 6 * [1024] + 3 * [2048]]
        expected = sum(2 * c + 2 * c * p + 3 * p for c, p in sizes)
        assert count_config(configs[f"ratio_{row}"].model, shape).params - plain == expected, row
