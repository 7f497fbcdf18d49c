"""``gcvideo export CHECKPOINT|MODEL OUT``: a network as ONNX, as an exported program, or as a folder to publish."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gcvideo.config import RunConfig, TestConfig, config_to_dict
from gcvideo.console import percent, say
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.eval.trained import TrainedNetwork, load_trained
from gcvideo.files import require_writable, write_atomically, write_json
from gcvideo.models import create_model
from gcvideo.predict.export import export_network, quantize, save_pretrained, shareable
from gcvideo.predict.exported import SUFFIXES
from gcvideo.weights.reading import PREFIX, is_hub, push, refuse_code

# The largest difference from the network itself that is accepted, relative to its largest logit (at least 1).
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 5e-2}


def run(args: argparse.Namespace) -> None:
    """Export, compare with the network, write."""
    target = Path(args.target).expanduser()
    if not target.suffix:
        return _publish(args, target)
    if args.push or args.private:
        raise ConfigError(f"--push: uploads a folder; {args.target} is a file")
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"{args.target}: the suffix gives the format: .onnx or .pt2; none: a folder to publish")
    if (args.calibrate and not args.int8) or (args.int8 and (args.half or target.suffix != ".onnx")):
        raise ConfigError("--int8 writes an .onnx and goes without --half; --calibrate belongs to --int8")
    require_writable(target, key="the file to write")
    network = _load(args)
    options = {"classes": network.classes, "thresholds": network.thresholds, "dynamic": args.dynamic, "half": args.half}
    content, about, error = export_network(network.model, network.config, format=target.suffix, **options)
    if not error <= TOLERANCE[about["precision"]]:  # it may be NaN
        raise CheckpointError(f"{args.target}: not written, because its logits are {error:.1e} off the network's")
    results: dict[str, Any] = {"relative_error": error}
    if args.int8:
        content, results["int8"] = quantize(content, about, network.config, args.calibrate)
        about["precision"] = "int8"
    write_atomically(target, content)
    varying = ", ".join(("N", *about["dynamic"]))
    accuracy = f"logits within {error:.1e} of the network's" if not args.int8 else "logits as below"
    size = f"{len(content) / 2**20:.1f} MiB, {about['precision']}"
    say(f"wrote {args.target}: {size}, clips {about['clip']}, of which {varying} may vary; {accuracy}")
    if found := results.get("int8"):
        if found["top1_before"] is not None:
            say(f"top-1 before: {percent(found['top1_before'])}, after: {percent(found['top1_after'])}")
        say(
            f"on the {found['videos']} videos of the calibration, one clip each: the same best label for "
            f"{percent(found['same_label'])}; scores differ by {found['mean_difference']:.2g} on average, by "
            f"{found['largest_difference']:.2g} at most"
        )
    write_json(args.json, {"file": args.target, "bytes": len(content), **results, **about})


def _publish(args: argparse.Namespace, folder: Path) -> None:
    """Write the folder, and upload it."""
    if wrong := [name for name in ("frames", "size", "dynamic", "half", "int8", "calibrate") if getattr(args, name)]:
        raise ConfigError(f"--{wrong[0]}: for .onnx and .pt2; a folder holds the network as it is")
    require_writable(folder, key="the folder to write", folder=True)
    network = load_trained(args.model, device="cpu")
    results = {"folder": args.target, "commit": None}
    if args.push:
        refuse_code(config_to_dict(shareable(network.config)), args.model)
    save_pretrained(network, folder, repository=args.push and args.push.removeprefix(PREFIX))
    say(f"wrote {args.target}: look at its README.md, the model card, before others do")
    if args.push:
        results["commit"] = push(folder, args.push, private=args.private)
        say(f"uploaded: {results['commit']}; gcvideo.load('hf:{args.push.removeprefix(PREFIX)}') reads it")
    write_json(args.json, results)


def _load(args: argparse.Namespace) -> TrainedNetwork:
    """The network of a checkpoint, or a fresh one of that name, with its clips as the options say."""
    if not Path(args.model).expanduser().exists() and not Path(args.model).suffix and not is_hub(args.model):
        named = create_model(args.model, num_classes=args.num_classes)
        config = RunConfig(name=args.model, model=named.config, test=TestConfig(crop=224))
        network = TrainedNetwork(named.eval(), config, Path(), torch.device("cpu"), {})
    else:
        network = load_trained(args.model, device="cpu")
        config = network.config
    config.data.frames = args.frames or config.data.frames
    size = args.size or config.test.crop
    config.test = replace(config.test, crop=size, short_side=max(size, config.test.short_side))
    return network
