"""The timing loop, the ratios that come out of it, and what all benchmarks share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from gcvideo.benchmark import harness
from gcvideo.benchmark.harness import CPU, Times, pick_clock, time_contenders


def test_every_round_runs_each_contender_once_in_a_shuffled_order() -> None:
    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    times = time_contenders(contenders, rounds=6, warmup=2)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 8
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 2, "the order changes"
    assert {name: len(values) for name, values in times.seconds.items()} == {"a": 6, "b": 6, "c": 6}


def test_a_time_is_that_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(harness.time, "process_time", lambda: now)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now)

    def work() -> None:
        nonlocal now
        now += 2.0

    assert time_contenders({"a": work}, rounds=2, warmup=0, calls=5).seconds == {"a": [2.0, 2.0]}


def test_ratios_are_taken_within_a_round() -> None:
    # The machine was ten times slower in the last round; the second network takes twice as long in each.
    times = Times({"a": [1.0, 2.0, 10.0], "b": [2.0, 4.0, 20.0]})
    found = times.per_clip(4)
    assert found["b"]["ratio"] == {"median": 2.0, "q1": 2.0, "q3": 2.0}
    assert found["a"]["ms_per_clip"] == {"median": 500.0, "q1": 375.0, "q3": 1500.0}
    assert times.milliseconds() == {"a": 2000.0, "b": 4000.0}


def test_one_cpu_thread_is_timed_by_what_it_computes_and_not_by_what_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, clock in ((1, "process_time"), (2, "perf_counter")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert pick_clock(CPU) == clock
        assert pick_clock(torch.device("cuda")) == "cuda_events"


def test_results_are_shown_and_written_with_their_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(json=str(tmp_path / "out.json"), rounds=3)
    rows = [{"network": "plain"}, {"network": "gc", "ms": 2.5}]
    harness.finish(args, {"figures": {"gc_overhead": 1.234}}, {"two networks": rows, "nothing": []})
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["figures"] == {"gc_overhead": 1.234}
    assert written["settings"] == {"rounds": 3}
    assert "torch" in written["versions"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["two networks", "network  ms"]
    assert lines[3].split() == ["plain", "–"]
    assert "gc_overhead  1.234" in lines
    assert "nothing" not in lines
