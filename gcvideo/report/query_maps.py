"""One picture of what far-apart queries of a block attend to."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gcvideo.layers import BlockTrace
from gcvideo.report.maps import resize_maps
from gcvideo.report.pictures import grid, overlay

# Time, height and width of the queries as fractions of the clip: first and last frame, opposite corners.
QUERIES = ((0.0, 0.25, 0.25), (0.0, 0.75, 0.75), (1.0, 0.25, 0.75), (1.0, 0.75, 0.25))
GREEN = (0, 255, 0)


def far_apart_maps(clip: Tensor, trace: BlockTrace, *, max_frames: int = 8) -> np.ndarray:
    """The clip, and below it for each of four far-apart queries the weight that it gives to every place.

    All maps are drawn by one scale, from 0 to the highest weight of any of them, so that rows that look alike are
    alike. A green square marks the query. A block with one map for all queries has one row.

    Args:
        clip: uint8 (1, 3, T, H, W).
        trace: of that clip, with attention. Negative weights (of the dot product) are drawn by their size.
        max_frames: of longer clips so many evenly spaced frames are shown.

    Returns:
        uint8 (height, width, 3).
    """
    assert trace.attention is not None
    attention = trace.attention[0]  # (Q, T, H', W')
    frames, height, width = clip.shape[2:]
    shown = torch.linspace(0, frames - 1, min(frames, max_frames)).round().long()
    pictures = clip[0, :, shown].permute(1, 2, 3, 0).cpu().numpy()  # (F, H, W, 3)
    rows = [("clip", pictures)]
    size = trace.input.shape[2:]
    places = dict.fromkeys(_place(query, size) for query in QUERIES) if len(attention) > 1 else {(0, 0, 0): None}
    chosen = torch.stack([attention[(t * size[1] + y) * size[2] + x] for t, y, x in places])  # (R, T, H', W')
    maps = resize_maps(chosen.float().abs().cpu(), (frames, height, width), scale="none")[:, shown]
    maps = maps / maps.max().clamp_min(torch.finfo(torch.float32).tiny)
    for place, weights in zip(places, maps.numpy(), strict=True):
        row = overlay(pictures, weights)
        if len(attention) == 1:
            rows.append(("shared by all queries", row))
            continue
        t, y, x = place
        column = int((shown - t * (frames - 1) / max(size[0] - 1, 1)).abs().argmin())
        _mark(row[column], y * height / size[1], x * width / size[2], height / size[1], width / size[2])
        rows.append((f"query t={t} y={y} x={x} of {size[0]} x {size[1]} x {size[2]}", row))
    return grid(rows)


def _place(query: tuple[float, float, float], size: tuple[int, ...]) -> tuple[int, int, int]:
    t, y, x = (min(int(fraction * length), length - 1) for fraction, length in zip(query, size, strict=True))
    return t, y, x


def _mark(frame: np.ndarray, top: float, left: float, height: float, width: float) -> None:
    """Outline a box in a frame (H, W, 3), in place; a box too small to be seen is drawn larger around its centre."""
    line = max(1, len(frame) // 60)
    side = len(frame) / 12
    grown, widened = max(height, side), max(width, side)
    y, x = max(0, int(top - (grown - height) / 2)), max(0, int(left - (widened - width) / 2))
    box = frame[y : y + max(int(grown), 3 * line), x : x + max(int(widened), 3 * line)]
    box[:line] = box[-line:] = box[:, :line] = box[:, -line:] = GREEN
