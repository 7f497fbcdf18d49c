"""Multi-view evaluation: ensembling, batching, failures, journal. Independent arithmetic, no decoding."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.dataset import VideoViews
from gcvideo.data.records import Failure
from gcvideo.errors import DataError
from gcvideo.eval.evaluator import evaluate, view_batches, view_outputs, views_per_batch
from gcvideo.eval.metrics import label_ranks
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.files import Journal

CLASSES = 7
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
DATA = DataConfig(frames=2, stride=1, crop=8, short_side=(8, 8), mean=MEAN, std=STD)


class SmallNet(nn.Module):
    """A linear layer over the pixels of 2 frames of 8 x 8; keeps the batch sizes it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 2 * 8 * 8, CLASSES)
        self.batches: list[int] = []
        self.modes: list[bool] = []

    def forward(self, clips: Tensor) -> Tensor:
        self.batches.append(len(clips))
        self.modes.append(self.training)
        return self.linear(clips.flatten(1)) * 8


def video(index: int, *, clips: int = 3, crops: int = 2, label: int | None = None) -> VideoViews:
    generator = torch.Generator().manual_seed(index)
    frames = torch.randint(0, 256, (3, 6, 8, 16), generator=generator, dtype=torch.uint8)
    positions = torch.arange(2)[None] + 2 * torch.arange(clips)[:, None] % 5
    boxes = torch.tensor([[0, 4 * k, 8, 8] for k in range(crops)])
    return VideoViews(frames, positions, boxes, index % CLASSES if label is None else label, index, f"v{index}", None)


def broken(index: int) -> VideoViews:
    empty = torch.zeros(3, 0, 0, 0, dtype=torch.uint8)
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    failure = Failure(f"v{index}", f"/videos/{index}.mp4", "no video stream")
    return VideoViews(empty, nothing, nothing, 0, index, f"v{index}", failure)


def run(videos: list[VideoViews], **options: object) -> Predictions:
    test = TestConfig(clips=3, crops=1, short_side=8, crop=8, **options)  # type: ignore[arg-type]
    return evaluate(SmallNet(), videos, test=test, data=DATA)


def expected_logits(views: VideoViews) -> np.ndarray:
    """One view after the other through the network, cut out by plain indexing."""
    net = SmallNet()
    rows = []
    for clip in views.clips:
        for top, left, height, width in views.crops.tolist():
            pixels = views.frames[:, clip, top : top + height, left : left + width].float() / 255
            mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
            rows.append(net(((pixels - mean) / std)[None])[0])
    return torch.stack(rows).detach().double().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("ensemble", "combine"),
    [
        ("softmax", lambda logits: softmax(logits).mean(0)),
        ("logits", lambda logits: logits.mean(0)),
        ("max", lambda logits: softmax(logits).max(0)),
    ],
)
def test_scores_are_the_ensemble_of_single_views(ensemble, combine):
    videos = [video(i) for i in range(5)]
    result = run(videos, ensemble=ensemble, views_per_batch=4)
    for row, views in enumerate(videos):
        np.testing.assert_allclose(result.scores[row], combine(expected_logits(views)), rtol=2e-5, atol=1e-6)
    assert result.ids == [f"v{i}" for i in range(5)]
    assert result.views.tolist() == [6] * 5


def test_clip_and_video_accuracy_are_counted_apart():
    videos = [video(i) for i in range(20)]
    result = run(videos)
    logits = [expected_logits(v) for v in videos]
    labels = [v.label for v in videos]
    clip_hits = [(view.argmax() == label) for rows, label in zip(logits, labels, strict=True) for view in rows]
    video_hits = [softmax(rows).mean(0).argmax() == label for rows, label in zip(logits, labels, strict=True)]
    accuracy = result.accuracy()
    assert accuracy["clip"]["top1"] == pytest.approx(np.mean(clip_hits))
    assert accuracy["video"]["top1"] == pytest.approx(np.mean(video_hits))
    in_five = [label in np.argsort(-softmax(r).mean(0))[:5] for r, label in zip(logits, labels, strict=True)]
    assert accuracy["video"]["top5"] == pytest.approx(np.mean(in_five))


def test_clip_accuracy_is_over_views_and_not_over_videos():
    nothing = np.zeros(CLASSES, np.float32)
    videos = [
        VideoScores(i, f"v{i}", 0, views, right, views, *[nothing] * 3)
        for i, (views, right) in enumerate([(3, 3), (1, 0)])
    ]
    assert Predictions.collect(videos).accuracy()["clip"] == {"top1": 3 / 4, "top5": 1}


