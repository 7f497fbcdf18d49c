"""Metrics of several labels a video against independent implementations; their targets, loss and mixing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gcvideo.config import TestConfig, config_from_dict
from gcvideo.data.dataset import ClipBatch, VideoViews
from gcvideo.errors import ConfigError, DataError
from gcvideo.eval.evaluator import ensemble_views
from gcvideo.eval.metrics import TrainMeter, score_classes, sigmoid
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.eval.scoring import details
from gcvideo.train.step import TrainStep, binary_cross_entropy, multi_hot
from tests.training import train_config

CPU = torch.device("cpu")


def videos(scores: np.ndarray, truth: np.ndarray) -> list[VideoScores]:
    sets = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    return [
        VideoScores(i, f"v{i}", each, 1, 0, 0, row, np.log(row / (1 - row)), row)
        for i, (each, row) in enumerate(zip(sets, scores.astype(np.float32), strict=True))
    ]


def draw(seed: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((60, 5)) < [0.5, 0.1, 0.3, 0.02, 0.0]
    truth[0, :4] = True
    scores = np.clip(0.4 * truth + rng.random((60, 5)), 0.01, 1.39) / 1.4
    return (scores.round(1) if ties else scores).astype(np.float32), truth


@pytest.mark.slow  # the import of torchmetrics
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_brute_force_and_of_torchmetrics(ties: bool) -> None:
    from torchmetrics.functional.classification import multilabel_average_precision

    for seed in range(3):
        scores, truth = draw(seed, ties=ties)
        found, _ = score_classes(scores, truth)
        for k in range(4):  # the sum over all thresholds of the step in recall times the precision
            area, recall = 0.0, 0.0
            for limit in sorted({*scores[:, k].tolist()}, reverse=True):
                given = scores[:, k] >= limit
                hits = (given & truth[:, k]).sum()
                area += (hits / truth[:, k].sum() - recall) * hits / given.sum()
                recall = hits / truth[:, k].sum()
            assert found[k] == pytest.approx(area, rel=1e-12)
        theirs = multilabel_average_precision(torch.tensor(scores), torch.tensor(truth).long(), 5, average="none")
        np.testing.assert_allclose(found[:4], theirs[:4].numpy(), rtol=1e-5)
        assert np.isnan(found[4])


def test_a_threshold_gives_the_best_f1_of_its_class() -> None:
    scores, truth = draw(7, ties=True)
    _, limits = score_classes(scores, truth)

    def f1(limit: float, k: int) -> float:
        given = scores[:, k].astype(np.float64) > limit
        return float(2 * (given & truth[:, k]).sum() / (given.sum() + truth[:, k].sum()))

    for k in range(4):
        assert f1(limits[k], k) == max(f1(limit, k) for limit in (-1.0, *scores[:, k].tolist()))
        assert limits[k] not in scores[:, k]
    assert limits[4] == 0.5


def test_mean_average_precision_stands_beside_chance(tmp_path: Path) -> None:
    scores, truth = draw(1)
    predictions = Predictions.collect(videos(scores, truth))
    assert (predictions.labels.dtype, predictions.multi_label) == (np.int8, True)
    found = predictions.accuracy()["video"]
    assert found["mAP"] == pytest.approx(np.nanmean(score_classes(scores, truth)[0]))
    assert found["chance"] == pytest.approx(truth[:, :4].mean())
    rows = details(predictions)["per_class"]
    assert [row["class"] for row in rows] == ["0", "1", "2", "3"]
    limits = np.full(5, 0.5)
    at = details(predictions, thresholds=limits)
    given = scores[:, 0] > 0.5
    assert at["per_class"][0]["precision"] == pytest.approx((given & truth[:, 0]).sum() / given.sum())
    assert at["per_class"][0]["recall"] == pytest.approx((given & truth[:, 0]).sum() / truth[:, 0].sum())
    assert at["mean_f1"] == pytest.approx(np.mean([row["f1"] for row in at["per_class"]]))
    loss = torch.nn.functional.binary_cross_entropy(torch.tensor(scores), torch.tensor(truth).float())
    assert at["loss"] == pytest.approx(float(loss), rel=1e-5)
    predictions.ensemble = "logits"  # scores are logits then, thresholds are not
    for row, same in zip(details(predictions, thresholds=limits)["per_class"], at["per_class"], strict=True):
        figures = ("ap", "threshold", "precision", "recall", "f1")
        assert [row[key] for key in figures] == pytest.approx([same[key] for key in figures], rel=1e-5)
    predictions.save(tmp_path / "predictions.npz")
    again = Predictions.load(tmp_path / "predictions.npz")
    assert details(again) == details(predictions)
    assert Predictions.average([again, again], names=["a", "b"]).accuracy() == predictions.accuracy()


def test_scores_at_random_reach_about_chance() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((4000, 3)) < [0.1, 0.3, 0.6]
    found = Predictions.collect(videos(rng.random((4000, 3)), truth)).accuracy()["video"]
    assert found["mAP"] == pytest.approx(found["chance"], abs=0.02)


def test_videos_of_unknown_labels_are_left_out_and_of_none_count() -> None:
    scores, truth = draw(2)
    known = videos(scores, truth)
    unknown = [VideoScores(60 + i, f"u{i}", -1, 1, 0, 0, *[scores[i]] * 3) for i in range(3)]
    both = Predictions.collect([*known, *unknown])
    assert both.known.tolist() == [True] * 60 + [False] * 3
    assert both.accuracy() == Predictions.collect(known).accuracy()
    assert Predictions.collect(unknown).accuracy() == {}
    alone = [video for video in known if video.label == ()]
    assert Predictions.collect(alone).accuracy() == {}  # no class has a video, so there is no average precision


def test_networks_tested_on_other_labels_are_not_averaged() -> None:
    scores, truth = draw(3)
    first, second = (Predictions.collect(videos(scores, truth)) for _ in range(2))
    second.labels[4, 1] = 1 - second.labels[4, 1]
    with pytest.raises(DataError, match="they label 'v4' differently"):
        Predictions.average([first, second], names=["a", "b"])


def test_scores_are_sigmoids_and_the_journal_keeps_sets() -> None:
    frames, crops = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, 4, dtype=torch.int64)
    clips = torch.zeros(2, 1, dtype=torch.int64)
    logits = np.array([[0.0, 4.0, -4.0], [1.0, 2.0, -90.0]], np.float32)
    for label, kept in (((0, 2), [0, 2]), (1, [1]), (-1, -1), ((), [])):
        found = ensemble_views(VideoViews(frames, clips, crops, label, 0, "a", None), logits, multi_label=True)
        want = torch.tensor(logits).sigmoid()
        np.testing.assert_allclose(found.softmax, want.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.max, want.amax(0), rtol=1e-6)
        again = VideoScores.from_row(found.to_row())
        assert (list(again.label) if isinstance(again.label, tuple) else again.label) == kept
    np.testing.assert_allclose(sigmoid(np.array([-800.0, 0.0, 800.0])), [0, 0.5, 1])


def test_targets_and_loss_are_those_of_the_formula() -> None:
    targets = multi_hot(torch.tensor([[0, 2, -1], [-1, -1, -1], [1, -1, -1]]), 3)
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert multi_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    logits = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0], [0.1, 0.2, 0.3]])
    p, y = 1 / (1 + np.exp(-logits.numpy())), 0.9 * targets.numpy() + 0.05
    want = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert float(binary_cross_entropy(logits, targets, label_smoothing=0.1)) == pytest.approx(want, rel=1e-6)
    meter = TrainMeter(CPU)
    meter.add(0, torch.tensor(1.0), logits, torch.tensor([[0, 2], [-1, -1], [0, -1]]))
    assert meter.read()["top1"] == pytest.approx(1 / 3)


def test_mixed_clips_have_mixed_sets(tmp_path: Path) -> None:
    model = {"arch": "tests.own_parts:tiny_net", "context": {"kind": "none", "stages": {}}, "multi_label": True}
    step = TrainStep(train_config(tmp_path, model=model, data={"augment": {"mixup": 1.0, "mix_chance": 1.0}}), CPU)
    seen: list[torch.Tensor] = []
    step.loss = lambda logits, targets: seen.append(targets) or logits.sum()  # type: ignore[func-returns-value]
    clips = torch.zeros(3, 3, 4, 32, 32, dtype=torch.uint8)
    step._forward(*step._inputs(ClipBatch(clips, torch.tensor([[0, 1], [-1, -1], [3, -1]]), torch.arange(3), []))[:2])
    (targets,) = seen
    own = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    share = targets[0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(targets, share * own + (1 - share) * own.roll(1, 0))


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("data", {"augment": {"class_balanced": True}}, "data.augment.class_balanced"),
        ("train", {"class_weights": "balanced"}, "train.class_weights"),
        ("train", {"focal": 2.0}, "train.focal"),
    ],
)
def test_what_is_made_for_one_label_is_refused(section, values, key) -> None:
    config = {"name": "run", "model": {"multi_label": True}, section: values}
    with pytest.raises(ConfigError, match=f"{key}: is for one label a video"):
        config_from_dict(config, where="the test")
    config["model"] = {"multi_label": False}
    assert config_from_dict(config, where="the test").test == TestConfig()
