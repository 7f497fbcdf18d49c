"""Frame sampling: the frame numbers of training clips and of test clips, as pure functions.

The two conventions of the field differ, and published accuracies depend on them:

=============  ==========================================  =======================================
               ``pyslowfast``                              ``mmaction2``
=============  ==========================================  =======================================
frames         spread evenly over ``frames x stride``      exactly ``stride`` apart
clip starts    ``i x slack / num_clips``: the last clip    from 0 to the very end; one clip lies in
               does not touch the end, one clip starts     the middle
               at 0
short videos   the last frame is repeated                  the video is looped
=============  ==========================================  =======================================

Sources: PySlowFast ``slowfast/datasets/decoder.py`` (``get_start_end_idx``, ``temporal_sampling``); mmaction2
``mmaction/datasets/transforms/loading.py`` (``SampleFrames``). ``pyslowfast_offset`` is PySlowFast with
``TEST.USE_OFFSET_SAMPLING``: clip starts as far apart as fit, one clip in the middle. How the conventions differ in
space: see ``gcvideo.data.crops``.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch

Convention = Literal["pyslowfast", "pyslowfast_offset", "mmaction2"]


class Windows(NamedTuple):
    """Windows that slide over a video.

    ``length`` is in seconds, None for that of a clip; ``step``, the seconds from the start of one window to that of the
    next, by default the length.
    """

    length: float | None = None
    step: float | None = None

    def cut(self, start: float, end: float, *, clip: float) -> np.ndarray:
        """Windows over a stretch of time.

        The last one is the first that reaches the end, and ends there; if less than half of it is left, it is left out.
        A stretch shorter than a window is one window.

        Args:
            start: seconds.
            end: seconds.
            clip: length of a clip in seconds.

        Returns:
            float64 (W, 2): start and end of each, in seconds.
        """
        length = self.length or clip
        step = self.step or length
        count = max(1, 1 + math.ceil((end - start - length) / step - 1e-6))
        starts = start + step * np.arange(count)
        starts = starts[: max(1, int((end - starts >= length / 2 - 1e-6).sum()))]
        return np.column_stack([starts, np.minimum(starts + length, end)])


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random generator of a training sample: everything random about it depends on these three numbers alone."""
    return np.random.default_rng((seed, epoch, index))


def random_clip(
    num_frames: int,
    frames: int,
    stride: int,
    rng: np.random.Generator,
    convention: Convention = "pyslowfast",
    speed: float = 1.0,
) -> np.ndarray:
    """Frame indices of one training clip at a random place, spaced as the convention's test clips are.

    Args:
        num_frames: frames of the video, at least 1.
        frames: frames of the clip, T.
        stride: nominal distance between them.
        rng: decides the start.
        convention: see the module's table.
        speed: source frames per nominal frame (see ``uniform_clips``).

    Returns:
        (T,) int64, each in [0, num_frames).
    """
    if convention == "mmaction2":
        last_start = max(num_frames - frames * stride, 0)
        return np.mod(int(rng.integers(last_start + 1)) + stride * np.arange(frames), num_frames)
    slack = max(num_frames - frames * stride * speed, 0)
    return _spread(rng.uniform(0, slack), num_frames, frames, stride, speed)


def uniform_clips(
    num_frames: int,
    frames: int,
    stride: int,
    num_clips: int,
    convention: Convention = "pyslowfast",
    speed: float = 1.0,
) -> np.ndarray:
    """Frame indices of ``num_clips`` test clips, laid evenly over the video.

    Args:
        num_frames: frames of the video, at least 1.
        frames: frames of each clip, T.
        stride: nominal distance between them.
        num_clips: how many clips.
        convention: see the module's table.
        speed: source frames per nominal frame, that is the video's frame rate over the target rate. PySlowFast counts
            strides at 30 frames/s for videos of every rate (``DATA.TARGET_FPS``); 1 counts the video's own frames.

    Returns:
        (num_clips, T) int64, each in [0, num_frames).
    """
    if convention == "mmaction2":
        last = max(num_frames - (frames - 1) * stride - 1, 0)
        firsts = np.round(np.linspace(0, last, num_clips)) if num_clips > 1 else np.array([last // 2])
        return np.mod(firsts.astype(np.int64)[:, None] + stride * np.arange(frames), num_frames)
    slack = max(num_frames - frames * stride * speed, 0)
    if convention == "pyslowfast":
        starts = [slack * clip / num_clips for clip in range(num_clips)]
    elif num_clips == 1:
        starts = [math.floor(slack / 2)]
    else:
        starts = [clip * math.floor(slack / (num_clips - 1)) for clip in range(num_clips)]
    return np.stack([_spread(start, num_frames, frames, stride, speed) for start in starts])


def _spread(start: float, num_frames: int, frames: int, stride: int, speed: float) -> np.ndarray:
    """PySlowFast's ``temporal_sampling``, in its own float32 arithmetic so that every index agrees."""
    index = torch.linspace(start, start + frames * stride * speed - 1, frames)
    return index.clamp(0, num_frames - 1).long().numpy()
