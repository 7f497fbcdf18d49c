"""Multi-view evaluation: decode each video once, cut clips x crops views, and average the scores of the views."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gcvideo import distributed
from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import VideoViews, make_views
from gcvideo.data.records import Failure
from gcvideo.device import has_streams
from gcvideo.eval.metrics import label_ranks, sigmoid, softmax
from gcvideo.eval.predictions import Predictions, VideoScores

VIEWS_PER_BATCH = 30  # on a GPU
LARGE_VIEW = 8 * 224 * 224  # T x H x W from which a CPU's caches hold one view's activations and no more


def evaluate(
    model: nn.Module,
    loader: Iterable[VideoViews],
    *,
    test: TestConfig,
    data: DataConfig,
    precision: str = "fp32",
    multi_label: bool = False,
    finished: Sequence[VideoScores] = (),
    on_video: Callable[[VideoScores | Failure], None] | None = None,
) -> Predictions:
    """Score every video of a loader; under torchrun, every process returns the predictions of all processes.

    Args:
        model: maps clips (N, C, T, H, W), float, to logits (N, K); the views are moved to its device.
        loader: this process's share of the videos, from ``gcvideo.data.loader.eval_loader``.
        precision: ``bf16`` runs a float32 model under autocast; a model that is bfloat16 itself needs nothing.
        multi_label: scores are sigmoids, as ``model.multi_label`` says.
        finished: scores from an earlier, interrupted run (this process's share); the loader must skip these videos.
        on_video: called with each video's scores, or its failure, as soon as they are known.
    """
    videos = list(finished)
    failures: list[Failure] = []
    for views, logits in view_outputs(model, loader, test=test, data=data, precision=precision):
        found = views.failure or ensemble_views(views, logits, multi_label=multi_label)
        if isinstance(found, VideoScores):
            videos.append(found)
        else:
            failures.append(found)
        if on_video is not None:
            on_video(found)
    own = Predictions.collect(videos, ensemble=test.ensemble, failures=failures)
    return Predictions.join(distributed.gather_objects(own))  # of arrays, which pickle as fast as memory is copied


def view_outputs(
    model: nn.Module,
    loader: Iterable[VideoViews],
    *,
    test: TestConfig,
    data: DataConfig,
    precision: str = "fp32",
    lag: int = 1,
) -> Iterator[tuple[VideoViews, np.ndarray]]:
    """What a network says of each view of the videos, in the loader's order; for the arguments see ``evaluate``.

    Views go through the network ``test.views_per_batch`` at a time, across the boundaries of videos. Every batch has
    that size; the last one is padded.

    Args:
        model: maps clips (N, C, T, H, W) to an output (N, ...) of any shape.
        lag: batches that a GPU may be behind, so that it always has work; 0 gives each video as soon as it is known.

    Yields:
        a video and the outputs of its views, float32 (V, ...); none for a video that could not be read.
    """
    device, dtype = next(((p.device, p.dtype) for p in model.parameters()), (torch.device("cpu"), torch.float32))
    size = test.views_per_batch or views_per_batch(test, data, device)
    mixed = precision == "bf16" and dtype == torch.float32
    lag = 0 if device.type == "cpu" else lag
    waiting = deque[VideoViews]()  # videos whose outputs have not all come back
    rows: list[Tensor] = []  # the outputs of their views that have
    pending: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        for clips, count in view_batches(loader, size, device, waiting):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                pending.append(model(normalize(clips, mean=data.mean, std=data.std, dtype=dtype))[:count])
            if len(pending) > lag:
                rows += pending.pop(0).float().cpu()
                yield from _finished_videos(waiting, rows)
        for outputs in pending:
            rows += outputs.float().cpu()
        yield from _finished_videos(waiting, rows)
    finally:
        model.train(was_training)


def views_per_batch(test: TestConfig, data: DataConfig, device: torch.device) -> int:
    """Default batch size in views, where the config sets none.

    A GPU is filled. On a CPU the activations should fit the caches: on a core with AMX, Slow-R50 on 8 x 256 x 256
    in bf16 took 1.16 times as long a view by threes, and 1.8 times by thirties, as one by one; in float32, on a core
    without, ones and threes were even. Small clips go by threes, since ATen keeps the convolutions of small single
    clips from oneDNN.
    """
    if device.type != "cpu":
        return VIEWS_PER_BATCH
    side = test.short_side if test.whole_frame else test.crop
    return 1 if data.frames * side**2 >= LARGE_VIEW else 3


def view_batches(
    videos: Iterable[VideoViews], size: int, device: torch.device, waiting: deque[VideoViews]
) -> Iterator[tuple[Tensor, int]]:
    """Cut the views of one video after the other, which join those that wait for outputs, into batches.

    Yields:
        clips uint8 (N, C, T, h, w) on the device, and how many of them are views: the very last batch is padded to
        ``size`` with copies of its first view. A batch that is cut short by views of another shape (whole frames of
        another video) is not.
    """
    batch: list[Tensor] = []
    for views in videos:
        waiting.append(views)
        if views.failure is not None:
            continue
        on_device = views._replace(frames=views.frames.to(device, non_blocking=has_streams(device)))
        for view in make_views(on_device):  # (C, T, h, w)
            if batch and view.shape != batch[0].shape:
                yield torch.stack(batch), len(batch)
                batch = []
            batch.append(view)
            if len(batch) == size:
                yield torch.stack(batch), size
                batch = []
    if batch:
        yield torch.stack(batch + batch[:1] * (size - len(batch))), len(batch)


def _finished_videos(waiting: deque[VideoViews], rows: list[Tensor]) -> Iterator[tuple[VideoViews, np.ndarray]]:
    """Take the videos whose outputs are all there from the front, with these."""
    while waiting and len(rows) >= (count := len(waiting[0].clips) * len(waiting[0].crops)):
        own = torch.stack(rows[:count]).numpy() if count else np.empty(0, np.float32)
        del rows[:count]
        yield waiting.popleft(), own


@np.errstate(invalid="ignore")  # infinity - infinity: callers count the non-finite scores
def ensemble_views(video: VideoViews, logits: np.ndarray, *, multi_label: bool = False) -> VideoScores:
    """Ensemble the views of a video in the three customary ways.

    Views are averaged in their own order in float64, so scores do not depend on the number of workers or on the other
    videos in the batch.

    ``softmax`` and ``logits`` are means over the views (mmaction2 calls them ``prob`` and ``score``); ``max`` is the
    largest softmax score of any view (PySlowFast's ``DATA.ENSEMBLE_METHOD: max``).

    Args:
        logits: (V, K).
        multi_label: scores are sigmoids instead of a softmax.
    """
    precise = logits.astype(np.float64)
    scores = (sigmoid if multi_label else softmax)(precise)
    label, ranks = video.label, np.full(len(logits), 5)
    if isinstance(label, int) and label >= 0:
        ranks = label_ranks(logits, np.full(len(logits), label))
        label = (label,) if multi_label else label
    return VideoScores(
        index=video.index,
        id=video.id,
        label=label,
        views=len(logits),
        clip_top1=int((ranks < 1).sum()),
        clip_top5=int((ranks < 5).sum()),
        softmax=scores.mean(axis=0).astype(np.float32),
        logits=precise.mean(axis=0).astype(np.float32),
        max=scores.max(axis=0).astype(np.float32),
    )
