"""Multi-view testing: every video is decoded once, cut into clips x crops views, and answered by their ensemble."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from gcvideo import distributed
from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import Failure, VideoViews, make_views
from gcvideo.eval.metrics import label_ranks, softmax
from gcvideo.eval.predictions import Predictions, VideoScores

VIEWS_PER_BATCH = 30  # on a GPU
LARGE_VIEW = 8 * 224 * 224  # T x H x W from which a CPU's caches hold one view's activations and no more


def evaluate(
    model: nn.Module,
    loader: Iterable[VideoViews],
    *,
    test: TestConfig,
    data: DataConfig,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    finished: Sequence[VideoScores] = (),
    on_video: Callable[[VideoScores | Failure], None] | None = None,
) -> Predictions:
    """Answer every video of a loader; under torchrun, every process returns the answers of all of them.

    Views are put through the network ``test.views_per_batch`` at a time, whichever videos they come from. Each batch
    has that very size (the last one is filled up), and the views of a video are summed in their own order in
    float64, so that neither the number of workers nor the company a video has in its batch bears on its scores.

    Args:
        model: maps clips (N, 3, T, H, W), float, to logits (N, K).
        loader: this process's share of the videos, from ``gcvideo.data.loader.eval_loader``.
        precision: ``bf16`` runs a float32 model under autocast; a model that is bfloat16 itself needs nothing.
        finished: answers of an earlier run that was cut off (this process's share); the loader must skip them.
        on_video: called with each video's scores, or its failure, as soon as they are known.
    """
    videos = list(finished)
    failures: list[Failure] = []
    for _, answer in answer_videos(model, loader, test=test, data=data, device=device, precision=precision):
        if isinstance(answer, VideoScores):
            videos.append(answer)
        else:
            failures.append(answer)
        if on_video is not None:
            on_video(answer)
    everything = distributed.gather_objects((videos, failures))
    return Predictions.collect(
        [video for part, _ in everything for video in part],
        ensemble=test.ensemble,
        failures=[failure for _, part in everything for failure in part],
    )


def answer_videos(
    model: nn.Module,
    loader: Iterable[VideoViews],
    *,
    test: TestConfig,
    data: DataConfig,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> Iterator[tuple[int, VideoScores | Failure]]:
    """The answers of this process's videos, one by one; for the arguments see ``evaluate``.

    Yields:
        the video's index, and its scores or why it could not be read.
    """
    device = torch.device(device)
    size = test.views_per_batch or views_per_batch(test, data, device)
    failed: list[tuple[int, Failure]] = []

    def readable() -> Iterator[VideoViews]:
        for video in loader:
            if video.failure is None:
                yield video
            else:
                failed.append((video.index, video.failure))

    was_training = model.training
    model.eval()
    try:
        batches = view_batches(readable(), size, device)
        for scores in _answer(_forward(model, batches, data=data, precision=precision)):
            yield scores.index, scores
            while failed:
                yield failed.pop(0)
        yield from failed
    finally:
        model.train(was_training)


def views_per_batch(test: TestConfig, data: DataConfig, device: torch.device) -> int:
    """How many views go through the network at a time where the config does not say.

    A GPU is filled. On a CPU the activations should stay in the caches: on a core with AMX, Slow-R50 on 8 x 256 x 256
    in bf16 took 1.16 times as long a view by threes, and 1.8 times by thirties, as one by one; in float32, on a core
    without, ones and threes were even. Small clips go by threes, since ATen keeps the convolutions of small single
    clips from oneDNN.
    """
    if device.type != "cpu":
        return VIEWS_PER_BATCH
    side = test.short_side if test.whole_frame else test.crop
    return 1 if data.frames * side**2 >= LARGE_VIEW else 3


@dataclass
class _Video:
    """A video on its way through the network: which of its views are still to come back."""

    views: VideoViews
    total: int
    logits: list[Tensor] = field(default_factory=list)


def view_batches(
    videos: Iterable[VideoViews], size: int, device: torch.device
) -> Iterator[tuple[Tensor, list[tuple[_Video, int]]]]:
    """Cut the views of one video after the other into batches.

    Yields:
        clips uint8 (``size``, C, T, h, w) on the device, and how many of them in turn belong to which video. The very
        last batch is filled up with copies of its first view; a batch cut short by views of another shape (whole
        frames of another video) is not.
    """
    parts: list[Tensor] = []
    owners: list[tuple[_Video, int]] = []
    room = size
    for views in videos:
        video = _Video(views, total=len(views.clips) * len(views.crops))
        on_device = views._replace(frames=views.frames.to(device, non_blocking=True))
        start = 0
        while start < video.total:
            stop = min(start + room, video.total)
            part = make_views(on_device, range(start, stop))  # (V, C, T, h, w)
            if parts and part.shape[1:] != parts[0].shape[1:]:
                yield torch.cat(parts), owners
                parts, owners, room = [], [], size
                continue
            parts.append(part)
            owners.append((video, stop - start))
            room -= stop - start
            start = stop
            if room == 0:
                yield _fill(parts, size), owners
                parts, owners, room = [], [], size
    if parts:
        yield _fill(parts, size), owners


def _fill(parts: list[Tensor], size: int) -> Tensor:
    missing = size - sum(len(part) for part in parts)
    return torch.cat([*parts, parts[0][:1].expand(missing, *parts[0].shape[1:])]) if missing else torch.cat(parts)


def _forward(
    model: nn.Module, batches: Iterable[tuple[Tensor, list[tuple[_Video, int]]]], *, data: DataConfig, precision: str
) -> Iterator[tuple[Tensor, list[tuple[_Video, int]]]]:
    """Logits (N, K) float32 on the CPU of each batch.

    A GPU's are handed out one batch late: only then are they waited for, so that it always has work ahead.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    under_way: deque[tuple[Tensor, list[tuple[_Video, int]]]] = deque()
    for clips, owners in batches:
        mixed = precision == "bf16" and dtype == torch.float32
        with torch.no_grad(), torch.autocast(clips.device.type, torch.bfloat16, enabled=mixed):
            logits = model(normalize(clips, mean=data.mean, std=data.std, dtype=dtype))
        under_way.append((logits, owners))
        if len(under_way) > 1 or clips.device.type == "cpu":
            logits, owners = under_way.popleft()
            yield logits.float().cpu(), owners
    for logits, owners in under_way:
        yield logits.float().cpu(), owners


def _answer(outputs: Iterable[tuple[Tensor, list[tuple[_Video, int]]]]) -> Iterator[VideoScores]:
    """Hand the logits back to their videos; a video is answered once all its views are there."""
    for logits, owners in outputs:
        start = 0
        for video, count in owners:
            video.logits.append(logits[start : start + count])
            start += count
            if sum(map(len, video.logits)) == video.total:
                yield ensemble_views(video.views, torch.cat(video.logits).numpy())


@np.errstate(invalid="ignore")  # infinity - infinity: callers count the scores that are no numbers
def ensemble_views(video: VideoViews, logits: np.ndarray) -> VideoScores:
    """Make one answer of the views of a video, in each of the three customary ways.

    ``softmax`` and ``logits`` are means over the views (mmaction2 calls them ``prob`` and ``score``); ``max`` is the
    largest softmax score of any view (PySlowFast's ``DATA.ENSEMBLE_METHOD: max``).

    Args:
        logits: (V, K).
    """
    precise = logits.astype(np.float64)
    scores = softmax(precise)
    ranks = label_ranks(logits, np.full(len(logits), video.label)) if video.label >= 0 else np.full(len(logits), 5)
    return VideoScores(
        index=video.index,
        id=video.id,
        label=video.label,
        views=len(logits),
        clip_top1=int((ranks < 1).sum()),
        clip_top5=int((ranks < 5).sum()),
        softmax=scores.mean(axis=0).astype(np.float32),
        logits=precise.mean(axis=0).astype(np.float32),
        max=scores.max(axis=0).astype(np.float32),
    )
