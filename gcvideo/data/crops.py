"""From decoded frames to what the network sees.

Frames stay uint8 until they are on the device: a crop is cut out of the decoded frames first and only that crop is
resized, with antialiasing, then shipped as bytes and scaled and normalised there. Cutting first, along whole source
pixels, is exactly a random resized crop; it costs a fraction of resizing whole frames in floating point.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gcvideo.data.sampling import Convention, short_side_size

Box = tuple[int, int, int, int]  # top, left, height, width


def random_short_side_box(
    height: int, width: int, *, short_side: tuple[int, int], crop: int, rng: np.random.Generator
) -> Box:
    """The part of a frame that a random crop shows once the frame's short side has a random length.

    Scaling the short side to s and then cropping ``crop`` pixels shows a square of ``crop x short / s`` source pixels.
    s is uniform over the whole numbers in ``short_side`` (Simonyan and Zisserman 2015, section 3.1; PySlowFast's
    ``TRAIN_JITTER_SCALES``).

    Returns:
        top, left, height, width in source pixels.
    """
    low, high = short_side
    side = max(1, round(crop * min(height, width) / int(rng.integers(low, high + 1))))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    return top, left, side, side


def crop_and_resize(frames: np.ndarray, box: Box, size: tuple[int, int], *, flip: bool = False) -> Tensor:
    """Cut a box out of decoded frames and resize it, antialiased, without leaving uint8.

    Args:
        frames: uint8 (T, H, W, 3).
        box: top, left, height, width of the part to keep.
        size: height and width of the result.
        flip: mirror left and right.

    Returns:
        uint8 (3, T, height, width), contiguous. Equal to torchvision's v2 ``crop`` and ``resize`` on uint8.
    """
    top, left, height, width = box
    # (T, H, W, 3) -> (T, 3, H, W): a channels-last view, for which torch has its fast uint8 kernel.
    clip = torch.from_numpy(frames[:, top : top + height, left : left + width]).permute(0, 3, 1, 2)
    if (height, width) != tuple(size):
        clip = F.interpolate(clip, size=size, mode="bilinear", antialias=True)
    planes = clip.permute(1, 0, 2, 3).numpy()  # (3, T, height, width)
    if flip:
        planes = planes[..., ::-1]
    # numpy mirrors and parts the channels in one copy, in half the time that torch takes for two.
    return torch.from_numpy(np.ascontiguousarray(planes))


def resize_short_side(frames: np.ndarray, short_side: int, convention: Convention = "pyslowfast") -> Tensor:
    """Whole frames with the shorter side at ``short_side``, as the published test protocols make them.

    Args:
        frames: uint8 (T, H, W, 3).
        short_side: in pixels.
        convention: how the longer side is rounded (see ``gcvideo.data.sampling.short_side_size``).

    Returns:
        uint8 (3, T, H', W'), contiguous.
    """
    height, width = frames.shape[1:3]
    return crop_and_resize(frames, (0, 0, height, width), short_side_size(height, width, short_side, convention))


def normalize(
    clips: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Bytes to normalised floating point, on the device where the bytes are.

    Args:
        clips: uint8 (N, C, T, H, W) in [0, 255].
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        dtype: of the result; the arithmetic is done in float32.

    Returns:
        (N, C, T, H, W) of ``(clips / 255 - mean) / std``, in the memory format of ``clips``.
    """
    scale, shift = _affine(tuple(mean), tuple(std), clips.device)
    return clips.float().mul_(scale).add_(shift).to(dtype)


@functools.lru_cache(maxsize=8)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift (1, C, 1, 1, 1), sent to the device once: sending them each step would make the host wait."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(1, -1, 1, 1, 1), shift.view(1, -1, 1, 1, 1)
