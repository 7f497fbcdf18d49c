"""Which frames make a clip, and which clips and crops make the views of a video: pure functions.

The two conventions of the field differ, and published accuracies depend on them:

=============  ==========================================  =======================================
               ``pyslowfast``                              ``mmaction2``
=============  ==========================================  =======================================
frames         spread evenly over ``frames x stride``      exactly ``stride`` apart
clip starts    ``i x slack / num_clips``: the last clip    from 0 to the very end; one clip lies in
               does not touch the end, one clip starts     the middle
               at 0
short videos   the last frame is repeated                  the video is looped
centre crop    rounded up                                  rounded down
=============  ==========================================  =======================================

Sources: PySlowFast ``slowfast/datasets/decoder.py`` (``get_start_end_idx``, ``temporal_sampling``) and
``slowfast/datasets/transform.py`` (``uniform_crop``); mmaction2 ``mmaction/datasets/transforms/loading.py``
(``SampleFrames``) and ``processing.py`` (``CenterCrop``, ``ThreeCrop``). ``pyslowfast_offset`` is PySlowFast with
``TEST.USE_OFFSET_SAMPLING``: clip starts as far apart as fit, one clip in the middle.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

Convention = Literal["pyslowfast", "pyslowfast_offset", "mmaction2"]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The one source of a training sample's randomness: a generator that depends on these three numbers alone."""
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
        return _loop(int(rng.integers(last_start + 1)) + stride * np.arange(frames), num_frames)
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
            strides at 30 frames/s whatever the video's rate (``DATA.TARGET_FPS``); 1 counts the video's own frames.

    Returns:
        (num_clips, T) int64, each in [0, num_frames).
    """
    if convention == "mmaction2":
        return _loop(
            _mmaction2_starts(num_frames, frames, stride, num_clips)[:, None] + stride * np.arange(frames), num_frames
        )
    slack = max(num_frames - frames * stride * speed, 0)
    if convention == "pyslowfast":
        starts = [slack * clip / num_clips for clip in range(num_clips)]
    elif num_clips == 1:
        starts = [math.floor(slack / 2)]
    else:
        starts = [clip * math.floor(slack / (num_clips - 1)) for clip in range(num_clips)]
    return np.stack([_spread(start, num_frames, frames, stride, speed) for start in starts])


def crop_boxes(height: int, width: int, crop: int, num_crops: int, convention: Convention = "pyslowfast") -> np.ndarray:
    """Boxes of the test crops in a frame.

    One crop is the centre. Three lie along the longer side: in ``pyslowfast`` order left, centre, right (or top,
    centre, bottom); ``mmaction2`` puts the middle last. Five are the corners (top left, top right, bottom left, bottom
    right) and the centre, as in torchvision's ``FiveCrop``.

    Args:
        height: of the frame, at least ``crop``.
        width: of the frame, at least ``crop``.
        crop: side of the square crops.
        num_crops: 1, 3 or 5.
        convention: how the centre is rounded, and the order of three crops.

    Returns:
        (num_crops, 4) int64: top, left, height, width.
    """
    if crop > min(height, width):
        raise ValueError(f"a crop of {crop} does not fit in a frame of {height} x {width}")
    down, right = height - crop, width - crop
    if convention == "mmaction2":
        middle_down, middle_right = down // 2, right // 2
        last_down, last_right = 2 * middle_down, 2 * middle_right
    else:
        middle_down, middle_right = (down + 1) // 2, (right + 1) // 2
        last_down, last_right = down, right
    centre = (middle_down, middle_right)
    if num_crops == 1:
        corners = [centre]
    elif num_crops == 3:
        ends = (
            [(0, middle_right), (last_down, middle_right)]
            if height > width
            else [
                (middle_down, 0),
                (middle_down, last_right),
            ]
        )
        corners = [*ends, centre] if convention == "mmaction2" else [ends[0], centre, ends[1]]
    elif num_crops == 5:
        corners = [(0, 0), (0, right), (down, 0), (down, right), centre]
    else:
        raise ValueError(f"num_crops must be 1, 3 or 5, not {num_crops}")
    return np.array([(top, left, crop, crop) for top, left in corners], dtype=np.int64)


def short_side_size(height: int, width: int, short_side: int, convention: Convention = "pyslowfast") -> tuple[int, int]:
    """Height and width once the shorter side is ``short_side``.

    The longer side is rounded down (PySlowFast, torchvision) or to the nearest (mmaction2, through mmcv's
    ``rescale_size``).
    """
    scale = short_side / min(height, width)
    if convention == "mmaction2":
        return int(height * scale + 0.5), int(width * scale + 0.5)
    if height < width:
        return short_side, width * short_side // height
    return height * short_side // width, short_side


def _spread(start: float, num_frames: int, frames: int, stride: int, speed: float) -> np.ndarray:
    """PySlowFast's ``temporal_sampling``, in its own float32 arithmetic so that every index agrees."""
    index = torch.linspace(start, start + frames * stride * speed - 1, frames)
    return index.clamp(0, num_frames - 1).long().numpy()


def _loop(indices: np.ndarray, num_frames: int) -> np.ndarray:
    return np.mod(indices, num_frames).astype(np.int64)


def _mmaction2_starts(num_frames: int, frames: int, stride: int, num_clips: int) -> np.ndarray:
    slack = max(num_frames - (frames - 1) * stride - 1, 0)
    if num_clips == 1:
        return np.array([slack // 2])
    return np.round(np.arange(num_clips) * (slack / (num_clips - 1))).astype(np.int64)
