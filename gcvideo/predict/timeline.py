"""Timelines: a sliding window over a video of any length, and segments with one label each.

Only the frames of the current windows are kept, already resized, so an hour takes no more memory than a minute.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.crops import resize_short_side, view_boxes
from gcvideo.data.dataset import VideoViews
from gcvideo.data.sampling import uniform_clips
from gcvideo.video import StreamFrame

LIVE_WINDOWS = 1024  # so many windows of a live source are kept, the newest ones


class Window(NamedTuple):
    """Scores (K,) of a clip, and the first and last moment in it, in seconds."""

    start: float
    end: float
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a video with one label. Times in seconds; the score is the label's mean over the stretch."""

    start: float
    end: float
    label: str
    index: int
    score: float


class Timeline(NamedTuple):
    """Segments without gaps, the windows that they come from, and the seconds seen.

    ``problem`` says why the source broke off, None where it did not; ``dropped`` counts the frames of a live source
    that came too fast.
    """

    segments: list[Segment]
    windows: list[Window]
    duration: float
    problem: str | None
    dropped: int = 0


class SlidingWindows:
    """Cut a stream of frames into overlapping clips, each a ``VideoViews`` with one clip.

    A window spans as many frames as a training clip, and its frames are spaced as the test convention spaces them.
    The last window may reach past the end; the frames that it lacks are replaced by the last one before them, as
    PySlowFast does for short videos. Where frames are missing in between (their numbers jump), or their size changes,
    the next window begins behind the gap.

    Args:
        frames: in presentation order.
        fps: frames per second.
        step: seconds from one window to the next; by default half a window.
        data: length and stride of a clip.
        test: size, convention and crops of the views; its number of clips does not matter here.

    Attributes:
        duration: seconds seen so far, the length of the last frame included.
    """

    def __init__(
        self, frames: Iterable[StreamFrame], *, fps: float, step: float | None, data: DataConfig, test: TestConfig
    ) -> None:
        self.frames, self.test = frames, test
        speed = fps / data.target_fps if data.target_fps else 1.0
        span = max(1, math.ceil(data.frames * data.stride * speed))
        self.offsets = uniform_clips(span, data.frames, data.stride, 1, convention=test.convention, speed=speed)[0]
        self.hop = max(1, round(step * fps)) if step else max(1, span // 2)
        self.fps = fps
        self.count = 0
        self.duration = 0.0
        self._kept: dict[int, tuple[float, np.ndarray]] = {}

    def __iter__(self) -> Iterator[VideoViews]:
        wanted = np.unique(self.offsets)
        # First frame of the next window; first behind a gap; those behind the last one shown and the last one seen.
        start = origin = shown = end = 0
        for frame in self.frames:
            apart = frame.index != end
            self.duration, end = frame.time + 1 / self.fps, frame.index + 1
            late = frame.index - origin - wanted
            if apart or ((late >= 0) & (late % self.hop == 0)).any():
                resized = resize_short_side(frame.rgb()[None].copy(), self.test.short_side, self.test.convention)
                if apart or any(kept.shape[1:] != resized.shape[2:] for _, kept in self._kept.values()):
                    start = origin = shown = frame.index
                    self._kept = {}
                self._kept[frame.index] = frame.time, resized[:, 0].numpy()  # (3, H, W)
            if frame.index == start + wanted[-1]:
                yield self._window(start)
                shown, start = end, start + self.hop
                self._kept = {index: kept for index, kept in self._kept.items() if index >= start}
        if end > shown and self._kept:
            yield self._window(start)

    def _window(self, start: int) -> VideoViews:
        available = np.array(sorted(index for index in self._kept if index >= start))
        places = np.searchsorted(available, start + self.offsets, side="right") - 1
        chosen = available[np.maximum(places, 0)]
        unique, positions = np.unique(chosen, return_inverse=True)
        times, pictures = zip(*(self._kept[index] for index in unique), strict=True)
        self.count += 1
        frames = torch.from_numpy(np.stack(pictures, axis=1))  # (3, U, H, W)
        crops = torch.from_numpy(view_boxes(frames.shape[2], frames.shape[3], self.test))
        clips = torch.from_numpy(positions)[None]
        spans = torch.tensor([[times[0], times[-1] + 1 / self.fps]], dtype=torch.float64)
        return VideoViews(frames, clips, crops, -1, self.count - 1, str(self.count - 1), None, spans)


def make_timeline(
    windows: Sequence[Window],
    classes: Sequence[str],
    *,
    duration: float,
    start: float = 0.0,
    smooth: float = 0.0,
    min_length: float = 0.0,
) -> list[Segment]:
    """Turn the scores of overlapping windows into segments without gaps or overlaps, from ``start`` to ``duration``.

    Each window speaks for the time nearer to its middle than to any other's. Scores are averaged over the windows
    within ``smooth / 2`` seconds, neighbours with the same best label become one segment, and, the shortest first,
    segments under ``min_length`` join the neighbour whose label scores higher in them.
    """
    middles = np.array([(window.start + window.end) / 2 for window in windows])
    edges = np.concatenate([[start], (middles[1:] + middles[:-1]) / 2, [duration]])
    scores = np.stack([window.scores for window in windows]).astype(np.float64)
    first = np.searchsorted(middles, middles - smooth / 2 - 1e-9)
    last = np.searchsorted(middles, middles + smooth / 2 + 1e-9)
    total = np.concatenate([np.zeros((1, scores.shape[1])), scores.cumsum(axis=0)])
    scores = (total[last] - total[first]) / (last - first)[:, None]  # (W, K)

    labels = scores.argmax(axis=1)
    while True:
        starts = np.flatnonzero(np.diff(labels, prepend=-1))  # the first window of each segment
        ends = np.append(starts[1:], len(labels))
        lengths = edges[ends] - edges[starts]
        shortest = int(lengths.argmin())
        if len(starts) == 1 or lengths[shortest] >= min_length:
            break
        inside = slice(starts[shortest], ends[shortest])
        neighbours = [int(labels[i]) for i in (inside.start - 1, inside.stop) if 0 <= i < len(labels)]
        labels[inside] = max(neighbours, key=lambda k: float(scores[inside, k].mean()))
    return [
        Segment(float(edges[start]), float(edges[end]), classes[k], k, float(scores[start:end, k].mean()))
        for start, end, k in zip(starts, ends, labels[starts].tolist(), strict=True)
    ]
