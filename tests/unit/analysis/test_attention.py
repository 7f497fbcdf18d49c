"""The statistics of attention against double loops in plain NumPy, float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gcvideo.analysis.attention import (
    MEASURES,
    PAPER,
    block_statistics,
    mean_cosine_distance,
    mean_evenness,
    mean_js_divergence,
    summarize,
)
from gcvideo.layers import NonLocalBlock, gc_block, record_attention, se_block
from gcvideo.layers.non_local import INSTANTIATIONS


def cosine_by_loops(vectors: np.ndarray) -> float:
    total = 0.0
    vectors = vectors[np.abs(vectors).sum(axis=1) > 0]  # a query may attend to nothing through a ReLU
    for u in vectors:
        for v in vectors:
            cosine = float(np.dot(u, v)) / math.sqrt(float(np.dot(u, u)) * float(np.dot(v, v)))
            total += (1 - cosine) / 2
    return total / len(vectors) ** 2


def divergence_by_loops(maps: np.ndarray) -> float:
    total = 0.0
    for p in maps:
        for q in maps:
            for a, b in zip(p, q, strict=True):
                middle = (a + b) / 2
                total += sum(x * math.log(x / middle) / 2 for x in (a, b) if x > 0)
    return total / len(maps) ** 2


def random_maps(n: int, k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, k, dtype=torch.float64, generator=generator)).softmax(1)


def test_cosine_distance_is_that_of_the_double_loop() -> None:
    vectors = torch.randn(17, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3
    assert mean_cosine_distance(vectors) == pytest.approx(cosine_by_loops(vectors.numpy()), abs=1e-12)


@pytest.mark.parametrize(
    ("vectors", "distance"),
    [
        ([[1.0, 2.0], [2.0, 4.0]], 0.0),  # one direction
        ([[1.0, 0.0], [-3.0, 0.0]], 0.5),  # opposite: 1 for two of the four ordered pairs, 0 for i = j
        ([[1.0, 0.0], [0.0, 1.0]], 0.25),  # orthogonal: 1/2 for two of the four
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], 0.25),  # no direction: left out
    ],
)
def test_cosine_distances_known_by_hand(vectors: list[list[float]], distance: float) -> None:
    assert mean_cosine_distance(torch.tensor(vectors)) == pytest.approx(distance, abs=1e-12)


def test_vectors_without_any_direction_have_no_distance() -> None:
    assert mean_cosine_distance(torch.zeros(3, 2)) is None


def test_divergence_of_all_pairs_is_that_of_the_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = random_maps(9, 6)
    maps[0] = torch.tensor([1.0, 0, 0, 0, 0, 0])  # zeros have no part in the sum
    expected = divergence_by_loops(maps.numpy())
    found = mean_js_divergence(maps)
    assert found["jsd"] == pytest.approx(expected, abs=1e-12)
    assert (found["jsd_pairs"], found["jsd_sampled"], found["jsd_error"]) == (36, False, 0)
    monkeypatch.setattr("gcvideo.analysis.attention._ELEMENTS", 30)  # five pairs at a time
    assert mean_js_divergence(maps)["jsd"] == pytest.approx(expected, abs=1e-12)


def test_divergence_of_disjoint_maps_is_ln_2_for_each_pair_of_two() -> None:
    assert mean_js_divergence(torch.eye(4))["jsd"] == pytest.approx(math.log(2) * 12 / 16, abs=1e-12)


def test_a_draw_of_pairs_is_right_within_its_error_and_the_same_for_one_seed() -> None:
    maps = random_maps(40, 8)
    exact = mean_js_divergence(maps)
    drawn = mean_js_divergence(maps, max_pairs=700, seed=3)
    assert drawn["jsd_sampled"]
    assert drawn["jsd_pairs"] == 700
    assert abs(drawn["jsd"] - exact["jsd"]) < 4 * drawn["jsd_error"]
    assert drawn["jsd_error"] < 0.1 * exact["jsd"]
    assert drawn == mean_js_divergence(maps, max_pairs=700, seed=3)
    assert drawn["jsd"] != mean_js_divergence(maps, max_pairs=700, seed=4)["jsd"]


def evenness_by_loops(maps: np.ndarray) -> float:
    entropies = [-sum(float(p) * math.log(p) for p in row if p > 0) for row in maps]
    return sum(math.exp(entropy) / maps.shape[1] for entropy in entropies) / len(maps)


@pytest.mark.parametrize("subsample", ["none", "before", "after"])
@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_statistics_of_a_block_are_those_of_its_own_matrices(kind: str, subsample: str) -> None:
    torch.manual_seed(0)
    block = NonLocalBlock(6, instantiation=kind, subsample=subsample).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.7)
    if block.concat is not None and block.theta is not None:  # so that the ReLU lets something through
        nn.init.constant_(block.concat.weight, 0.5)
        nn.init.constant_(block.theta.bias, -0.2)
    x = torch.randn(1, 6, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad(), record_attention(block) as traces:
        y = block(x)
    found = block_statistics(block, traces[""])

    def rows(grid: torch.Tensor) -> np.ndarray:
        return grid[0].flatten(1).T.numpy()

    query, key, value = block._embed(x)
    with torch.no_grad():
        maps = block._attention_map(query, key)[0]  # (32, 32 or 8)
        gathered = maps @ value[0]
    assert found["input"] == pytest.approx(cosine_by_loops(rows(x)), abs=1e-10)
    assert found["output"] == pytest.approx(cosine_by_loops(rows(y - x)), abs=1e-10)
    assert found["gathered"] == pytest.approx(cosine_by_loops(gathered.numpy()), abs=1e-10)
    assert found["attention"] == pytest.approx(cosine_by_loops(maps.numpy()), abs=1e-10)
    assert found["empty_maps"] == pytest.approx((maps.abs().sum(1) == 0).double().mean().item())
    if kind in ("gaussian", "embedded_gaussian"):
        assert found["jsd"] == pytest.approx(divergence_by_loops(maps.numpy()), abs=1e-10)
        assert found["jsd"] > 1e-3, "the maps must differ for the test to tell"
        assert found["evenness"] == pytest.approx(evenness_by_loops(maps.numpy()), abs=1e-10)
    else:
        assert (found["jsd"], found["evenness"]) == (None, None)


def test_a_context_block_has_one_map_and_one_term_for_all_positions() -> None:
    x = torch.randn(1, 8, 2, 3, 3)
    for block, attention in ((gc_block(8), 0.0), (se_block(8), None)):
        with torch.no_grad(), record_attention(block) as traces:
            block(x)
        found = block_statistics(block, traces[""])
        assert found["input"] == pytest.approx(mean_cosine_distance(x[0].flatten(1).T))
        assert (found["output"], found["attention"], found["jsd"]) == (0.0, attention, attention)
        mask = traces[""].attention
        even = None if mask is None else pytest.approx(evenness_by_loops(mask.flatten(2)[0].numpy()), abs=1e-6)
        assert found["evenness"] == even


def test_evenness_tells_plain_averaging_from_attention() -> None:
    one, even = torch.eye(4)[:1], torch.full((1, 4), 0.25)
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert [mean_evenness(maps) for maps in (one, half, even)] == pytest.approx([0.25, 0.5, 1.0])
    assert mean_evenness(torch.cat([one, even])) == pytest.approx((0.25 + 1) / 2)


def test_summary_averages_over_clips_and_over_non_local_blocks_only() -> None:
    model = nn.ModuleDict({"a": NonLocalBlock(4), "b": NonLocalBlock(4, instantiation="dot_product"), "c": gc_block(4)})

    def clip(*inputs: float | None) -> dict:
        one = {**dict.fromkeys(MEASURES, 0.0), "jsd_error": 0.3, "jsd_pairs": 5, "jsd_sampled": True, "empty_maps": 0.0}
        none = {**one, "jsd": None, "jsd_error": None, "jsd_pairs": None, "jsd_sampled": None}
        blocks = {
            "a": {**one, "input": inputs[0]},
            "b": {**none, "input": inputs[1]},
            "c": {**none, "input": inputs[2]},
        }
        return {"video": "v", "blocks": blocks}

    found = summarize(model, [clip(0.1, 0.3, 0.9), clip(0.3, 0.5, 0.9), clip(None, 0.4, 0.9)])
    by_name = {row["block"]: row for row in found["blocks"]}
    assert by_name["a"]["input"] == pytest.approx(0.2)  # the clip without a distance is left out
    assert by_name["a"]["std"]["input"] == pytest.approx(math.sqrt(0.02))
    assert by_name["a"]["jsd_error"] == pytest.approx(0.3 / math.sqrt(3))
    assert [by_name[name]["kind"] for name in "abc"] == ["embedded_gaussian", "dot_product", "shared attention"]
    assert found["average"]["input"] == pytest.approx((0.2 + 0.4) / 2)
    assert found["average"]["jsd"] == 0.0  # of the one block that has it
    assert by_name["b"]["jsd"] is None


def test_the_papers_figures_cover_every_instantiation() -> None:
    assert tuple(PAPER) == INSTANTIATIONS