@pytest.mark.parametrize("size", [1, 2, 4, 6, 7, 50])
def test_scores_do_not_depend_on_the_batch_size(size):
    videos = [video(i, clips=1 + i % 3) for i in range(6)]
    np.testing.assert_allclose(run(videos, views_per_batch=size).scores, run(videos).scores, atol=1e-6)


def test_every_batch_has_the_same_size_and_company_changes_nothing():
    model = SmallNet()
    test = TestConfig(clips=3, crops=1, short_side=8, crop=8, views_per_batch=4)
    together = evaluate(model, [video(i) for i in range(3)], test=test, data=DATA)
    assert model.batches == [4] * 5  # 18 views, the fifth batch filled up
    alone = evaluate(model, [video(2)], test=test, data=DATA)
    assert np.array_equal(alone.scores[0], together.scores[2])


def test_views_of_another_shape_start_a_new_batch():
    wide = video(1, clips=2, crops=1)._replace(crops=torch.tensor([[0, 0, 8, 16]]))
    shapes = [tuple(b.shape) for b, _ in view_batches([video(0, crops=1), wide], 8, torch.device("cpu"), deque())]
    assert shapes == [(3, 3, 2, 8, 8), (8, 3, 2, 8, 16)]


def test_a_video_that_cannot_be_read_is_named_and_not_scored():
    seen: list[object] = []
    test = TestConfig(clips=3, crops=1, short_side=8, crop=8)
    result = evaluate(SmallNet(), [video(0), broken(1), video(2)], test=test, data=DATA, on_video=seen.append)
    assert result.ids == ["v0", "v2"]
    assert [tuple(f) for f in result.failures] == [("v1", "/videos/1.mp4", "no video stream")]
    assert sorted(item.id for item in seen) == ["v0", "v1", "v2"]  # type: ignore[attr-defined]
    accuracy = result.accuracy()
    assert accuracy["video_of_all"]["top5"] == pytest.approx(accuracy["video"]["top5"] * 2 / 3)


@pytest.mark.parametrize("unreadable", [(), (0,), (5,), (1, 2, 5), (0, 1, 2, 3, 4, 5)])
@pytest.mark.parametrize("size", [1, 4, 6, 50])
def test_results_come_in_the_order_of_the_loader(unreadable, size):
    videos = [broken(i) if i in unreadable else video(i) for i in range(6)]
    test = TestConfig(clips=3, crops=1, short_side=8, crop=8, views_per_batch=size)
    found = list(view_outputs(SmallNet(), videos, test=test, data=DATA))
    assert [views.id for views, _ in found] == [f"v{i}" for i in range(6)]
    assert [i for i, (views, _) in enumerate(found) if views.failure] == list(unreadable)


def test_predictions_of_several_networks_are_averaged():
    one = run([video(i) for i in range(4)])
    other = replace(one, averages={name: scores[::-1] for name, scores in one.averages.items()})
    both = Predictions.average([one, other], names=["a", "b"])
    np.testing.assert_allclose(both.scores, (one.scores + other.scores) / 2)
    assert both.scores.dtype == np.float32
    assert both.views.tolist() == [12] * 4
    assert both.accuracy()["clip"] == one.accuracy()["clip"]
    assert np.array_equal(Predictions.average([one], names=["a"]).scores, one.scores)


@pytest.mark.parametrize("change", [{"ids": ["v0", "w"]}, {"labels": np.array([0, 3])}, {"classes": ["a", "b"]}])
def test_predictions_of_other_videos_or_classes_are_not_averaged(change):
    one = run([video(0), video(1)])
    with pytest.raises(DataError, match="are of different tests"):
        Predictions.average([one, replace(one, **change)], names=["a", "b"])


def test_nothing_readable_gives_an_empty_result():
    result = run([broken(0)])
    assert len(result) == 0
    assert result.accuracy() == {}


def test_unlabelled_videos_are_answered_but_not_counted():
    result = run([video(0), video(1, label=-1)])
    assert len(result) == 2
    assert result.accuracy() == run([video(0)]).accuracy()


def test_the_model_is_tested_in_eval_mode_and_given_back_as_it_was():
    model = SmallNet().train()
    evaluate(model, [video(0)], test=TestConfig(clips=3, short_side=8, crop=8), data=DATA)
    assert model.training
    assert not any(model.modes)


