"""Where a network looks: attention maps and Grad-CAM, computed and laid over the frames of a clip."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ViewDataset, make_views
from gcvideo.data.records import RecordTable
from gcvideo.layers import BlockTrace, NonLocalBlock, record_attention
from gcvideo.models.resnet3d import last_feature_layer
from gcvideo.predict.predictor import Predictor
from gcvideo.report.pictures import film_strip, overlay, ringed, save_animation, save_picture, sheet

Place = tuple[float, float, float]  # time, height and width as fractions of a clip, in [0, 1]
Rows = list[tuple[str, np.ndarray]]  # names, and frames uint8 (T, H, W, 3)

MIDDLE: Place = (0.5, 0.5, 0.5)
# Queries that are far apart: first and last frame, opposite corners.
FAR_APART: tuple[Place, ...] = ((0.0, 0.25, 0.25), (0.0, 0.75, 0.75), (1.0, 0.25, 0.75), (1.0, 0.75, 0.25))
FROM_THE_RING = ", from the ring"  # ends the name of a map that belongs to one query


def attention_maps(model: nn.Module, clips: Tensor, *, query: Place = MIDDLE) -> dict[str, Tensor]:
    """Attention map of each context or non-local block.

    A block that pools by attention has one map, shared by all queries (GCNet, section 3.1). A non-local block has one
    for each query position; ``query`` chooses it. Blocks that pool by average have no map and are left out.

    Args:
        model: not compiled.
        clips: (N, 3, T, H, W), as the model takes them.
        query: position in the clip, for non-local blocks: fractions in [0, 1].

    Returns:
        block name -> (N, T', H', W') float32 at the block's own resolution, in order of execution. Softmax attention
        sums to 1 over all positions. That of the dot product is not normalised, and may be negative.
    """
    with torch.no_grad(), record_attention(model) as traces:
        model(clips)
    return {name: map_of_query(trace, query) for name, trace in traces.items() if trace.attention is not None}


def map_of_query(trace: BlockTrace, query: Place) -> Tensor:
    """The attention map (N, T', H', W') of one query, float32; the shared one if a block has only that."""
    assert trace.attention is not None
    attention = trace.attention.float()  # (N, 1 or queries, T', H', W')
    if attention.shape[1] == 1:
        return attention[:, 0]
    size = trace.input.shape[2:]
    position = [min(int(fraction * length), length - 1) for fraction, length in zip(query, size, strict=True)]
    return attention[:, int(np.ravel_multi_index(position, size))]


def grad_cam(model: nn.Module, clips: Tensor, target: int | Tensor, *, layer: nn.Module) -> Tensor:
    """Grad-CAM over time and space (Selvaraju et al. 2017, equations 1 and 2): which positions speak for a class.

    A channel's weight is the gradient of the class's logit, averaged over T, H and W; the map is the positive part of
    the weighted sum of the channels.

    Args:
        model: in evaluation mode.
        clips: (N, 3, T, H, W).
        target: class of all clips, or of each (N,).
        layer: whose output (N, C, T', H', W') is weighted, usually the last stage, ``model.res5``.

    Returns:
        (N, T', H', W') float32, at least 0, in the units of logit x activation.
    """
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        with torch.enable_grad():
            logits = model(clips.detach().requires_grad_())  # the graph starts at the input: weights may be frozen
            chosen = torch.as_tensor(target, device=logits.device).expand(len(clips))
            (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), outputs[-1])
    finally:
        handle.remove()
    weights = gradient.float().mean(dim=(2, 3, 4), keepdim=True)  # (N, C, 1, 1, 1)
    return (weights * outputs[-1].detach().float()).sum(dim=1).relu()


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (N, T', H', W') at the clip's (T, H, W), by trilinear interpolation."""
    return F.interpolate(maps[:, None].float(), size=tuple(size), mode="trilinear", align_corners=False)[:, 0]


def stretch(maps: Tensor) -> Tensor:
    """Each map (N, T, H, W) scaled to [0, 1], its lowest value to 0 and its highest to 1; a constant map becomes 0."""
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)


def explain(predictor: Predictor, clip: Tensor, target: int, *, query: Place = MIDDLE) -> Rows:
    """The frames of a clip, then Grad-CAM of a class and the attention of each block over them.

    Args:
        clip: uint8 (1, 3, T, H, W).
        target: the class.
        query: position whose attention non-local blocks show; a ring marks it.

    """
    model = getattr(predictor.model, "_orig_mod", predictor.model)  # the network inside a compiled one
    dtype, data = next(model.parameters()).dtype, predictor.config.data
    x = normalize(clip.to(predictor.device), mean=data.mean, std=data.std, dtype=dtype)
    frames = clip[0].permute(1, 2, 3, 0).contiguous().numpy()  # (T, H, W, 3)

    def over_frames(maps: Tensor) -> np.ndarray:
        return overlay(frames, stretch(resize_maps(maps, frames.shape[:3]))[0].cpu().numpy())

    cam = grad_cam(model, x, target, layer=last_feature_layer(model))
    nothing = "" if cam.any() else ": 0 everywhere"
    rows = [("frames", frames), (f"Grad-CAM for {predictor.classes[target]}{nothing}", over_frames(cam))]
    for name, attention in attention_maps(model, x, query=query).items():
        title, shown = f"attention of {name.removesuffix('.context')}", over_frames(attention)
        if isinstance(model.get_submodule(name), NonLocalBlock):
            title, shown = title + FROM_THE_RING, ringed(shown, query)
        rows.append((title, shown))
    return rows


def explain_video(predictor: Predictor, entry: dict[str, Any], *, query: Place = MIDDLE) -> Rows:
    """``explain`` the label of a video's middle by the centre crop of the clip there.

    No rows if it cannot be read or has no label, or if the predictor shows no layers.

    Args:
        entry: as ``gcvideo predict --json`` writes it.
        query: position whose attention non-local blocks show.
    """
    if not predictor.shows_layers or not entry["predictions"]:
        return []
    test = replace(predictor.config.test, clips=3, crops=1, whole_frame=False)
    records = RecordTable.of_files([entry["video"]])
    views = ViewDataset(records, data=predictor.config.data, test=test)[0]
    if views.failure:
        return []
    return explain(predictor, make_views(views, [1]), label_in_the_middle(entry), query=query)


def label_in_the_middle(entry: dict[str, Any]) -> int:
    """Class of the middle of a video, of which maps show a clip: that of the timeline there, else the best one.

    Args:
        entry: as ``gcvideo predict --json`` writes it.
    """
    for segment in entry.get("timeline", ()):
        if segment["end"] >= entry["duration"] / 2:
            return int(segment["index"])
    return int(entry["predictions"][0]["index"])


def map_stems(folder: str | Path, videos: Sequence[str]) -> list[Path]:
    """Where the maps of each video go: ``folder/NAME_maps``, without the suffix.

    A number is added if a file of that name is one of the videos, or belongs to another video of the same name.
    """
    taken = {os.path.splitext(os.path.abspath(video))[0] for video in videos}
    stems = []
    for video in videos:
        name = stem = f"{Path(video).stem[:100]}_maps"
        numbers = itertools.count(2)
        while os.path.abspath(Path(folder) / stem) in taken:
            stem = f"{name}_{next(numbers)}"
        taken.add(os.path.abspath(Path(folder) / stem))
        stems.append(Path(folder) / stem)
    return stems


def save_maps(stem: str | Path, rows: Rows) -> None:
    """Write where the network looked in a video.

    ``STEM.png`` has the frames of the clip in the first row, then Grad-CAM and the attention of each block, a row each;
    ``STEM.gif`` and ``STEM.mp4`` play the same, side by side.

    Args:
        stem: path of the files without the suffix; see ``map_stems``.
        rows: of ``explain_video``.
    """
    save_picture(f"{stem}.png", sheet([film_strip(*row) for row in rows]))
    columns = math.ceil(math.sqrt(len(rows)))
    grid = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    played = [
        sheet([[(name, frames[t]) for name, frames in line] for line in grid], frame_height=192)
        for t in range(len(rows[0][1]))
    ]
    for suffix in (".gif", ".mp4"):
        save_animation(f"{stem}{suffix}", np.stack(played), fps=4)


def far_apart_maps(clip: Tensor, trace: BlockTrace) -> np.ndarray:
    """One picture of a clip and, below it, the attention maps of four far-apart queries, each marked by a ring.

    Of a long clip 8 evenly spaced frames are shown. All maps have one colour scale, from 0 to the highest weight of any
    of them, so rows that look alike are alike. A block with one map for all queries has one row.

    Args:
        clip: uint8 (1, 3, T, H, W).
        trace: of that clip, with attention. Negative weights (of the dot product) are drawn by their size.

    Returns:
        uint8 (height, width, 3).
    """
    assert trace.attention is not None
    size = clip.shape[2:]  # (T, H, W)
    shown = torch.linspace(0, size[0] - 1, min(size[0], 8)).round().long()
    frames = clip[0, :, shown].permute(1, 2, 3, 0).cpu().numpy()
    is_shared = trace.attention.shape[1] == 1
    queries = (MIDDLE,) if is_shared else FAR_APART
    maps = torch.cat([map_of_query(trace, query) for query in queries]).abs().cpu()
    maps = resize_maps(maps, size)[:, shown]
    maps = maps / maps.max().clamp_min(torch.finfo(torch.float32).tiny)
    rows = [film_strip("clip", frames)]
    for query, weights in zip(queries, maps.numpy(), strict=True):
        row = overlay(frames, weights)
        t, y, x = query
        name = "shared by all queries" if is_shared else f"query t={t:g} y={y:g} x={x:g}, in fractions of the clip"
        rows.append(film_strip(name, row if is_shared else ringed(row, query)))
    return sheet(rows)
