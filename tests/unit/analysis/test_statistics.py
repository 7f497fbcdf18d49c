"""Statistics of predictions: classes, confusions, calibration, intervals, and whether two networks differ."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from gcvideo.analysis.statistics import (
    binomial_p_value,
    changed_videos,
    compare_accuracy,
    mcnemar,
)
from gcvideo.errors import DataError
from gcvideo.eval.metrics import calibration, wilson_interval
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.eval.scoring import per_class, score, summary
from tests.predictions import random_scores, right_or_wrong

CLASSES = list("abcdef")


def test_confusions_and_classes_add_up() -> None:
    scoring = score(random_scores(CLASSES))
    confusion = scoring.confusion
    assert confusion.sum() == 60
    assert np.trace(confusion) == scoring.right.sum()
    rows = per_class(scoring)
    assert [row["videos"] for row in rows] == [10] * 6
    assert rows[2]["top1"] == confusion[2, 2] / 10
    others = [confusion[2, k] if k != 2 else -1 for k in range(6)]
    assert rows[2]["most_taken_for"] == CLASSES[int(np.argmax(others))]


def test_calibration_is_torchmetrics() -> None:
    scoring = score(random_scores(CLASSES, count=200))
    expected = multiclass_calibration_error(
        torch.tensor(scoring.probabilities), torch.tensor(scoring.labels), num_classes=6, n_bins=15, norm="l1"
    )
    found = summary(scoring)["calibration"]
    assert found["expected_calibration_error"] == pytest.approx(float(expected), abs=1e-6)
    assert sum(row["videos"] for row in found["bins"]) == 200


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    """Bin m is ((m - 1) / M, m / M] in Guo et al. 2017."""
    (row,) = calibration(np.array([0.5, 0.4375]), np.array([True, False]), bins=4)["bins"]
    assert (row["from"], row["to"], row["videos"]) == (0.25, 0.5, 2)


def test_calibration_by_hand() -> None:
    """0.64 and 0.69 lie in two of fifteen bins, but in one of ten."""
    found = calibration(np.array([0.64, 0.69]), np.array([True, False]))
    assert found["expected_calibration_error"] == pytest.approx((1 - 0.64 + 0.69) / 2, abs=1e-6)
    # Each video in a bin of its own, but 0.6 is there twice: half of those are correct.
    found = calibration(np.array([0.8, 0.6, 0.6, 0.9]), np.array([True, False, True, False]))
    expected = (abs(1 - 0.8) + abs(0.5 - 0.6) * 2 + abs(0 - 0.9)) / 4
    assert found["expected_calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_mcnemar_by_hand() -> None:
    # 1 against 7 wins: 2 x (1 + 8) / 2^8; the table of the binomial distribution.
    assert binomial_p_value(1, 7) == pytest.approx(2 * 9 / 256)
    assert binomial_p_value(5, 5) == 1
    assert binomial_p_value(0, 0) == 1
    assert 0 < binomial_p_value(4000, 4600) < 1e-9
    first, second = random_scores(CLASSES), random_scores(CLASSES, skill=4)
    found = mcnemar(first, second)
    assert (
        found["only_second_right"] - found["only_first_right"] == score(second).right.sum() - score(first).right.sum()
    )
    assert found["p_value"] < 0.01


def three_classes(labels: list[int], predicted: list[int], names: str = "abcdefgh") -> Predictions:
    """Confident predictions of three classes."""
    videos = []
    for i, (label, best) in enumerate(zip(labels, predicted, strict=True)):
        scores = np.full(3, 0.1, np.float32)
        scores[best] = 0.8
        videos.append(VideoScores(i, names[i], label, 1, 0, 1, scores, np.log(scores), scores / 2))
    return Predictions.collect(videos)


def test_classes_count_alike_and_pairs_are_out_of_the_true_class() -> None:
    found = summary(score(three_classes([0, 0, 0, 0, 1], [0, 1, 1, 2, 1])))
    assert found["mean_class_top1"] == (1 / 4 + 1) / 2
    assert found["worst_pairs"] == [
        {"class": "0", "taken_for": "1", "videos": 2, "of": 4},
        {"class": "0", "taken_for": "2", "videos": 1, "of": 4},
    ]


@pytest.mark.parametrize(
    ("labels", "predicted", "verdict"),
    [
        ([0, 0, 0, 1, 2], [0, 0, 0, 0, 0], "not learned: .*no better than guessing.* --find-lr"),  # the largest class
        ([0, 0, 1, 1, 2], [0, 0, 1, 1, 1], "not certain: 5 videos cannot tell"),
        ([0] * 5, [0] * 5, "not certain: .* of every class"),
        ([0, 1] * 4 + [2] * 4, [0, 1] * 4 + [2] * 4, "^$"),
    ],
)
def test_an_accuracy_stands_beside_that_of_guessing(labels: list[int], predicted: list[int], verdict: str) -> None:
    found = summary(score(three_classes(labels, predicted, names="abcdefghijkl")))
    assert (found["chance"], found["largest_class"]) == (1 / 3, labels.count(0) / len(labels))
    assert re.search(verdict, found["verdict"])
    assert f"guessing reaches 33.33 % by chance, {100 * found['largest_class']:.2f} %" in found["context"]


@pytest.mark.parametrize(
    (
        "hits",
        "trials",
        "interval",
    ),  # Newcombe 1998, "Two-sided confidence intervals ...", table I
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_intervals_are_those_of_the_literature(hits: int, trials: int, interval: tuple[float, float]) -> None:
    assert wilson_interval(hits, trials) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize("ensemble", ["softmax", "logits", "max"])
def test_probabilities_sum_to_one_for_every_ensemble(ensemble: str) -> None:
    found = three_classes([0, 1], [0, 2])
    found.ensemble = ensemble
    expected = [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]
    np.testing.assert_allclose(score(found).probabilities, expected, rtol=1e-6)


def test_mcnemar_pairs_videos_by_their_ids() -> None:
    first = three_classes([0, 1, 2, 0, 1], [0, 1, 0, 1, 1], "abcde")
    # c and e right, b wrong, and x, which the first has not.
    second = three_classes([2, 1, 0, 1], [2, 0, 0, 1], "cbxe")
    found = mcnemar(first, second)
    assert (found["videos"], found["only_first_right"], found["only_second_right"]) == (3, 1, 1)
    assert (found["top1_first"], found["top1_second"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_files_of_different_tests_are_not_compared() -> None:
    other = random_scores(CLASSES)
    other.labels = (other.labels + 1) % 6
    with pytest.raises(
        DataError, match="the second test and the first test are of different tests: they label 'video 0' differently"
    ):
        mcnemar(random_scores(CLASSES), other)
    other.ids = [f"other {name}" for name in other.ids]
    with pytest.raises(DataError, match=r"in common .ids: .* and other video .*same data.test.root"):
        mcnemar(random_scores(CLASSES), other)
    other.labels[:] = -1
    with pytest.raises(DataError, match="nothing to score"):
        score(other)


def test_intervals_by_bootstrap_have_the_width_that_theory_gives() -> None:
    right = [i % 10 < 7 for i in range(400)]
    (row,) = compare_accuracy(["a"], [[right_or_wrong(right)]])
    top1 = row["video_top1"]
    assert top1["value"] == pytest.approx(0.7)
    half_width = 1.96 * (0.7 * 0.3 / 400) ** 0.5  # of the mean of 400 independent trials
    assert top1["high"] - top1["low"] == pytest.approx(2 * half_width, rel=0.08)
    # The two views of a video agree, so twice as many trials make the interval no narrower.
    assert row["clip_top1"] == top1


def test_clip_accuracy_weighs_videos_by_their_views() -> None:
    (row,) = compare_accuracy(["a"], [[right_or_wrong([True, False], views=[3, 1])]])
    assert row["clip_top1"]["value"] == pytest.approx(3 / 4)
    assert row["video_top1"]["value"] == pytest.approx(1 / 2)


def test_networks_are_compared_on_the_same_videos_in_pairs() -> None:
    first = [i % 2 == 0 for i in range(200)]
    second = [is_right or i < 20 for i, is_right in enumerate(first)]  # right on ten more videos, wrong on none
    rows = compare_accuracy(["a", "b"], [[right_or_wrong(first)], [right_or_wrong(second)]])
    minus = rows[1]["minus_first"]
    assert minus["value"] == pytest.approx(0.05)
    assert 0 < minus["low"] < minus["high"] < 0.1
    assert rows[1]["video_top1"]["low"] < rows[0]["video_top1"]["high"], "intervals overlap, and yet they differ:"
    assert [test["p_value"] for test in rows[1]["mcnemar"]] == [pytest.approx(2 * 0.5**10)]
    assert "minus_first" not in rows[0]


def test_only_videos_that_all_networks_have_count() -> None:
    long, short = right_or_wrong([True] * 6 + [False] * 4), right_or_wrong([True] * 6)
    rows = compare_accuracy(["a", "b"], [[long], [short]])
    assert [row["videos"] for row in rows] == [6, 6]
    assert rows[0]["video_top1"]["value"] == 1
    assert [row["left_out"] for row in rows] == [4, 0]
    with pytest.raises(DataError, match="a and b: have no labelled video in common"):
        compare_accuracy(["a", "b"], [[long], [right_or_wrong([True], prefix="w")]])


def test_runs_with_other_seeds_are_one_row() -> None:
    # 10 videos: the first network is right on 6 and 8 of them, the second on 5, 6 and 7.
    first, second = (
        [right_or_wrong([i < right for i in range(10)]) for right in counts] for counts in ((6, 8), (5, 6, 7))
    )
    one, other = compare_accuracy(["a", "b"], [first, second])
    assert (one["runs"], other["runs"]) == (2, 3)
    assert one["video_top1"]["by_run"] == pytest.approx([0.6, 0.8])
    assert other["video_top1"]["value"] == pytest.approx(0.6)
    assert other["video_top1"]["sd"] == pytest.approx(0.1)
    assert other["minus_first"]["value"] == pytest.approx(-0.1)
    assert [test["only_first_right"] for test in other["mcnemar"]] == [1, 2], "run by run, as far as both have them"


def test_intervals_of_several_runs_hold_other_videos_and_other_seeds() -> None:
    # Each run is right on 400 videos drawn for itself, so both parts of the variance are known.
    rng, accuracies = np.random.default_rng(0), np.array([0.5, 0.6, 0.62, 0.7])
    (row,) = compare_accuracy(["a"], [[right_or_wrong((rng.random(400) < share).tolist()) for share in accuracies]])
    top1 = row["video_top1"]
    seeds, videos = top1["sd"] ** 2 / 4, (accuracies * (1 - accuracies)).mean() / (400 * 4)
    assert seeds > 5 * videos
    assert top1["high"] - top1["low"] == pytest.approx(2 * 1.96 * (seeds + videos) ** 0.5, rel=0.12)


def test_videos_that_one_network_has_right_and_another_wrong() -> None:
    a = right_or_wrong([True, True, False, False])
    b = [
        right_or_wrong(right)
        for right in ([True, False, True, False], [True, False, True, True], [True, False, False, True])
    ]
    found = changed_videos(["a", "b"], [[a], b])  # b has v3 right in two of three runs
    assert found["pairs"] == [{"right": "a", "a wrong": 0, "b wrong": 1}, {"right": "b", "a wrong": 2, "b wrong": 0}]
    assert [video["id"] for video in found["videos"]] == ["v1", "v2", "v3"], "the most even sides first"
    assert found["example"] == found["videos"][0]
    own, other = found["videos"][1]["networks"]
    assert (own["prediction"], own["score"], own["right"]) == ("1", pytest.approx(0.6), "no")
    assert (other["prediction"], other["right"]) == ("0", "2 of 3 runs")
    same = changed_videos(["a", "a again"], [[a], [a]])
    assert (same["videos"], same["example"]["id"]) == ([], "v0")


def test_predictions_of_different_tests_are_not_compared() -> None:
    other = right_or_wrong([True, False])
    other.labels[1] = 2
    with pytest.raises(DataError, match="b and a are of different tests: they label 'v1' differently"):
        compare_accuracy(["a", "b"], [[right_or_wrong([True, True])], [other]])
    fewer = right_or_wrong([True, True])
    fewer.averages = {name: scores[:, :2] for name, scores in fewer.averages.items()}
    with pytest.raises(DataError, match="b and a are of different tests: they have other classes"):
        compare_accuracy(["a", "b"], [[right_or_wrong([True, True])], [fewer]])
