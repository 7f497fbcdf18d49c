"""Benchmark of reading videos: gcvideo beside other toolkits' ways, on the same clips, in one process, on one core.

Measured: CPU milliseconds, over all threads of the process, to read a training clip (8 frames, stride 8, a 224 x 224
crop) and all 30 views of a test video. All contenders read the same clip several times, alternating in shuffled order;
a contender's cost is its median, and costs add up over the clips. A ratio is the sum of another way divided by that of
gcvideo: above 1, gcvideo is faster. ``train_clip.bound`` is the reverse: the sum of gcvideo divided by that of decoding
the pictures that cannot be left out and converting the frames of the clip, without everything else (``bare_decode``).
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from gcvideo import console
from gcvideo.benchmark import harness, peers
from gcvideo.benchmark.peers import Clip, Views, bare_decode
from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.annotations import videos_under
from gcvideo.data.crops import crop_and_resize, random_short_side_box
from gcvideo.data.dataset import ViewDataset, make_views
from gcvideo.data.records import RecordTable
from gcvideo.device import keep_freed_memory
from gcvideo.errors import DataError, VideoError
from gcvideo.video import open_video

FRAMES, STRIDE, CROP = 8, 8, 224
TEST = TestConfig(clips=10, crops=3, short_side=256, crop=256)
# gcvideo's contenders: name -> decoder.
OURS = {"ours": "auto", "ours, decord": "decord", "ours, pyav": "pyav"}
CLIP_PEERS = {
    "mmaction2": peers.mmaction2_clip,
    "pytorchvideo": peers.pytorchvideo_clip,
    "libav": peers.libav_clip,
    "decord": peers.decord_clip,
}
VIEW_PEERS = {"mmaction2": peers.mmaction2_views, "per_view": peers.per_view_video}


def run(args: argparse.Namespace) -> None:
    """Measure, print tables, and write the results."""
    folder = Path(args.directory)
    names = videos_under(folder, files_only=True)
    if not names:
        raise DataError(f"{folder}: no such folder, or no videos in it")
    names = [names[i] for i in np.linspace(0, len(names) - 1, min(args.videos, len(names))).astype(int)]
    sides = [[folder / name for name in names]]
    if args.prepared:
        sides.append([Path(args.prepared, name).with_suffix(".mp4") for name in names])
    pairs, rng = list(zip(*sides, strict=True)), np.random.default_rng(args.seed)
    seeds = [(pair, seed) for pair in pairs for seed in rng.integers(2**32, size=args.clips).tolist()]
    clips = [[draw_clip(path, seed) for path in pair] for pair, seed in seeds]
    videos = [[peers.all_views(str(path), TEST) for path in pair] for pair in pairs]
    torch.set_num_threads(1)
    keep_freed_memory(64 << 20)  # as in the workers
    if hasattr(os, "sched_setaffinity"):  # the threads that decoders start stay on one core too
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    milliseconds = {
        "train_clip": measure(clips, our_clip, CLIP_PEERS, args.repeats),
        "test_video": measure(videos, our_views, VIEW_PEERS, args.repeats),
    }
    ratios = {name: ratio for measured in milliseconds.items() for name, ratio in ratios_of(*measured).items()}
    tables = {
        f"{kind}, mean of {len(names)} videos": [{"contender": k, "CPU ms": ms} for k, ms in costs.items()]
        for kind, costs in milliseconds.items()
    }
    if args.prepared:
        old, new = (sum(map(os.path.getsize, side)) for side in sides)
        ratios["prepared.bytes"] = new / old
    results = {"figures": ratios, "milliseconds": milliseconds, "measured": [str(path) for path in sides[0]]}
    harness.finish(args, results, tables)


def measure(cases: Sequence[Any], ours: Callable[..., Any], peers: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Mean over the cases of each contender's CPU milliseconds, medians over ``repeats``.

    Args:
        cases: what to read: (clip or views,) or (clip or views, the same of the transcoded copy).
        ours: gcvideo's way to read it, with a keyword ``backend``.
        peers: other ways by name.
        repeats: measurements of each.
    """
    costs: dict[str, list[float]] = defaultdict(list)
    with console.Progress("reading", total=len(cases), unit="cases") as progress:
        for case, *copies in cases:
            contenders: dict[str, Callable[[], Any]] = {n: partial(ours, case, backend=b) for n, b in OURS.items()}
            contenders |= {name: partial(peer, case) for name, peer in peers.items()}
            for copy in copies:
                contenders["ours, prepared"] = partial(ours, copy)
            for bound, place in zip(("bound", "prepared, bound"), (case, *copies), strict=False):
                if isinstance(place, Clip) and (decode := bare_decode(place)):
                    contenders[bound] = decode
            for name, ms in harness.time_contenders(contenders, rounds=repeats).milliseconds().items():
                costs[name].append(ms)
            progress.advance()
    return {name: fmean(values) for name, values in costs.items() if len(values) == len(cases)}


def ratios_of(kind: str, costs: Mapping[str, float]) -> dict[str, float]:
    """Cost of each other way divided by that of gcvideo's, under the names of ``ratios.yaml``; and ours over bounds."""
    bounds = {f"{kind}.bound": ("ours", "bound"), f"prepared.{kind}.bound": ("ours, prepared", "prepared, bound")}
    return {name: costs[ours] / costs[bound] for name, (ours, bound) in bounds.items() if bound in costs} | {
        pattern.format(f"{kind}.{name}"): cost / costs[ours]
        for ours, pattern in harness.RATIOS["loader"].items()
        if ours in costs
        for name, cost in costs.items()
        if not name.startswith("ours") and not name.endswith("bound")
    }


def draw_clip(path: Path, seed: int) -> Clip:
    """A random clip of a video; the same seed gives the same clip of a copy."""
    rng = np.random.default_rng(seed)
    with open_video(path) as video:
        slack = len(video) - FRAMES * STRIDE
        if slack < 0:
            raise VideoError(path, f"is shorter than {FRAMES * STRIDE} frames; measure with longer videos")
        indices = int(rng.random() * (slack + 1)) + STRIDE * np.arange(FRAMES)
        box = random_short_side_box(video.height, video.width, short_side=(256, 320), crop=CROP, rng=rng)
        return Clip(str(path), indices, video.fps, video.height, box, CROP, bool(rng.integers(2)))


def our_clip(clip: Clip, *, backend: str = "auto") -> torch.Tensor:
    """Read a clip as ``ClipDataset`` does; uint8 (3, T, H, W)."""
    with open_video(clip.path, backend=backend) as video:
        frames = video.frames(clip.indices, clip.box)
    return crop_and_resize(frames, (0, 0, *clip.box[2:]), (clip.size, clip.size), flip=clip.flip)


def our_views(video: Views, *, backend: str = "auto") -> torch.Tensor:
    """Read a video as ``ViewDataset`` does, and make its views on the CPU; uint8 (30, 3, T, 256, 256)."""
    data = DataConfig(frames=FRAMES, stride=STRIDE, backend=backend)  # type: ignore[arg-type]
    views = ViewDataset(RecordTable.of_files([video.path]), data=data, test=TEST)[0]
    if views.failure:
        raise VideoError(views.failure.path, views.failure.reason)
    return make_views(views)
