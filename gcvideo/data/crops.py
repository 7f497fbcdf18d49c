"""Crops: boxes of training and test crops, cutting and resizing frames, and normalisation.

Frames stay uint8 until they are on the device: a crop is cut out of the decoded frames first and only that crop is
resized, with antialiasing, then copied to the device as bytes, and scaled and normalised there. Cutting first, along
whole source pixels, is exactly a random resized crop; it costs a fraction of resizing whole frames in floating point.

Test crops of the conventions ``pyslowfast`` and ``mmaction2`` differ in how the centre is rounded (up, down), in the
order of three crops, and in how the longer side of a resized frame is rounded. Sources: PySlowFast
``slowfast/datasets/transform.py`` (``uniform_crop``); mmaction2 ``mmaction/datasets/transforms/processing.py``
(``CenterCrop``, ``ThreeCrop``).
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.sampling import Convention

Box = tuple[int, int, int, int]  # top, left, height, width, in source pixels


def random_box(height: int, width: int, *, data: DataConfig, rng: np.random.Generator) -> Box:
    """Box of a random training crop in a frame, as ``data.augment.crop`` chooses."""
    if data.augment.crop == "inception":
        return inception_box(height, width, area=data.augment.crop_area, ratio=data.augment.crop_ratio, rng=rng)
    return random_short_side_box(height, width, short_side=data.short_side, crop=data.crop, rng=rng)


def random_short_side_box(
    height: int, width: int, *, short_side: tuple[int, int], crop: int, rng: np.random.Generator
) -> Box:
    """Box of a random square crop from a frame whose short side is scaled to a random length.

    Scaling the short side to s and then cropping ``crop`` pixels shows a square of ``crop x short / s`` source pixels.
    s is uniform over the whole numbers in ``short_side`` (Simonyan and Zisserman 2015, section 3.1; PySlowFast's
    ``TRAIN_JITTER_SCALES``).
    """
    side = max(1, round(crop * min(height, width) / int(rng.integers(short_side[0], short_side[1] + 1))))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    return top, left, side, side


def inception_box(
    height: int, width: int, *, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Box of random area and aspect ratio (Szegedy et al. 2015, section 6), as torchvision's RandomResizedCrop.

    The area is uniform in ``area`` as a fraction of the frame, the aspect ratio (width over height) log-uniform in
    ``ratio``. If ten draws do not fit, the box is the largest central one within the ratio bounds.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        box_height, box_width = round(np.sqrt(target / aspect)), round(np.sqrt(target * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_width = min(width, max(1, round(height * ratio[1])))
    box_height = min(height, max(1, round(width / ratio[0])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def view_boxes(height: int, width: int, test: TestConfig) -> np.ndarray:
    """Boxes of a test's views in a resized frame: its crops, or with ``test.whole_frame`` the frame; (V, 4) int64."""
    if test.whole_frame:
        return np.array([(0, 0, height, width)])
    return crop_boxes(height, width, test.crop, test.crops, test.convention)


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
    down, right = height - crop, width - crop
    rounded_down = convention == "mmaction2"
    y, x = centre = (down // 2, right // 2) if rounded_down else ((down + 1) // 2, (right + 1) // 2)
    last_y, last_x = (2 * y, 2 * x) if rounded_down else (down, right)
    if num_crops == 1:
        corners = [centre]
    elif num_crops == 3:
        first, last = ((0, x), (last_y, x)) if height > width else ((y, 0), (y, last_x))
        corners = [first, last, centre] if rounded_down else [first, centre, last]
    else:
        corners = [(0, 0), (0, right), (down, 0), (down, right), centre]
    return np.array([(top, left, crop, crop) for top, left in corners], dtype=np.int64)


def short_side_size(height: int, width: int, short_side: int, convention: Convention = "pyslowfast") -> tuple[int, int]:
    """Height and width of a frame whose shorter side is scaled to ``short_side``.

    The longer side is rounded down (PySlowFast, torchvision) or to the nearest (mmaction2, through mmcv's
    ``rescale_size``).
    """
    shorter = min(height, width)
    if convention == "mmaction2":
        return int(height * (short_side / shorter) + 0.5), int(width * (short_side / shorter) + 0.5)
    return height * short_side // shorter, width * short_side // shorter


def crop_and_resize(frames: np.ndarray, box: Box, size: tuple[int, int], *, flip: bool = False) -> Tensor:
    """Cut a box out of decoded frames and resize it, antialiased, without leaving uint8.

    Args:
        frames: uint8 (T, H, W, 3).
        box: top, left, height, width of the part to keep.
        size: height and width of the result.
        flip: mirror left and right.

    Returns:
        uint8 (3, T, height, width), channels last in memory, as most networks take it; a view of ``frames`` where
        nothing changes. Equal to torchvision's v2 ``crop`` and ``resize`` on uint8.
    """
    top, left, height, width = box
    # (T, H, W, 3) -> (T, 3, H, W): a channels-last view, for which torch has its fast uint8 kernel. numpy cuts it out
    # in a fifth of the time that the kernel takes to do so.
    cut = np.ascontiguousarray(frames[:, top : top + height, left : left + width])
    clip = torch.from_numpy(cut).permute(0, 3, 1, 2)
    if (height, width) != tuple(size):
        clip = F.interpolate(clip, size=size, mode="bilinear", antialias=True)
    return (clip.flip(3) if flip else clip).transpose(0, 1)


def resize_short_side(frames: np.ndarray, short_side: int, convention: Convention = "pyslowfast") -> Tensor:
    """Resize whole frames so that the shorter side is ``short_side``, as the published test protocols do.

    Args:
        frames: uint8 (T, H, W, 3).
        short_side: in pixels.
        convention: how the longer side is rounded (see ``short_side_size``).

    Returns:
        uint8 (3, T, H', W'), contiguous.
    """
    height, width = frames.shape[1:3]
    resized = crop_and_resize(frames, (0, 0, height, width), short_side_size(height, width, short_side, convention))
    return torch.from_numpy(np.ascontiguousarray(resized.numpy()))  # in less time than torch takes


def normalize(
    clips: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Normalise bytes to floating point, on the device where the bytes are.

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
    """Scale and shift (1, C, 1, 1, 1), copied to the device once: a copy in each step would make the host wait."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(1, -1, 1, 1, 1), shift.view(1, -1, 1, 1, 1)
