"""Decode plan: which coded pictures must be decoded to see the frames that are wanted, and how these are turned.

A container lists its samples (coded pictures) in decoding order with their presentation times. Decoding starts at key
pictures only; between a key and a wanted frame lie pictures that the frame may refer to, and pictures to which nothing
refers. ``SampleTable.needed`` picks the fewest samples that are safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from gcvideo.video.slice_headers import Start

MAX_REORDER = 16  # frames of the largest decoded picture buffer


class DecodeError(ValueError):
    """A video, or a wanted frame of it, cannot be decoded; and why."""


class Orientation(NamedTuple):
    """How decoded frames are turned for display: transposed or not, then flipped."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Orientation:
        """Read a display matrix (ISO/IEC 14496-12, section 8.3.2) as FFmpeg's tools do.

        Args:
            matrix: (2, 2), a b over c d: a pixel at (p, q) is shown at (ap + cq, bp + dq). One that cannot be inverted
                turns nothing.

        Raises:
            DecodeError: it turns by an angle that is no multiple of 90 degrees.
        """
        (a, b), (c, d) = matrix.tolist()
        if a * d == b * c:
            return cls()
        angle, transpose = math.degrees(math.atan2(b, a)), abs(b) > abs(a)
        if abs(angle - 90 * round(angle / 90)) > 1 or (abs(c) > abs(d)) != transpose:
            raise DecodeError(f"its display matrix turns by {angle:.0f} degrees; only multiples of 90 are read")
        return cls(True, b < 0, c < 0) if transpose else cls(False, d < 0, a < 0)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Turn images (..., H, W, C); returns (..., H, W, C) or (..., W, H, C), without a copy."""
        images = images.swapaxes(-3, -2) if self.transpose else images
        return images[..., :: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1, :]


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The samples of one video track, in decoding order.

    Args:
        pts: int64 (S,), presentation time of each sample in units of ``time_base``.
        order: int64 (F,), the sample of each presentable frame, in presentation order. Edit lists leave samples out.
        starts: samples at which decoding may start, and how; rising. Sample 0 is always one.
        time_base: seconds per unit of ``pts``.
    """

    pts: np.ndarray
    order: np.ndarray
    starts: dict[int, Start]
    time_base: Fraction

    @property
    def seconds(self) -> np.ndarray:
        """float64 (F,), presentation time of each frame."""
        return self.pts[self.order] * self.time_base.numerator / self.time_base.denominator

    @property
    def keyframes(self) -> np.ndarray:
        """int64 (K,), the frames at which decoding may start."""
        return np.flatnonzero(np.isin(self.order, list(self.starts)))

    @property
    def reorder(self) -> int:
        """The largest number of samples that precede a sample in decoding order and follow it in presentation.

        The sample that has it is shown before all later ones, so that it stands as many places back in presentation.
        """
        return int((np.argsort(self.pts, kind="stable") - np.arange(len(self.pts))).max(initial=0))

    @property
    def starts_in_order(self) -> bool:
        """Whether each start is presented after all samples before it and, where it forgets these, before all others.

        Then a wrong order of times in one group of pictures does not bear on the frame numbers of any other.
        """
        starts = np.array(list(self.starts))
        forgets = starts[[kind is Start.ANYWHERE for kind in self.starts.values()]]
        latest, earliest = np.maximum.accumulate(self.pts), np.minimum.accumulate(self.pts[::-1])[::-1]
        return bool((latest[starts] == self.pts[starts]).all() and (earliest[forgets] == self.pts[forgets]).all())

    def needed(
        self, frames: Iterable[int], disposable: Callable[[int], bool] = lambda sample: False, *, ahead: int = 0
    ) -> list[int]:
        """Samples to decode, in decoding order, so that each of ``frames`` comes out right.

        From the right key picture to the last wanted one of each group of pictures; without groups in which nothing
        is wanted (where the next group starts afresh), and without unwanted pictures to which no other refers.

        Args:
            frames: indices of presentable frames.
            disposable: whether no other sample refers to a sample.
            ahead: samples to list behind the last one of each group that is wanted or presented before a wanted one, as
                far as the next group.
        """
        wanted = {int(self.order[frame]) for frame in frames}
        last: dict[int, int] = {}  # start -> its last wanted sample
        for sample in wanted:
            # the last start that is neither decoded nor presented after the sample
            start = next((s for s in reversed(self.starts) if s <= sample and self.pts[s] <= self.pts[sample]), 0)
            last[start] = max(last.get(start, 0), sample)
        if ahead:
            ends = [sample for sample, kind in self.starts.items() if kind is Start.ANYWHERE] + [len(self.pts)]
            for start, sample in last.items():
                end = next(end for end in ends if end > sample)
                latest = max(self.pts[other] for other in wanted if start <= other <= sample)
                earlier = np.flatnonzero(self.pts[sample + 1 : end] < latest)
                last[start] = min(sample + ahead + 1 + int(earlier[-1] if len(earlier) else -1), end - 1)
        needed: list[int] = []
        position = floor = 0  # the decoder was fresh at a key presented at this time
        for start in sorted(last):
            if not needed or (self.starts.get(start) is Start.ANYWHERE and start >= position):
                position, floor = start, int(self.pts[start])
            for sample, pts in enumerate(self.pts[position : last[start] + 1].tolist(), position):
                if sample in wanted or not (pts < floor or disposable(sample)):
                    needed.append(sample)
            position = max(position, last[start] + 1)
        return needed
