"""Tables, plots and the page of ``gcvideo benchmark compare``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gcvideo.analysis import statistics
from gcvideo.analysis.statistics import changed_videos, compare_accuracy
from gcvideo.benchmark.blocks import measure_scaling
from gcvideo.benchmark.harness import CPU, Times
from gcvideo.report.maps import MIDDLE, Explanation, Layer
from gcvideo.report.page import render
from gcvideo.report.pages import beside, plots_of, write_comparison
from tests.predictions import right_or_wrong
from tests.tiny import tiny_checkpoint
from tests.videos import moving_frames, write_video


def printed(networks: list[dict[str, object]]) -> list[str]:
    return render("comparison.txt.j2", results={"networks": networks, "scaling": None}).splitlines()


def measured(**parts: object) -> dict[str, object]:
    """A network's row with nothing but its size and what is given."""
    known = {"config": "slow", "params": 1_500_000, "macs": 2 * 10**9, "input": [1, 3, 8, 64, 64]}
    return {**known, **dict.fromkeys(("forward", "train", "memory", "throughput", "accuracy")), **parts}


def test_runs_of_one_network_read_as_mean_and_deviation() -> None:
    rows = compare_accuracy(["a"], [[right_or_wrong([i < right for i in range(10)]) for right in (5, 6, 7)]])
    lines = printed([measured(config="a", accuracy=rows[0])])
    place = next(i for i, line in enumerate(lines) if line.startswith("Accuracy"))
    assert lines[place + 3].split()[:4] == ["a", "3", "10", "2"]
    assert "  60.0 ± 10.0 (" in lines[place + 3]
    assert lines[place + 1].rstrip().endswith("video top-5"), "nothing to compare with"


def test_parts_that_were_skipped_have_neither_column_nor_note(tmp_path: Path) -> None:
    times = Times({"slow": [0.5], "other": [1.0]}).per_clip(1)
    rows = [measured(train=times["slow"]), measured(train=times["other"])]
    title, heads, _, first, second, *_ = printed(rows)
    assert title == "Cost"
    assert " ".join(heads.split()) == "network input params (M) GMAC train ms (quartiles) train x first"
    assert first.split()[-3:] == ["500.0", "(500.0–500.0)", "1.00"]
    assert second.split() == ["slow", "8×64×64", "1.50", "2.000", "1000.0", "(1000.0–1000.0)", "2.00"]
    write_comparison(tmp_path / "page.html", {"networks": rows, "scaling": None, "machine": "a CPU"}, {})
    text = (tmp_path / "page.html").read_text()
    assert "Times are of one clip" in text
    assert "Memory is" not in text


def test_one_network_without_memory_leaves_the_column_to_the_others() -> None:
    _, heads, _, *rows = printed([measured(memory={"inference": 2**20, "train": 2**21}), measured()])
    assert heads.endswith("MiB inference  MiB train")
    assert [row.split()[-2:] for row in rows[:2]] == [["1", "2"], ["–", "–"]]


def test_throughput_reads_as_plain_numbers() -> None:
    assert "1: 1.23, 4: 1,366.50" in printed([measured(throughput={"1": 1.234, "4": 1366.5})])[3]


def test_plots_of_blocks_say_what_grows_what_stays_and_how_fast() -> None:
    shapes = {"frames": [(4, 6, 6), (8, 6, 6)], "size": [(2, 4, 4), (2, 8, 8)]}
    scaling = {way: measure_scaling(channels=8, shapes=of, rounds=1, device=CPU) for way, of in shapes.items()}
    plots = plots_of({"networks": [], "scaling": {"channels": 8, **scaling}})
    frames, size = plots["block_frames"], plots["block_size"]
    assert frames.get_suptitle() == "Forward pass of one block: 8 channels, P = T x 6 x 6 positions"
    assert size.get_suptitle() == "Forward pass of one block: 8 channels, P = 2 x S x S positions"
    assert size.axes[0].containers[0][0].get_xdata().tolist() == [4, 8]
    gc = frames.axes[0].get_legend_handles_labels()[1][0]
    assert gc == f"GC ~ P^{scaling['frames']['GC']['time_exponent']:.2f}"


