"""Short trainings and tests give the numbers that they gave once; the rule is in ``tests/golden.py``.

After a change that is meant to change them: ``python -m tests.golden record``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden import RUNS, differences, exact_videos, load_golden, machine, measure, videos_checksum


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return load_golden()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exact_videos(tmp_path_factory.mktemp("golden"))


def test_the_videos_decode_to_the_golden_planes(place: Path, golden: dict[str, Any]) -> None:
    assert videos_checksum(place) == golden["videos"]


# Runs that the quick tests compare too.
QUICK = {("plain", 1), ("gc", 2)}


@pytest.mark.parametrize(
    ("kind", "processes"),
    [
        pytest.param(kind, count, marks=[] if (kind, count) in QUICK else [pytest.mark.slow])
        for kind, counts in RUNS.items()
        for count in counts
    ],
)
def test_losses_weights_and_scores_are_the_golden_ones(
    place: Path, golden: dict[str, Any], kind: str, processes: int
) -> None:
    name = f"{kind}-{processes}"
    found = measure(place, kind, processes)
    assert differences(name, golden["runs"][name], found, exact=machine() == golden["machine"]) == []


def test_the_margins_tell_the_block_kinds_apart(golden: dict[str, Any]) -> None:
    for processes in (1, 2):
        runs = [golden["runs"][f"{kind}-{processes}"] for kind in ("plain", "gc", "snl", "se", "nl")]
        for i, run in enumerate(runs):
            assert all(differences("", run, other, exact=False) for other in runs[:i])
