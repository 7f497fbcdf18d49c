"""What ``gcvideo benchmark compare`` measures itself: names of networks, and peak memory."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gcvideo.benchmark.compare import read_candidates
from gcvideo.benchmark.harness import CPU
from gcvideo.benchmark.workloads import peak_memory, random_clips, training_step
from gcvideo.config import DataConfig, RunConfig, save_config
from gcvideo.models import model_config


def test_networks_are_called_by_their_file_or_run_unless_two_share_a_name(tmp_path: Path) -> None:
    (tmp_path / "gc_s0").mkdir()
    for file in ("gc.yaml", "gc_s0/config.yaml", "gc_s0/gc.yaml"):
        save_config(RunConfig(name="gc"), tmp_path / file)
    one, run, other = (str(tmp_path / file) for file in ("gc.yaml", "gc_s0/config.yaml", "gc_s0/gc.yaml"))
    places = ["slow_r50", one, run, other, other]
    common = {"predictions": None, "device": "cpu", "frames": None, "size": None}
    args = argparse.Namespace(configs=places, preset=None, quick=False, **common)
    names = [candidate.name for candidate in read_candidates(args)]
    assert names == ["slow_r50", "gc", "gc_s0", other, f"{other} (5)"]
    for quick, last in ((False, "slow_r50_gc_c345"), (True, "gc")):
        args = argparse.Namespace(configs=["data.frames=4"], preset="paper", quick=quick, **common)
        assert read_candidates(args)[-1].name == last
        assert {candidate.shape[1] for candidate in read_candidates(args)} == {4}


def test_clips_may_be_larger_than_those_that_the_config_trains_on() -> None:
    config = RunConfig(
        model=model_config("slow_r18", width=4, num_classes=4), data=DataConfig(crop=32, short_side=(32, 40))
    )
    training_step(config, random_clips((1, 3, 2, 64, 64)), device=CPU, precision="fp32")()


@pytest.mark.slow
def test_peak_memory_grows_with_the_clips_and_is_more_in_training() -> None:
    config = RunConfig(name="tiny", model=model_config("slow_r18", width=16, num_classes=4))
    shapes = [(1, 3, 4, 64, 64), (8, 3, 8, 160, 160)]
    small, large = (peak_memory(config, shape, device=CPU, precision="fp32") for shape in shapes)
    weights = 4 * 2e6
    for kind in ("inference", "train"):
        assert small[kind] is not None
        assert large[kind] is not None
        assert large[kind] > 2 * small[kind]  # type: ignore[operator]
        assert large[kind] < 2**30  # type: ignore[operator]
    assert small["inference"] > weights / 2  # type: ignore[operator]
    assert large["train"] > 2 * large["inference"]  # type: ignore[operator]