def test_equal_scores_rank_in_the_order_of_the_classes():
    scores = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.0, 0.0, 0.0]])
    assert label_ranks(scores, np.array([0, 1, 2])).tolist() == [0, 1, 2]


def test_predictions_survive_a_round_trip(tmp_path):
    result = run([video(0), broken(1), video(2)], ensemble="logits")
    result.classes = ["<script>", 'quo"te', "new\nline", "\u202ertl", "e", "f", "g"]
    result.paths = ["a b.mp4", "ü" * 200]
    result.info = {"fingerprint": "abc"}
    result.save(tmp_path / "predictions.npz")
    again = Predictions.load(tmp_path / "predictions.npz")
    assert again.ids == result.ids == Predictions.load(tmp_path).ids  # the folder of a run stands for its file
    assert again.failures == result.failures
    assert again.classes == result.classes
    assert again.paths == result.paths
    assert again.info["fingerprint"] == "abc"
    assert np.array_equal(again.scores, result.scores)
    assert again.accuracy() == result.accuracy()
    stored = np.load(tmp_path / "predictions.npz")  # no pickles inside
    assert np.array_equal(stored["scores"], result.scores)


def test_a_file_that_is_no_predictions_is_refused_in_one_line(tmp_path):
    for content in (b"", b"hello", b"PK\x03\x04 broken"):
        (tmp_path / "p.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"p\.npz: not a predictions\.npz") as caught:
            Predictions.load(tmp_path / "p.npz")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="No such file"):
        Predictions.load(tmp_path / "absent.npz")


def test_a_killed_test_keeps_its_finished_videos(tmp_path):
    def until_killed() -> Iterator[VideoViews]:
        yield from (video(i) for i in range(4))
        raise KeyboardInterrupt

    test = TestConfig(clips=3, crops=1, short_side=8, crop=8, views_per_batch=6)
    journal = Journal(tmp_path / "parts", {})
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            SmallNet(),
            until_killed(),
            test=test,
            data=DATA,
            on_video=lambda scores: journal.add(str(scores.index), scores.to_row()),
        )
    finished = [VideoScores.from_row(row) for row in Journal(tmp_path / "parts", {}).rows()]
    assert [v.index for v in finished] == [0, 1, 2, 3]
    rest = [video(i) for i in range(4, 6)]
    resumed = evaluate(SmallNet(), rest, test=test, data=DATA, finished=finished)
    whole = evaluate(SmallNet(), [video(i) for i in range(6)], test=test, data=DATA)
    assert resumed.ids == whole.ids
    for name in ("softmax", "logits", "max"):
        assert np.array_equal(resumed.averages[name], whole.averages[name])
    assert resumed.accuracy() == whole.accuracy()


@pytest.mark.parametrize("where", [0, 3, slice(None)])  # the label, another class, all of them
def test_a_score_that_is_no_number_makes_its_row_wrong(where):
    scores = np.array([[5.0, 1, 1, 1], [5, 1, 1, 1]])
    scores[1, where] = np.nan
    ranks = label_ranks(scores, np.array([0, 0]))
    assert ranks[0] == 0
    assert ranks[1] >= 5  # not among the best five either, though there are but four classes


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_videos_whose_scores_are_no_numbers_are_counted_and_wrong(value):
    net = SmallNet()
    net.register_forward_hook(lambda module, clips, logits: logits * (value if len(net.batches) == 2 else 1))
    videos = [video(i, label=0) for i in range(3)]
    result = evaluate(net, videos, test=TestConfig(clips=3, crops=1, views_per_batch=6), data=DATA)
    assert result.count_non_finite() == 1
    assert result.accuracy()["video"]["top5"] <= 2 / 3
    assert Predictions.collect([]).count_non_finite() == 0


def test_a_gpu_is_filled_and_a_cpu_keeps_large_views_apart():
    large, small = DataConfig(frames=8), DataConfig(frames=4)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert views_per_batch(TestConfig(short_side=256, crop=256), large, gpu) >= 10
    assert views_per_batch(TestConfig(short_side=256, crop=256), large, cpu) == 1
    assert views_per_batch(TestConfig(short_side=112, crop=112), large, cpu) == 3
    assert views_per_batch(TestConfig(short_side=256, crop=112), small, cpu) == 3
    assert views_per_batch(TestConfig(short_side=256, crop=112, whole_frame=True), large, cpu) == 1
