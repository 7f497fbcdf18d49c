"""A training step on the null GPU: what it costs the host, for each kind of block and each option."""

from __future__ import annotations

import pytest

from tests.device.steps import CASES

pytestmark = pytest.mark.slow

Counts = dict[str, dict[str, float]]
BLOCKS = 2  # of the networks with blocks
# Kernels of one block, forward, backward and update; products of matrices left out.
MOST_LAUNCHES = {"nl": 56, "snl": 12, "se": 20, "gc": 18}
# Kernels and copies that an option adds to a step.
MOST_ADDED = {"ema": (4, 0), "clip_grad_norm": (12, 2), "adamw": (2, 1), "mixup": (26, 3), "dropout": (60, 1)}
RECORDABLE = [case for case in CASES if case != "own_loss"]


@pytest.mark.parametrize("graph", ["", ".graph"])
@pytest.mark.parametrize("case", RECORDABLE)
def test_nothing_in_a_step_waits_for_the_device_or_allocates_on_it(counts: Counts, case: str, graph: str) -> None:
    found = counts[case + graph]
    assert found["launches"] > (4 if graph else 400) - 1  # it counts
    waits = {name: found[name] for name in ("syncs", "event_syncs", "mallocs", "host_allocs")}
    assert not any(waits.values()), waits


@pytest.mark.parametrize("case", ["gc", "gc.graph"])
def test_a_log_does_not_wait_for_the_steps_it_is_about(counts: Counts, case: str) -> None:
    assert counts[case]["log_syncs"] == 0


@pytest.mark.parametrize("kind", MOST_LAUNCHES)
def test_a_block_launches_few_kernels(counts: Counts, kind: str) -> None:
    added = (counts[kind]["launches"] - counts["plain"]["launches"]) / BLOCKS
    assert 0 < added <= MOST_LAUNCHES[kind]
    assert counts[kind]["copies"] == counts["plain"]["copies"]


@pytest.mark.parametrize("option", MOST_ADDED)
def test_an_option_adds_few_kernels_and_copies(counts: Counts, option: str) -> None:
    launches, copies = MOST_ADDED[option]
    assert counts[option]["launches"] - counts["plain"]["launches"] <= launches
    assert counts[option]["copies"] - counts["plain"]["copies"] <= copies


@pytest.mark.parametrize("case", RECORDABLE)
def test_a_step_is_one_graph_with_a_rate_a_number_and_a_seed_of_its_own(counts: Counts, case: str) -> None:
    found = counts[f"{case}.graph"]
    assert found["graph_launches"] == 1
    assert found["products"] == found["captured"] == 0
    # Rate, number of the step, seed and offset of its draws; mixing and sets of labels come before the graph.
    assert found["launches"] <= {"mixup": 30, "multi_label": 9}.get(case, 4)
    assert found["seeds"] == 2


def test_a_graph_draws_as_many_random_numbers_as_the_steps_it_stands_for(counts: Counts) -> None:
    assert counts["dropout"]["drawn"] > 0
    assert counts["dropout.graph"]["drawn"] == counts["dropout"]["drawn"]


def test_a_step_that_waits_for_the_device_runs_without_a_graph(counts: Counts) -> None:
    found = counts["own_loss.graph"]
    assert found["graph_launches"] == 0
    assert {name: found[name] for name in ("launches", "products", "syncs")} == {
        name: counts["own_loss"][name] for name in ("launches", "products", "syncs")
    }
