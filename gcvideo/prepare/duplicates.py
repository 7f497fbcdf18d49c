"""Near-duplicate videos: the same pictures in another container, codec, size or frame rate, found by picture hashes.

The hash of a video is a difference hash, kept in grey levels: eight frames at even distances of time, from the first to
the last, each averaged to 8 x 9 cells; what is kept are the steps between cells side by side. Two videos are alike if

- their lengths agree,
- their hashes, as vectors, have a cosine of at least ``SAME``, and
- what moves, which is each hash less its mean over the frames, has a cosine of at least ``SAME_MOTION``; or nothing
  moves in either.

The thresholds come from a measurement on the 740 clips of ten classes of UCF101, 40 of them also in their original
files, 28 other videos, and 245 copies of 49 of the clips (half the height and width at CRF 35; another aspect ratio;
MPEG-4; VP9 at 80 kbit/s and 15 frames a second; brighter with more contrast at 30 frames a second; another container).
Of 785 pairs of copies 767 are alike, and all whose frame rate was not halved. Of 560,993 pairs of videos of different
scenes two are, and both are true copies. Of 1,613 pairs of different clips of one scene 8 % are.

Not found: copies that were cut in time, mirrored, or cropped by much.
"""

import base64
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from gcvideo.files import Row

FRAMES, ROWS, STEPS = 8, 8, 8
SAME, SAME_MOTION = 0.9, 0.7
NOISE = 1.0  # root mean square grey levels that coding alone may change
BLOCK = 2048  # videos that are compared at a time


def picture_hash(frames: np.ndarray) -> str:
    """The hash of a video: 512 signed bytes, in base 64.

    Args:
        frames: uint8 (8, H, W, 3) RGB, at even distances of time.
    """
    grey = (torch.from_numpy(frame).float().mean(dim=-1)[None] for frame in frames)
    cells = torch.cat([F.adaptive_avg_pool2d(image, (ROWS, STEPS + 1)) for image in grey])
    return base64.b64encode(cells.diff(dim=-1).round().clamp(-127, 127).to(torch.int8).numpy().tobytes()).decode()


def alike(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Pairs of videos that are alike, the smaller index first.

    Args:
        rows: of the videos: their ``print``, from ``picture_hash``, and length in ``seconds``.
    """
    hashes = [np.frombuffer(base64.b64decode(row["print"]), np.int8) for row in rows]
    steps = torch.tensor(np.array(hashes, np.int8)).reshape(-1, FRAMES, ROWS * STEPS)
    lengths = torch.tensor([row["seconds"] for row in rows])
    for left, right in itertools.combinations_with_replacement(range(0, len(rows), BLOCK), 2):
        whole, motion, still = _directions(steps[left : left + BLOCK])
        whole2, motion2, still2 = _directions(steps[right : right + BLOCK])
        length, length2 = lengths[left : left + BLOCK, None], lengths[right : right + BLOCK]
        near = (whole @ whole2.T >= SAME) & ((length - length2).abs() <= 0.2 + 0.01 * length)
        near &= (motion @ motion2.T >= SAME_MOTION) | (still[:, None] & still2)
        for i, j in near.nonzero().tolist():
            if left + i < right + j:
                yield left + i, right + j


def _directions(steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors of hashes and of what moves in them, zero where it is noise; and whether nothing moves."""
    whole = steps.float()
    parts = [part.flatten(1) for part in (whole, whole - whole.mean(dim=1, keepdim=True))]
    strengths = [part.square().mean(dim=1).sqrt() for part in parts]
    units = [F.normalize(part) * (strength >= NOISE)[:, None] for part, strength in zip(parts, strengths, strict=True)]
    return units[0], units[1], strengths[1] < NOISE
