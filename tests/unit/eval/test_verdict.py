"""The verdict: intervals, learned or not, labels that look wrong, and its words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.eval.scoring import judge
from gcvideo.report.page import render

CLASSES = ["a", "b", "c", "d"]


def predictions(labels: list[int], predicted: list[int], *, start: int = 0, sure: float = 0.9) -> Predictions:
    scores = np.full((len(labels), 4), (1 - sure) / 3, np.float32)
    scores[np.arange(len(labels)), predicted] = sure
    videos = [
        VideoScores(i, str(start + i), label, 1, int(label == best), 1, own, own, own)
        for i, (label, best, own) in enumerate(zip(labels, predicted, scores, strict=True))
    ]
    found = Predictions.collect(videos)
    found.classes, found.paths = CLASSES, [f"/{id_}.mp4" for id_ in found.ids]
    return found


def judged(test: Predictions, check: Predictions) -> dict[str, Any]:
    return judge(test, [test], check)


def words(verdict: dict[str, Any], **values: Any) -> str:
    given = {
        "counts": dict.fromkeys(CLASSES, 9),
        "minutes": 30,
        "short": False,
        "folds": 0,
        "test": None,
        "grouped": "x",
        "plan": SimpleNamespace(config=SimpleNamespace(data=SimpleNamespace(stride=4))),
    }
    return render("fit.txt.j2", v=verdict, **{**given, "seconds": 2.0, "run": "runs/mine", **values})


@pytest.mark.parametrize(
    ("right", "learned", "said"),
    [(36, True, "LEARNED: "), (13, False, "not certain"), (10, False, "not learned"), (0, False, "not learned")],
)
def test_learned_is_above_chance_by_more_than_luck(right: int, learned: bool, said: str) -> None:
    labels = [0, 1, 2, 3] * 10
    best = [label if i < right else (label + 1) % 4 for i, label in enumerate(labels)]
    verdict = judged(predictions(labels, best), predictions(labels, labels))
    assert (verdict["learned"], verdict["chance"], verdict["largest_class"]) == (learned, 0.25, 0.25)
    lines = words(verdict).splitlines()
    assert any(line.startswith(said) for line in lines)
    assert lines[-1] == "use it: gcvideo predict NEW_VIDEOS --checkpoint runs/mine --html page.html"


def test_a_class_that_is_most_of_the_videos_is_what_must_be_beaten() -> None:
    labels = [0] * 36 + [1, 2, 3, 1]
    verdict = judged(predictions(labels, [0] * 40), predictions(labels, labels))
    assert (verdict["accuracy"], verdict["learned"]) == (0.9, False)


def test_folds_are_joined() -> None:
    one, two = predictions([0, 1, 2, 3], [0, 1, 2, 3]), predictions([0, 1, 2, 3], [1, 1, 1, 1], start=4)
    joined = judge(Predictions.join([one, two]), [one, two], one)
    assert (joined["videos"], joined["accuracy"], joined["by_run"]) == (8, 0.625, [1.0, 0.25])
    assert "2 folds: 100.0 %, 25.0 %; mean 62.5 %, standard deviation 53.0 %" in words(joined, folds=2)


def test_confident_disagreements_are_suspects_in_both_parts() -> None:
    labels = [0, 1, 2, 3] * 10
    test = predictions(labels, [1, *labels[1:]])
    check = predictions(labels, [*labels[:-1], 0], start=100)
    verdict = judged(test, check)
    assert [(row["id"], row["class"], row["taken_for"], row["part"]) for row in verdict["suspects"]] == [
        ("0", "a", "b", "held out"),
        ("139", "d", "a", "trained on"),
    ]
    unsure = judged(predictions(labels, [1, *labels[1:]], sure=0.4), check)
    assert [row["id"] for row in unsure["suspects"]] == ["139"]
    assert "watch the 2 videos" in words(verdict)


def test_suspects_come_once_and_by_how_much_more_probable_another_class_is() -> None:
    labels = [0, 1, 2, 3] * 10
    test = predictions(labels, [1, *labels[1:]], sure=0.8)
    check = predictions(labels, [1, 2, *labels[2:]])  # the same videos, as after a cross-validation
    found = judged(test, check)["suspects"]
    assert [(row["id"], row["part"], round(row["factor"])) for row in found] == [
        ("1", "trained on", 27),
        ("0", "held out", 12),
    ]


def test_nothing_held_out_is_said() -> None:
    assert "NOT TESTED" in words(judge(None, [], predictions([0, 1], [0, 1])))


def test_advice_follows_the_numbers() -> None:
    labels = [0, 1, 2, 3] * 15
    best = [1 if label == 0 else label for label in labels]
    poor = judged(predictions(labels, best), predictions(labels, labels))
    assert "a: 0 % of 15 videos are correct, most others are taken for b" in words(poor)
    assert "it has only 2 to train on" in words(poor, counts={"a": 2, "b": 9, "c": 9, "d": 9})
    assert "more videos help most" in words(poor)
    assert "time was short" not in words(poor, short=True)  # it knows what it was trained on
    good = judged(predictions(labels, labels), predictions(labels, labels))
    assert "next: " not in words(good)
    assert "sub-folder" in words(good, grouped="")
    bad = judged(predictions(labels, [0] * 60), predictions(labels, [0] * 60))
    assert "--minutes 60" in words(bad, short=True)
    assert "does not even know" in words(bad)
    few = judged(predictions([0, 1], [0, 1]), predictions([0, 1], [0, 1]))
    assert "--folds 5" in words(few)
    assert "--folds" not in words(few, test="my/test.txt")  # which goes without --test
    assert "taken for" not in words(bad)  # nothing was learned, so single classes say nothing
