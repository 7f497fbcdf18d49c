"""Why a video got its label: Grad-CAM and attention maps of the clip in its middle, for pages and as files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gcvideo.config import TestConfig
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ViewDataset, make_views
from gcvideo.data.records import RecordTable
from gcvideo.eval.predictor import Predictor
from gcvideo.layers.non_local import NonLocalBlock
from gcvideo.models.resnet3d import last_feature_layer
from gcvideo.report.maps import attention_maps, grad_cam, resize_maps
from gcvideo.report.pictures import grid, overlay, ringed, save_animation, save_picture, tiles

MIDDLE = (0.5, 0.5, 0.5)
MAP_SUFFIXES = (".png", ".gif", ".mp4")
FROM_THE_RING = ", from the ring"  # ends the name of a map that is one query's


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
    block, a row each; ``STEM.gif`` and ``STEM.mp4`` play the same, side by side.

    Args:
        stem: the path of the files, less the ending; see ``map_stems``.

    Returns:
        the files; none where the video cannot be read.
    """
    clip = middle_clip(predictor, video)
    if clip is None:
        return []
    rows = explain(predictor, clip, target, query=query)
    files = [Path(f"{stem}{suffix}") for suffix in MAP_SUFFIXES]
    save_picture(files[0], grid(rows))
    played = np.stack([tiles([(name, row[t]) for name, row in rows]) for t in range(clip.shape[2])])
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


def label_in_the_middle(entry: dict[str, Any]) -> int:
    """The class to explain, of an entry as ``gcvideo predict --json`` writes it.

    Maps show the clip in the middle of the video; a timeline says what that clip was taken for.
    """
    for segment in entry.get("timeline", ()):
        if segment["end"] >= entry["duration"] / 2:
            return int(segment["index"])
    return int(entry["predictions"][0]["index"])


def explain(
    predictor: Predictor, clip: Tensor, target: int, *, query: tuple[float, float, float] = MIDDLE
) -> list[tuple[str, np.ndarray]]:
    """The frames of a clip as they are, then with Grad-CAM of a class and with the attention of each block over them.

    Args:
        clip: uint8 (1, 3, T, H, W).
        target: the class.
        query: whose attention non-local blocks show; see ``attention_maps``. A ring marks the place.

    Returns:
        rows of a name and frames uint8 (T, H, W, 3).
    """
    model = getattr(predictor.model, "_orig_mod", predictor.model)  # the network inside a compiled one
    dtype = next(model.parameters()).dtype
    data = predictor.config.data
    x = normalize(clip.to(predictor.device), mean=data.mean, std=data.std, dtype=dtype)
    frames = clip[0].permute(1, 2, 3, 0).contiguous().numpy()  # (T, H, W, 3)

    def over_frames(maps: Tensor) -> np.ndarray:
        return overlay(frames, resize_maps(maps, frames.shape[:3])[0].cpu().numpy())

    cam = grad_cam(model, x, target, layer=last_feature_layer(model))
    nothing = "" if cam.any() else ": 0 everywhere"
    rows = [("frames", frames), (f"Grad-CAM for {predictor.classes[target]}{nothing}", over_frames(cam))]
    for name, attention in attention_maps(model, x, query=query).items():
        title, shown = f"attention of {name.removesuffix('.context')}", over_frames(attention)
        if isinstance(model.get_submodule(name), NonLocalBlock):
            title, shown = title + FROM_THE_RING, ringed(shown, query)
        rows.append((title, shown))
    return rows
