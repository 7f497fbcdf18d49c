"""A training step on the null GPU: what it costs the host, for each kind of block and each option."""

from __future__ import annotations

import pytest

from tests.device.steps import CASES

pytestmark = pytest.mark.slow

Counts = dict[str, dict[str, float]]
BLOCKS = 2  # of the networks with blocks
# Kernels of forward and backward pass of one block and of its update, products of matrices left out.
MOST_LAUNCHES = {"nl": 56, "snl": 20, "se": 24, "gc": 35}
# Kernels and copies that an option adds to a step.
MOST_ADDED = {"ema": (4, 0), "clip_grad_norm": (12, 2), "adamw": (2, 1), "mixup": (24, 3), "dropout": (60, 1)}


@pytest.mark.parametrize("case", CASES)
def test_nothing_in_a_step_waits_for_the_device_or_allocates_on_it(counts: Counts, case: str) -> None:
    found = counts[case]
    assert found["launches"] > 400  # it counts
    waits = {name: found[name] for name in ("syncs", "event_syncs", "mallocs", "host_allocs")}
    assert not any(waits.values()), waits


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
