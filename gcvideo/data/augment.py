"""Augmentations of training clips beyond crop and flip, all off by default (``data.augment``).

What changes single clips runs on uint8 in the worker processes, through torchvision's v2 transforms on the whole clip:
every frame gets the same draw. What mixes clips (mixup, cutmix) runs on the device, on normalised batches. torchvision
is imported only where a switch is on: it takes 160 MB.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gcvideo.config import AugmentConfig, DataConfig
from gcvideo.data.crops import Box, random_short_side_box
from gcvideo.errors import ConfigError


def random_box(height: int, width: int, *, data: DataConfig, rng: np.random.Generator) -> Box:
    """The part of the frames that a training clip shows: top, left, height, width in source pixels."""
    if data.augment.crop == "inception":
        return inception_box(height, width, area=data.augment.crop_area, ratio=data.augment.crop_ratio, rng=rng)
    return random_short_side_box(height, width, short_side=data.short_side, crop=data.crop, rng=rng)


def inception_box(
    height: int, width: int, *, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A box of random area and aspect ratio (Szegedy et al. 2015, section 6), as torchvision's RandomResizedCrop.

    The area is uniform in ``area`` as a fraction of the frame, the aspect ratio (width over height) log-uniform in
    ``ratio``. If ten draws do not fit, the box is the largest central one within the ratio bounds.

    Returns:
        top, left, height, width in source pixels.
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


def build_clip_augment(data: DataConfig) -> Callable[[Tensor, np.random.Generator], Tensor] | None:
    """RandAugment, colour jitter and random erasing, in this order; None where all are off.

    Returns:
        A function of a clip, uint8 (C, T, H, W), and the generator that decides all its draws.
    """
    augment = data.augment
    if not (augment.rand_augment or any(augment.color_jitter) or augment.erase):
        return None
    from torchvision.transforms import v2

    steps: list[torch.nn.Module] = []
    if augment.rand_augment:
        steps.append(v2.RandAugment(num_ops=augment.rand_augment, magnitude=augment.rand_magnitude))
    if any(augment.color_jitter):
        brightness, contrast, saturation, hue = augment.color_jitter
        steps.append(v2.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue))
    if augment.erase:
        # The mean colour: zero to the network, once normalised.
        steps.append(v2.RandomErasing(p=augment.erase, value=[round(255 * channel) for channel in data.mean]))
    transform = v2.Compose(steps)

    def apply(clip: Tensor, rng: np.random.Generator) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.manual_seed(int(rng.integers(2**63)))
            # (C, T, H, W) -> (T, C, H, W), which torchvision takes for one image with a leading dimension -> back
            return transform(clip.transpose(0, 1)).transpose(0, 1).contiguous()

    return apply


class ClipMixer:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of the clips of a batch, each with one of another video.

    That is the video before its own in the batch. Draws from torch's global generator, on the host.

    Args:
        augment: ``mixup`` and ``cutmix`` are the parameters of their Beta distributions; where both are on, each batch
            gets one of them with the same chance. A batch is mixed with probability ``mix_chance``.
        num_classes: K.
        clips: of the smallest batch; by default enough.

    Raises:
        ConfigError: these clips are of a single video.
    """

    def __init__(self, augment: AugmentConfig, *, num_classes: int, clips: int | None = None) -> None:
        if clips is not None and clips <= augment.clips_per_video:
            raise ConfigError(
                "data.augment: mixup and cutmix need clips of two videos or more, and one process takes "
                f"{clips} of a single video at a time (data.augment.clips_per_video={augment.clips_per_video}); raise "
                "train.batch_size or lower train.accumulate"
            )
        self.num_classes = num_classes
        self.repeats = augment.clips_per_video
        self.chance = augment.mix_chance
        self.kinds: list[torch.nn.Module] = []
        if augment.mixup or augment.cutmix:
            from torchvision.transforms import v2

            kinds = [(v2.MixUp, augment.mixup), (v2.CutMix, augment.cutmix)]
            self.kinds = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]

    def __call__(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            clips: floating point (N, C, T, H, W), on any device; those of a video follow each other.
            labels: int64 (N,).

        Returns:
            The clips, mixed, and targets (N, K): how much of each class every clip shows.
        """
        if not self.kinds or torch.rand(()).item() >= self.chance:
            return clips, F.one_hot(labels, self.num_classes).to(clips.dtype)
        kind = self.kinds[int(torch.randint(len(self.kinds), ()))]
        if self.repeats == 1:
            return _mix(kind, clips, labels)
        # torchvision mixes each clip with the one before it: the first clips of all videos, then the second ones ...
        places = torch.arange(len(clips), device=clips.device)
        order = places.view(-1, self.repeats).T.flatten()
        back = places.view(self.repeats, -1).T.flatten()
        mixed, targets = _mix(kind, clips[order], labels[order])
        return mixed[back], targets[back]


def _mix(kind: torch.nn.Module, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``Video`` is the one kind of tensor of five dimensions that torchvision mixes."""
    from torchvision.tv_tensors import Video

    mixed, targets = kind(Video(clips), labels)
    return mixed.as_subclass(Tensor), targets.to(clips.dtype)


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An epoch in which every class comes up equally often, to within one.

    As many slots as there are records are shared out among the classes that occur; each class fills its slots with
    its own records in random order, over and over. So a small class repeats its records and a large one leaves some
    out, others in the next epoch (class-balanced sampling: Kang et al. 2020, section 3).

    Args:
        labels: (R,) of the records.
        rng: decides the order.

    Returns:
        (R,) int64 indices of records, in random order.
    """
    by_class = np.split(np.argsort(labels, kind="stable"), np.flatnonzero(np.diff(np.sort(labels))) + 1)
    shares = np.full(len(by_class), len(labels) // len(by_class))
    shares[rng.permutation(len(by_class))[: len(labels) % len(by_class)]] += 1
    picked = []
    for records, share in zip(by_class, shares, strict=True):
        rounds = [rng.permutation(records) for _ in range(-(-int(share) // len(records)))]
        picked.append(np.concatenate([*rounds, records[:0]])[:share])
    return rng.permutation(np.concatenate(picked))
