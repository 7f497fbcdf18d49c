"""What testing a video costs: our multi-view test beside pytorchvideo's network tested the usual way, decode included.

Every round answers the same video once with every contender, in a new order, so that other work on the machine hits
all of them alike; a figure is the median of the rounds' ratios. One clip of the video warms each contender up, in which
the compiled ones compile. Theirs is pytorchvideo's slow_r50 in plain float32, with one decode and one forward pass a
view, as PySlowFast's loaders do it. Ours decodes the video once and runs the optimized network (batch norms folded,
bfloat16 where the device has matrix units for it), eager and compiled.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from gcvideo import console
from gcvideo import device as runtime
from gcvideo.benchmark.peers.loaders import per_view_video
from gcvideo.benchmark.timing import alternate
from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.dataset import ViewDataset
from gcvideo.data.records import RecordTable
from gcvideo.device import has_bf16_units, pick_precision
from gcvideo.errors import ConfigError, VideoError
from gcvideo.eval.evaluator import score_videos
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.eval.predictions import VideoScores
from gcvideo.files import write_json
from gcvideo.models import create_model
from gcvideo.report.pictures import save_animation
from gcvideo.video.reader import open_video

THEIRS = "pytorchvideo"
# Contender -> model by name, and whether it is compiled.
OURS = {
    "gc": ("slow_r50_gc_c345", False),
    "gc_compiled": ("slow_r50_gc_c345", True),
    "plain": ("slow_r50", False),
    "plain_compiled": ("slow_r50", True),
}
Answer = Callable[[TestConfig], np.ndarray]  # from views to the mean softmax (K,) of the video
# Ratios that `figures` holds: name -> (numerator, denominator).
FIGURES = {
    "infer_video.pytorchvideo": (THEIRS, "gc"),
    "infer_video.pytorchvideo_compiled": (THEIRS, "gc_compiled"),
    "infer_video.gc_overhead": ("gc", "plain"),
    "infer_video.gc_overhead_compiled": ("gc_compiled", "plain_compiled"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``gcvideo benchmark infer``."""
    contenders = [THEIRS, *OURS]
    parser.add_argument("--contenders", nargs="+", choices=contenders, default=contenders, metavar="NAME")
    parser.add_argument("--video", metavar="FILE", help="the video; by default 10 s at 340 x 256 made for the purpose")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="videos of each contender (default 3)")
    parser.add_argument("--clips", type=int, default=10, metavar="N", help="clips a video (default 10)")
    parser.add_argument("--crops", type=int, default=3, choices=(1, 3, 5), help="crops a clip (default 3)")
    parser.add_argument("--crop", type=int, default=256, metavar="S", help="height and width of a view (default 256)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of ours")
    parser.add_argument("--views-per-batch", type=int, metavar="N", help="of ours; by default as gcvideo test chooses")
    parser.add_argument("--json", metavar="FILE", help="write figures, milliseconds and settings")


def run(args: argparse.Namespace) -> int | None:
    """Measure, print a table, and write the figures."""
    for name in ("rounds", "clips", "threads"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name}: must be 1 or more")
    test = TestConfig(
        clips=args.clips,
        crops=args.crops,
        short_side=args.crop,
        crop=args.crop,
        views_per_batch=args.views_per_batch,
    )
    device = runtime.pick_device(args.device)
    precision = pick_precision(args.precision, device)
    runtime.tune(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            video = args.video or make_video(Path(folder) / "video.mp4")
            answers = {name: contender(name, video, args.crop, device, precision) for name in args.contenders}
            results = measure(answers, test, rounds=args.rounds, device=device)
        results["device"] = runtime.describe(device, precision)
    finally:
        torch.set_num_threads(threads)
    settings = {key: value for key, value in vars(args).items() if key not in ("json", "contenders")}
    results |= {
        "settings": {**settings, "precision": precision},
        "bf16_units": has_bf16_units(device),
        "versions": runtime.versions(),
    }
    _show(results, test)
    if args.json:
        write_json(args.json, results)
    return None


def make_video(path: Path) -> str:
    """Ten seconds of a sliding texture: 300 frames of 340 x 256, H.264."""
    texture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([np.roll(texture, (t, 2 * t), axis=(0, 1))[:256, :340] for t in range(300)])
    save_animation(path, frames, fps=30)
    return str(path)


def contender(name: str, video: str, crop: int, device: torch.device, precision: str) -> Answer:
    """A function that answers the video once, from the file on."""
    torch.manual_seed(0)
    if name == THEIRS:
        return partial(their_answer, their_network(crop).to(device).eval(), video, device)
    model, compiled = OURS[name]
    network = create_model(model).to(device)
    return partial(our_answer, optimize_for_inference(network, precision=precision, compile=compiled), video)


def our_answer(model: nn.Module, video: str, test: TestConfig) -> np.ndarray:
    """What ``gcvideo test`` does for one video, without worker processes."""
    records = RecordTable.of_files([video])
    data = DataConfig()
    views = ViewDataset(records, data=data, test=test)[0]
    device = next(model.parameters()).device
    (answer,) = score_videos(model, [views], test=test, data=data, device=device)
    if not isinstance(answer, VideoScores):
        raise VideoError(video, answer.reason)
    return answer.softmax


def their_network(crop: int) -> nn.Module:
    """pytorchvideo's slow_r50 as its ``create_resnet`` makes it. Its head pools a fixed number of positions."""
    from pytorchvideo.models.resnet import create_resnet

    side = -(-crop // 32)
    network: nn.Module = create_resnet(
        model_depth=50, stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(DataConfig().frames, side, side)
    )
    return network


@torch.no_grad()
def their_answer(model: nn.Module, video: str, device: torch.device, test: TestConfig) -> np.ndarray:
    """One decode, one forward pass a view."""
    with open_video(video) as reader:
        count, fps = len(reader), reader.fps
    views = per_view_video(video, count, fps, clips=test.clips, crops=test.crops, size=test.crop)
    scores = [model(view[None].to(device)).softmax(dim=1)[0] for view in views]
    return torch.stack(scores).mean(dim=0).cpu().numpy()


def measure(answers: dict[str, Answer], test: TestConfig, *, rounds: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds a video of each contender, and the ratios between them, medians over the rounds."""
    with console.Progress("warm up", total=len(answers), unit="contenders", every=30) as progress:
        for answer in answers.values():
            answer(replace(test, clips=1))
            progress.advance(1)
    actions = {name: partial(answer, test) for name, answer in answers.items()}
    with console.Progress("infer", total=rounds * len(actions), unit="videos", every=30) as progress:
        seconds = alternate(actions, rounds=rounds, warmup=0, device=device, on_run=lambda: progress.advance(1))
    figures = {
        figure: median(a / b for a, b in zip(seconds[top], seconds[bottom], strict=True))
        for figure, (top, bottom) in FIGURES.items()
        if top in seconds and bottom in seconds
    }
    return {"figures": figures, "milliseconds": {name: 1000 * median(taken) for name, taken in seconds.items()}}


def _show(results: dict[str, Any], test: TestConfig) -> None:
    views = test.clips * test.crops
    rows = [[name, round(ms), round(ms / views, 1)] for name, ms in results["milliseconds"].items()]
    title = f"{test.clips} x {test.crops} views of {test.crop}, {results['device']}"
    console.table(rows, columns=["contender", "ms a video", "ms a view"], title=title)
    console.say()
    console.table([[k, round(v, 2)] for k, v in results["figures"].items()], columns=["figure", "ratio"])
    if not results["bf16_units"]:
        console.say("This device has no bf16 matrix units, from which most of the advantage comes.")
