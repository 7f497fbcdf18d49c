"""Where a network looks: attention maps and Grad-CAM, computed and laid over the frames of a clip."""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ViewDataset, make_views
from gcvideo.data.records import RecordTable
from gcvideo.layers import BlockTrace, record_attention
from gcvideo.models.resnet3d import last_feature_layer
from gcvideo.predict.predictor import Predictor
from gcvideo.report.pictures import Row, overlay, ringed, save_animation, save_picture, sheet

Place = tuple[float, float, float]  # time, height and width as fractions of a clip, in [0, 1]

MIDDLE: Place = (0.5, 0.5, 0.5)
MOST_QUERIES = (8, 7, 7)  # frames, rows and columns of queries that a page offers


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


def scaled(maps: Tensor, highest: Tensor | None = None) -> Tensor:
    """Maps on the CPU, divided by their highest value, or by ``highest``; maps of zeros stay zeros."""
    highest = maps.max() if highest is None else highest
    return (maps / highest.clamp_min(torch.finfo(torch.float32).tiny)).cpu()


class Layer(NamedTuple):
    """What a network looks at in one layer: a row of the pictures and pages.

    Attributes:
        name: of the row.
        maps: (n, T', H', W') float32, drawn from 0 to 1. The first is that of ``Explanation.query``, or the only one;
            those of the queries of ``Explanation.grid`` follow.
        by_query: whether the first map belongs to the query, which a ring then marks.
    """

    name: str
    maps: Tensor
    by_query: bool = False


class Explanation(NamedTuple):
    """Where a network looks in a clip.

    Attributes:
        frames: of the clip, uint8 (T, H, W, 3).
        layers: Grad-CAM, then the attention of each block.
        query: whose maps the pictures show.
        grid: (T, Y, X), how many queries have maps; their places are the middles of as many equal parts of the clip.
    """

    frames: np.ndarray
    layers: list[Layer]
    query: Place
    grid: tuple[int, int, int] | None

    def rows(self) -> list[tuple[str, np.ndarray]]:
        """Names and frames, uint8 (T, H, W, 3): of the clip, and with the first map of each layer over them."""
        rows = [("frames", self.frames)]
        for layer in self.layers:
            shown = overlay(self.frames, resize_maps(layer.maps[:1], self.frames.shape[:3])[0].numpy())
            rows.append((layer.name, ringed(shown, self.query) if layer.by_query else shown))
        return rows


def places(grid: tuple[int, int, int]) -> list[Place]:
    """The queries of a grid (T, Y, X), in the order of their maps."""
    return [((t + 0.5) / grid[0], (y + 0.5) / grid[1], (x + 0.5) / grid[2]) for t, y, x in np.ndindex(grid)]


def explain(
    predictor: Predictor, clip: Tensor, target: int, *, query: Place = MIDDLE, all_queries: bool = False
) -> Explanation:
    """Grad-CAM of a class and the attention of each block in a clip.

    A non-local block has a row for the query, and one for the mean over all of its queries, which is the map that one
    for all would be. Both are drawn on one scale, from 0 to the median of the highest weights of the queries kept.

    Args:
        clip: uint8 (1, 3, T, H, W).
        target: the class.
        query: position whose attention non-local blocks show.
        all_queries: also keep the maps of a grid of other queries, at most ``MOST_QUERIES``.
    """
    model = getattr(predictor.model, "_orig_mod", predictor.model)  # the network inside a compiled one
    dtype, data = next(model.parameters()).dtype, predictor.config.data
    x = normalize(clip.to(predictor.device), mean=data.mean, std=data.std, dtype=dtype)
    cam = grad_cam(model, x, target, layer=last_feature_layer(model))
    nothing = "" if cam.any() else ": 0 everywhere"
    layers = [Layer(f"Grad-CAM for {predictor.classes[target]}{nothing}", scaled(cam))]
    with torch.no_grad(), record_attention(model) as recorded:
        model(x)
    traces: dict[str, Any] = {name: trace for name, trace in recorded.items() if trace.attention is not None}
    many = [trace.input.shape[2:] for trace in traces.values() if trace.attention.shape[1] > 1]
    grid: Any = tuple(map(min, MOST_QUERIES, map(max, *many, (0, 0, 0)))) if many and all_queries else None
    for name, trace in traces.items():
        title = f"attention of {name.removesuffix('.context')}"
        if trace.attention.shape[1] == 1:
            layers.append(Layer(title, scaled(map_of_query(trace, query).abs())))
            continue
        maps = torch.cat([map_of_query(trace, place) for place in [query, *(places(grid) if grid else ())]]).abs()
        mean, highest = trace.attention.float().abs().mean(1), maps.amax((1, 2, 3)).median()
        layers.append(Layer(f"{title}, from the ring", scaled(maps, highest), by_query=True))
        layers.append(Layer(f"{title}, mean of all queries", scaled(mean, highest)))
    return Explanation(clip[0].permute(1, 2, 3, 0).contiguous().numpy(), layers, query, grid)


