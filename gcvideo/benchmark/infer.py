"""Benchmark of testing a video: gcvideo's multi-view test beside pytorchvideo's network tested the usual way.

Measured: milliseconds from a video file to its mean softmax, decoding included. Theirs is pytorchvideo's slow_r50 in
plain float32, with one decode and one forward pass a view, as PySlowFast's loaders do it. gcvideo decodes the video
once and runs the optimized network (batch norms folded, bfloat16 where the device is faster in it), eager and compiled.
Matrix units for bf16 bring most of the advantage. Ratios are medians of times of the same round (see ``harness.py``).
One round before warms the contenders up; the compiled ones compile in it. ``onnxruntime`` and ``openvino`` run the gc
network as an ONNX file in float32, inside the same multi-view test.
"""

import argparse
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from gcvideo.benchmark import harness, peers
from gcvideo.benchmark.workloads import NETWORKS
from gcvideo.config import DataConfig, RunConfig, TestConfig
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.models import build_model, model_config
from gcvideo.predict.export import export_network
from gcvideo.predict.exported import ExportedNetwork
from gcvideo.predict.predictor import Predictor
from gcvideo.report.pictures import save_animation

EXPORTED = ["onnxruntime", "openvino"]  # what runs the gc network as an ONNX file


def run(args: argparse.Namespace) -> None:
    """Measure, print tables, and write the results."""
    device, precision, machine = harness.set_up(args)
    if not args.contenders:
        installed = [name for name in EXPORTED if find_spec(name) and find_spec("onnxscript")]
        args.contenders = [peers.NAME, "gc", "gc_compiled", "plain", "plain_compiled", *installed]
    test = TestConfig(clips=args.clips, crops=args.crops, crop=args.crop, short_side=args.crop)
    with tempfile.TemporaryDirectory() as folder:
        video = args.video or make_video(Path(folder) / "video.mp4")
        contenders = {name: tester(name, video, test, device, precision) for name in args.contenders}
        times = harness.time_contenders(contenders, rounds=args.rounds, device=device, title="infer")
    took = times.milliseconds()
    results = {"figures": times.ratios("infer"), "milliseconds": took, "machine": machine}
    count = test.clips * test.crops
    rows = [{"contender": name, "ms a video": ms, "ms a view": ms / count} for name, ms in took.items()]
    harness.finish(args, results, {f"{test.clips} x {test.crops} views of {test.crop}, {machine}": rows})


def make_video(path: Path) -> str:
    """Write ten seconds of a sliding texture: 300 frames of 340 x 256, H.264."""
    texture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([np.roll(texture, (t, 2 * t), axis=(0, 1))[:256, :340] for t in range(300)])
    save_animation(path, frames, fps=30)
    return str(path)


def tester(name: str, video: str, test: TestConfig, device: torch.device, precision: str) -> harness.Contender:
    """A function that reads the video from its file and predicts its class."""
    torch.manual_seed(0)
    if name == peers.NAME:
        network = peers.slow_r50(DataConfig().frames, test.crop).to(device).eval()
        return partial(peers.classify_video, network, video, device, test)
    kind = "gc" if name in EXPORTED else name.removesuffix("_compiled")
    config = RunConfig(name=name, model=model_config(NETWORKS[kind]), test=test)
    network = build_model(config.model)
    if name in EXPORTED:
        content, *_ = export_network(network.eval(), config, format=".onnx", dynamic=[])
        network = ExportedNetwork(content, suffix=".onnx", name=name, device=device, engine=name)
    else:
        network = optimize_for_inference(network.to(device), precision=precision, compile=name != kind)
    return partial(Predictor(network, config=config).predict, video, test=test)