def test_accuracy_stands_against_cost_with_its_interval_and_its_runs() -> None:
    first = [right_or_wrong([i < right for i in range(10)]) for right in (5, 7)]
    accuracies = compare_accuracy(["slow", "other"], [first, [right_or_wrong([i < 8 for i in range(10)])]])
    times = Times({"slow": [0.5, 5.0], "other": [1.0, 10.0]}).per_clip(1)
    rows = [
        measured(config=name, accuracy=accuracy, forward=times[name])
        for name, accuracy in zip(("slow", "other"), accuracies, strict=True)
    ]
    figure = plots_of({"networks": rows, "scaling": None})["accuracy_forward"]
    axes = figure.axes[0]
    assert axes.get_xlabel() == "time of a forward pass over that of slow"
    assert figure.get_suptitle().endswith("dots: single runs")
    slow, _, (bar,) = axes.containers[0]
    assert slow.get_xydata().tolist() == [[1, pytest.approx(60)]]
    assert bar.get_segments()[0][0][1] < 60 < bar.get_segments()[0][1][1]
    assert axes.containers[1][0].get_xydata().tolist() == [[2, pytest.approx(80)]]
    (dots,) = [line for line in axes.lines if line.get_marker() == "."]
    assert dots.get_xydata().tolist() == [[1, pytest.approx(50)], [1, pytest.approx(70)]]


def test_the_page_shows_what_changed_and_where_each_network_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    tests = [right_or_wrong(right) for right in ([True, False], [True, True])]
    tests[0].paths = [str(tmp_path / "none.mp4"), str(write_video(tmp_path / "v1.mp4", moving_frames(20)))]
    names, accuracies = ["gc", "file"], compare_accuracy(["gc", "file"], [[test] for test in tests])
    rows = [measured(config=name, accuracy=found) for name, found in zip(names, accuracies, strict=True)]
    results = {
        "networks": rows,
        "scaling": None,
        "machine": "a CPU",
        "changed": changed_videos(names, [[t] for t in tests]),
    }
    run = tiny_checkpoint(tmp_path).parents[1]
    write_comparison(tmp_path / "page.html", results, plots_of(results), [run, tmp_path / "predictions.npz"])
    text = (tmp_path / "page.html").read_text()
    assert "gc</bdi></td>" in text
    assert text.count("image/webp") == 1
    assert "Where they look in the same clip" in text
    assert "gc: Grad-CAM for" in text
    assert "file: " not in text, "no checkpoint"


def test_the_rows_of_one_layer_stand_together_whatever_network_they_are_of() -> None:
    frames, one = np.zeros((2, 8, 8, 3), np.uint8), torch.ones(1, 1, 1, 1)
    cam, res3 = Layer("Grad-CAM for a", one), "attention of res3.0"
    nl = [cam, Layer(f"{res3}, from the ring", one, by_query=True), Layer(f"{res3}, mean of all queries", one)]
    explained = {
        "plain": Explanation(frames, [cam], MIDDLE, None),
        "nl": Explanation(frames, nl, MIDDLE, (1, 1, 1)),
        "finer": Explanation(frames, nl, MIDDLE, (2, 2, 2)),
        "gc": Explanation(frames, [cam, Layer(res3, one), Layer("attention of res4.0", one)], MIDDLE, None),
    }
    found = explained["plain"]._replace(layers=[])
    for name, each in explained.items():
        found = beside(found, name, each)
    names = [layer.name.split(": ")[0] for layer in found.layers]
    assert names == ["plain", "nl", "finer", "gc", "gc", "nl", "finer", "nl", "finer", "gc"]
    assert found.layers[-1].name == "gc: attention of res4.0"
    assert found.grid == (1, 1, 1)
    assert [layer.by_query for layer in found.layers[4:8]] == [False, True, False, False], "finer has another grid"
