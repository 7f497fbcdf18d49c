"""Why a video got its label: Grad-CAM and attention maps of the clip in its middle, for pages and as files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from gcvideo.analysis.maps import attention_maps, grad_cam, resize_maps
from gcvideo.analysis.pictures import grid, overlay, save_animation, save_picture
from gcvideo.config import TestConfig
from gcvideo.data.annotations import RecordTable
from gcvideo.data.dataset import ViewDataset, make_views
from gcvideo.data.transforms import normalize
from gcvideo.engine.predictor import Predictor

MIDDLE = (0.5, 0.5, 0.5)
MAP_SUFFIXES = (".png", ".gif", ".mp4")


def map_stems(folder: str | Path, videos: Sequence[str]) -> list[Path]:
    """Where the maps of each video go: ``folder/NAME_maps``, less the ending.

    A number is added where a file of that name is one of the videos, or belongs to another video of the same name.
    """
    taken = {os.path.abspath(video) for video in videos}
    stems = []
    for video in videos:
        name = f"{Path(video).stem[:100]}_maps"
        for number in itertools.count(1):
            stem = Path(folder) / (name if number == 1 else f"{name}_{number}")
            files = {os.path.abspath(f"{stem}{suffix}") for suffix in MAP_SUFFIXES}
            if not files & taken:
                break
        taken |= files
        stems.append(stem)
    return stems


def save_maps(
    stem: str | Path, predictor: Predictor, video: str, target: int, *, query: tuple[float, float, float] = MIDDLE
) -> list[Path]:
    """Write where the network looked in a video.

    ``STEM.png`` has the frames of the clip in its middle in the first row, then Grad-CAM and the attention of each
    block, a row each; ``STEM.gif`` and ``STEM.mp4`` play the same rows.

    Args:
        stem: the path of the files, less the ending; see ``map_stems``.

    Returns:
        the files; none where the video cannot be read.
    """
    clip = middle_clip(predictor, video)
    if clip is None:
        return []
    frames, maps = explain(predictor, clip, target, query=query)
    rows = [("frames", frames), *((name, overlay(frames, values)) for name, values in maps)]
    files = [Path(f"{stem}{suffix}") for suffix in MAP_SUFFIXES]
    save_picture(files[0], grid(rows))
    played = np.stack([grid([(name, row[t : t + 1]) for name, row in rows]) for t in range(len(frames))])
    for file in files[1:]:
        save_animation(file, played, fps=4)
    return files


def middle_clip(predictor: Predictor, video: str) -> Tensor | None:
    """The centre crop of the clip in the middle of a video: uint8 (1, 3, T, H, W); None if it cannot be read."""
    test: TestConfig = predictor.config.test
    middle = TestConfig(clips=3, crops=1, short_side=test.short_side, crop=test.crop, convention=test.convention)
    dataset = ViewDataset(RecordTable(ids=["0"], paths=[video], labels=[-1]), data=predictor.config.data, test=middle)
    views = dataset[0]
    return None if views.failure else make_views(views, [1])


def explain(
    predictor: Predictor, clip: Tensor, target: int, *, query: tuple[float, float, float] = MIDDLE
) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Grad-CAM of a class and the attention of every block for one clip.

    Args:
        clip: uint8 (1, 3, T, H, W).
        target: the class.
        query: whose attention non-local blocks show; see ``attention_maps``.

    Returns:
        frames uint8 (T, H, W, 3), and rows of name and map (T, H, W) in [0, 1].
    """
    model = getattr(predictor.model, "_orig_mod", predictor.model)  # the network inside a compiled one
    dtype = next(model.parameters()).dtype
    data = predictor.config.data
    x = normalize(clip.to(predictor.device), mean=data.mean, std=data.std, dtype=dtype)
    size = (clip.shape[2], clip.shape[3], clip.shape[4])
    maps = {"Grad-CAM": grad_cam(model, x, target, layer=model.get_submodule("res5"))}
    for name, attention in attention_maps(model, x, query=query).items():
        maps[f"attention of {name.removesuffix('.context')}"] = attention
    rows = [(name, resize_maps(m, size)[0].cpu().numpy()) for name, m in maps.items()]
    return clip[0].permute(1, 2, 3, 0).contiguous().numpy(), rows  # (T, H, W, 3)
