"""Crops and resizes against torchvision, PIL and published formulas; normalisation against arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from gcvideo.data.crops import (
    crop_and_resize,
    crop_boxes,
    normalize,
    random_short_side_box,
    resize_short_side,
    short_side_size,
)
from gcvideo.data.sampling import sample_rng

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def smooth_frames(count: int = 4, height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Frames with detail of a few pixels, as video has."""
    noise = torch.from_numpy(np.random.default_rng(seed).random((count, 3, height // 3, width // 3), dtype=np.float32))
    frames = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic").clamp(0, 1)
    return (frames * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()  # (T, H, W, 3)


def thwc(clip: torch.Tensor) -> np.ndarray:
    return clip.permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize("box", [(0, 0, 60, 80), (5, 7, 40, 40), (11, 30, 49, 49), (0, 40, 20, 20)])
@pytest.mark.parametrize("size", [(32, 32), (48, 56)])
def test_crop_and_resize_equals_torchvision_exactly(box, size):
    frames = smooth_frames()
    top, left, height, width = box
    reference = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, 3, H, W)
    reference = vision.resized_crop(reference, top, left, height, width, list(size), antialias=True)
    ours = crop_and_resize(frames, box, size)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, 4, *size)
    assert ours.permute(1, 2, 3, 0).is_contiguous()  # channels last
    assert torch.equal(ours.transpose(0, 1), reference)


def test_crop_and_resize_agrees_with_pil():
    frames = smooth_frames()
    ours = thwc(crop_and_resize(frames, (5, 7, 40, 44), (24, 28)))
    for frame, got in zip(frames, ours, strict=True):
        want = Image.fromarray(frame[5:45, 7:51]).resize((28, 24), Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(want).astype(int) - got.astype(int))
        assert difference.max() <= 1  # each rounds its intermediate rows in its own way
        assert difference.mean() < 0.2


def test_crop_of_the_right_size_is_untouched_and_flip_mirrors_it():
    frames = smooth_frames()
    plain = crop_and_resize(frames, (3, 4, 32, 32), (32, 32))
    assert np.array_equal(thwc(plain), frames[:, 3:35, 4:36])
    assert torch.equal(crop_and_resize(frames, (3, 4, 32, 32), (32, 32), flip=True), plain.flip(-1))


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (60, 61), (33, 100)])
def test_resize_short_side_equals_torchvision(height, width):
    frames = smooth_frames(height=height, width=width)
    reference = v2.Resize(48, antialias=True)(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert torch.equal(resize_short_side(frames, 48).transpose(0, 1), reference)


def test_resize_at_its_own_size_changes_nothing():
    frames = smooth_frames()
    assert np.array_equal(thwc(resize_short_side(frames, 60)), frames)


def test_random_box_shows_what_scaling_and_cropping_would():
    """Scaling the short side to s and cropping c pixels shows c / s of the short side, wherever it fits."""
    boxes = [
        random_short_side_box(240, 426, short_side=(256, 320), crop=224, rng=sample_rng(0, 0, i)) for i in range(3000)
    ]
    sides = np.array([box[2] for box in boxes])
    assert all(height == width for _, _, height, width in boxes)
    assert (sides.min(), sides.max()) == (round(224 * 240 / 320), round(224 * 240 / 256))
    tops, lefts = np.array([box[0] for box in boxes]), np.array([box[1] for box in boxes])
    assert tops.min() == lefts.min() == 0
    assert (tops + sides).max() == 240
    assert (lefts + sides).max() == 426
    assert np.mean(lefts / (426 - sides)) == pytest.approx(0.5, abs=0.02)  # uniform: no side is preferred
    assert np.mean(tops / (240 - sides)) == pytest.approx(0.5, abs=0.02)


def test_random_box_of_the_whole_short_side_and_of_tiny_videos():
    assert random_short_side_box(48, 64, short_side=(32, 32), crop=32, rng=sample_rng(0, 0, 0))[2:] == (48, 48)
    assert random_short_side_box(2, 2, short_side=(256, 320), crop=1, rng=sample_rng(0, 0, 0))[2:] == (1, 1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_normalize(memory_format):
    clips = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8).contiguous(memory_format=memory_format)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    ours = normalize(clips, mean=mean, std=std)
    shape = (1, 3, 1, 1, 1)
    want = (clips.double() / 255 - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(shape)
    torch.testing.assert_close(ours.double(), want, rtol=0, atol=2e-6)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=memory_format)


def test_normalize_to_bfloat16_rounds_once():
    clips = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1, 1)
    exact = normalize(clips, mean=(0.45,), std=(0.225,))
    assert torch.equal(normalize(clips, mean=(0.45,), std=(0.225,), dtype=torch.bfloat16), exact.bfloat16())


@pytest.mark.parametrize(
    ("height", "width", "num_crops", "convention", "corners"),
    [
        # PySlowFast's uniform_crop: the centre is rounded up, the ends touch the border.
        (256, 341, 3, "pyslowfast", [(0, 0), (0, 43), (0, 85)]),
        (341, 256, 3, "pyslowfast", [(0, 0), (43, 0), (85, 0)]),
        (256, 256, 3, "pyslowfast", [(0, 0)] * 3),
        (261, 341, 3, "pyslowfast", [(3, 0), (3, 43), (3, 85)]),
        (261, 341, 1, "pyslowfast", [(3, 43)]),
        # mmaction2's ThreeCrop and CenterCrop: rounded down, the middle comes last.
        (256, 341, 3, "mmaction2", [(0, 0), (0, 84), (0, 42)]),
        (341, 256, 3, "mmaction2", [(0, 0), (84, 0), (42, 0)]),
        (261, 341, 1, "mmaction2", [(2, 42)]),
        (260, 340, 5, "pyslowfast", [(0, 0), (0, 84), (4, 0), (4, 84), (2, 42)]),
    ],
)
def test_crop_boxes(height, width, num_crops, convention, corners):
    boxes = crop_boxes(height, width, 256, num_crops, convention)
    assert boxes.tolist() == [[top, left, 256, 256] for top, left in corners]


@pytest.mark.parametrize(
    ("size", "down", "nearest"),
    [((240, 320), (256, 341), (256, 341)), ((321, 240), (342, 256), (342, 256)), ((300, 529), (256, 451), (256, 451)),
     ((360, 487), (256, 346), (256, 346)), ((256, 300), (256, 300), (256, 300)), ((240, 426), (256, 454), (256, 454)),
     ((100, 199), (256, 509), (256, 509)), ((96, 100), (256, 266), (256, 267))],
)  # fmt: skip
def test_short_side_size(size, down, nearest):
    assert short_side_size(*size, 256) == down
    assert short_side_size(*size, 256, "mmaction2") == nearest