def explain_video(predictor: Predictor, entry: dict[str, Any], **options: Any) -> Explanation | None:
    """``explain`` the label of a video's middle by the centre crop of the clip there.

    The label is that of the timeline in the middle, else the best one.
    None if it cannot be read or has no label, or if the predictor shows no layers.

    Args:
        entry: as ``gcvideo predict --json`` writes it.
        options: of ``explain``.
    """
    if not predictor.shows_layers or not entry["predictions"]:
        return None
    test = replace(predictor.config.test, clips=3, crops=1, whole_frame=False)
    records = RecordTable.of_files([entry["video"]])
    views = ViewDataset(records, data=predictor.config.data, test=test)[0]
    if views.failure:
        return None
    segments = (each for each in entry.get("timeline", ()) if each["end"] >= entry["duration"] / 2)
    target = next(segments, entry["predictions"][0])["index"]
    return explain(predictor, make_views(views)[1:2], target, **options)


def map_stems(folder: str | Path, videos: Sequence[str]) -> Iterator[Path]:
    """Where the maps of each video go: ``folder/NAME_maps``, without the suffix.

    A number is added if a file of that name is one of the videos, or belongs to another video of the same name.
    """
    taken = {os.path.splitext(os.path.abspath(video))[0] for video in videos}
    for video in videos:
        stem = Path(folder) / f"{Path(video).stem[:100]}_maps"
        tried = itertools.chain([stem], (stem.with_name(f"{stem.name}_{n}") for n in itertools.count(2)))
        stem = next(path for path in tried if os.path.abspath(path) not in taken)
        taken.add(os.path.abspath(stem))
        yield stem


def save_maps(stem: str | Path, explanation: Explanation) -> None:
    """Write where the network looked in a video.

    ``STEM.png`` has the frames of the clip in the first row, then Grad-CAM and the attention of each block, a row each;
    ``STEM.gif`` and ``STEM.mp4`` play the same, side by side. With non-local blocks, ``STEM_queries.png`` has the maps
    of the grid of queries in the middle of the clip.

    Args:
        stem: path of the files without the suffix; see ``map_stems``.
        explanation: of ``explain_video``.
    """
    rows = explanation.rows()
    strips = [[(name, frames[0]), *(("", frame) for frame in frames[1:])] for name, frames in rows]
    save_picture(f"{stem}.png", sheet(strips))
    columns = math.ceil(math.sqrt(len(rows)))
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    played = [
        sheet([[(name, frames[t]) for name, frames in line] for line in lines], frame_height=192)
        for t in range(len(rows[0][1]))
    ]
    for suffix in (".gif", ".mp4"):
        save_animation(f"{stem}{suffix}", np.stack(played), fps=4)
    if explanation.grid:
        save_picture(f"{stem}_queries.png", query_sheet(explanation))


def query_sheet(explanation: Explanation) -> np.ndarray:
    """The maps of the queries of one frame, as GCNet's figure 1 shows them for an image.

    For each non-local block a grid: the frame in the middle, over it the map of the query in the ring, summed over
    time, one for each query; and at its right the mean of all queries.

    Returns:
        uint8 (height, width, 3).
    """
    assert explanation.grid is not None
    count, height, width = explanation.grid
    number = int((count // 2 + 0.5) / count * len(explanation.frames))
    frame, rows = explanation.frames[number : number + 1], list[Row]()
    for layer, mean in itertools.pairwise(explanation.layers):
        if layer.by_query:
            of_frame = layer.maps[1:].unflatten(0, explanation.grid)[count // 2].flatten(0, 1)  # (Y * X, T', H', W')
            sums = torch.cat([of_frame, mean.maps]).sum(1, keepdim=True)
            sums = resize_maps(scaled(sums, sums.amax((1, 2, 3)).median()), frame.shape[:3])
            tiles = [overlay(frame, each.numpy()) for each in sums]
            queries = places((1, height, width))
            shown = [ringed(tile, (0, y, x))[0] for tile, (_, y, x) in zip(tiles, queries, strict=False)]
            lines = [[("", tile) for tile in shown[at : at + width]] for at in range(0, len(shown), width)]
            lines[0] = [(layer.name, shown[0]), *lines[0][1:], ("mean", tiles[-1][0])]
            rows += lines
    return sheet(rows, frame_height=64)
