"""Augmentation of training clips beyond crop and flip, all off by default (``data.augment``).

What changes single clips runs on uint8 in the worker processes, through torchvision's v2 transforms on the whole clip:
every frame gets the same draw. What mixes clips (mixup, cutmix) runs on the device, on normalised batches. torchvision
is imported only where it is needed: it takes 160 MB.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gcvideo.config import AugmentConfig, DataConfig, import_object
from gcvideo.errors import ConfigError

ClipAugment = Callable[[Tensor, np.random.Generator], Tensor]


def build_clip_augment(data: DataConfig) -> ClipAugment | None:
    """Augmentation of single clips: RandAugment, colour jitter, gamma, random erasing, ``data.augment.custom``.

    Returns:
        A function of a clip, uint8 (C, T, H, W), and the generator that decides all its draws, which applies them in
        this order; None where all are off.

    Raises:
        ConfigError: there is no such function ``custom`` or, once called, it returns something else than a clip like
            its own.
    """
    path, transforms = data.augment.custom, _transforms(data)
    custom = import_object(path, key="data.augment.custom") if path else None
    if custom is None and not transforms:
        return None

    def apply(clip: Tensor, rng: np.random.Generator) -> Tensor:
        shape, clip = clip.shape, clip.contiguous()
        if transforms:
            # (C, T, H, W) -> (T, C, H, W), which torchvision takes for one image with a leading dimension -> back
            clip = clip.transpose(0, 1)
            with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
                torch.manual_seed(int(rng.integers(2**63)))
                for transform in transforms:
                    clip = transform(clip)
            clip = clip.transpose(0, 1)
        if custom is not None:
            clip = custom(clip, rng)
            if not isinstance(clip, Tensor) or clip.dtype != torch.uint8 or clip.shape != shape:
                raise ConfigError(f"data.augment.custom: {path} must return a clip like its own, uint8 {tuple(shape)}")
        return clip.contiguous()

    return apply


def _transforms(data: DataConfig) -> list[Callable[[Tensor], Tensor]]:
    augment = data.augment
    if not (augment.rand_augment or any(augment.color_jitter) or augment.gamma or augment.erase):
        return []
    from torchvision.transforms import v2

    transforms: list[Callable[[Tensor], Tensor]] = []
    if augment.rand_augment:
        transforms.append(v2.RandAugment(num_ops=augment.rand_augment, magnitude=augment.rand_magnitude))
    if any(augment.color_jitter):
        brightness, contrast, saturation, hue = augment.color_jitter
        transforms.append(v2.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue))
    if augment.gamma:
        exponent = torch.distributions.Uniform(-1.0, 1.0)
        transforms.append(
            lambda clip: v2.functional.adjust_gamma(clip, (1 + augment.gamma) ** exponent.sample().item())
        )
    if augment.erase:
        # The mean colour: zero to the network, once normalised.
        transforms.append(v2.RandomErasing(p=augment.erase, value=[round(255 * channel) for channel in data.mean]))
    return transforms


class ClipMixer:
    """Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019): mixes each clip of a batch with one of another video.

    The other video is the one before its own in the batch. Draws from torch's global generator, on the host.

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
            found = f"{clips} of a single video at a time (data.augment.clips_per_video={augment.clips_per_video})"
            need = f"mixup and cutmix need clips of two videos or more, and one process takes {found}"
            raise ConfigError(f"data.augment: {need}; raise train.batch_size or lower train.accumulate")
        self.num_classes = num_classes
        self.augment = augment
        from torchvision.transforms import v2

        kinds = [(v2.MixUp, augment.mixup), (v2.CutMix, augment.cutmix)]
        self.kinds = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]

    def __call__(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            clips: floating point (N, C, T, H, W), on any device; those of a video follow each other.
            labels: int64 (N,), or what each clip shows of each class, (N, K).

        Returns:
            The clips, mixed, and targets (N, K): how much of each class every clip shows.
        """
        if not self.kinds or torch.rand(()).item() >= self.augment.mix_chance:
            return clips, (labels if labels.ndim == 2 else F.one_hot(labels, self.num_classes)).to(clips.dtype)
        from torchvision.tv_tensors import Video

        kind = self.kinds[int(torch.randint(len(self.kinds), ()))]
        # torchvision mixes each clip with the one before it: the first clips of all videos, then the second ones ...
        places = torch.arange(len(clips), device=clips.device)
        order = places.view(-1, self.augment.clips_per_video).T.flatten()
        back = places.view(self.augment.clips_per_video, -1).T.flatten()
        mixed, targets = kind(Video(clips[order]), labels[order])  # it takes five dimensions only as ``Video``
        return mixed.as_subclass(Tensor)[back], targets[back].to(clips.dtype)
