"""``gcvideo convert SRC DST --from FORMAT --to FORMAT``: weights from and to other toolkits."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gcvideo import console
from gcvideo.config import RunConfig, config_from_dict, config_to_dict, load_config
from gcvideo.data.annotations import load_classes
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.files import write_json
from gcvideo.models import build_model
from gcvideo.train.checkpoint import FORMAT
from gcvideo.weights import convert
from gcvideo.weights.naming import BLOCK_FORMATS, GCVIDEO, Naming, model_fields
from gcvideo.weights.reading import Weights, read_weights, write_weights


def run(args: argparse.Namespace) -> None:
    """Convert, print the account of every tensor, and refuse to write an incomplete network."""
    if Path(args.source).expanduser().resolve() == Path(args.target).expanduser().resolve():
        raise ConfigError(f"{args.target}: source and target are the same file")
    weights = read_weights(args.source, unsafe_pickle=args.unsafe_pickle)
    block = BLOCK_FORMATS.get(args.origin)
    if block is not None and all(map(block.knows, weights.tensors)):
        if args.destination not in BLOCK_FORMATS:
            raise ConfigError(f"--to {args.destination}: a context block alone goes to gcvideo, mmcv or timm")
        content, report, _ = convert.rename(weights.tensors, block, BLOCK_FORMATS[args.destination])
        report.source = f"{args.source} (one context block)"
        reports = [report]
    else:
        content, reports = _convert_network(weights, args)
    for line in (line for report in reports for line in report.lines()):
        console.say(line)
    write_json(args.json, [asdict(report) for report in reports])
    lost = [f"{key} found no place: {reason}" for report in reports for key, reason in report.unmatched.items()]
    lost += [f"{key} has no weights: {reason}" for report in reports for key, reason in report.missing.items()]
    if lost and not args.partial:
        raise CheckpointError(f"{args.source}: {lost[0]} (1 of {len(lost)}, listed above); --partial converts the rest")
    if Path(args.target).suffix == ".pkl" and args.destination != "caffe2":
        raise ConfigError(f"{args.target}: .pkl is Caffe2's; write .pth or .safetensors for {args.destination}")
    write_weights(args.target, convert.halved(content) if args.half else content)
    console.say(f"wrote {args.target}")


def _convert_network(weights: Weights, args: argparse.Namespace) -> tuple[dict[str, Any], list[convert.Report]]:
    """By way of gcvideo's own names, so that there is one table a toolkit instead of one a pair."""
    if "mmcv" in (args.origin, args.destination):
        raise ConfigError(f"{args.source}: mmcv means one context block; this is none in {args.origin}")
    naming = convert.find_naming(weights.tensors, where=args.source, format=args.origin)
    config = _config(weights, naming, args)
    with torch.device("meta"):
        model = build_model(config.model)
    state, report = convert.to_gcvideo(weights.tensors, naming, model)
    report.source = f"{args.source} ({naming.title})"
    if caveat := naming.caveats.get(config.model.arch):
        report.notes.append(caveat)
    if args.destination == "gcvideo":
        return _checkpoint(state, config, weights, args), [report]
    naming = convert.naming_to_write(args.destination, config.model)
    convert.check_limits(naming, config.model, where=args.source)
    theirs, onward, _ = convert.rename(state, GCVIDEO, naming)
    onward.source = f"to {naming.title}"
    return {naming.container: theirs} if naming.container else theirs, [report, onward]


def _config(weights: Weights, naming: Naming, args: argparse.Namespace) -> RunConfig:
    """The network of a file: as a config says, else as the file shows; in either case with the overrides."""
    if args.config:
        return load_config(args.config, args.overrides)
    given = dict(override.partition("=")[::2] for override in args.overrides)
    fields = model_fields(weights, naming, arch=given.get("model.arch"))
    context = fields.get("context", {})
    if context.get("kind") == "nl" and "instantiation" not in {*context, *(key.rpartition(".")[2] for key in given)}:
        raise ConfigError(
            f"{args.source}: its non-local blocks are softmax or dot product, which weights do not show: add "
            "model.context.instantiation=embedded_gaussian or model.context.instantiation=dot_product"
        )
    stored = weights.extra.get("config")
    values = stored if args.origin == "gcvideo" and isinstance(stored, dict) else {"name": Path(args.target).stem}
    return config_from_dict({**values, "model": fields}, where=args.source, overrides=args.overrides)


def _checkpoint(state: convert.State, config: RunConfig, weights: Weights, args: argparse.Namespace) -> dict[str, Any]:
    """A checkpoint to test, predict or start from; what a gcvideo one said of its training is kept."""
    fresh = {"classes": None, "fingerprint": "", "epoch": 0, "step": 0}
    content: dict[str, Any] = {"format": FORMAT, **{key: weights.extra.get(key, value) for key, value in fresh.items()}}
    if args.classes:
        content["classes"] = list(load_classes(args.classes))
        if len(content["classes"]) != config.model.num_classes:
            raise ConfigError(f"{args.classes}: not the names of the {config.model.num_classes} classes of the head")
    origin = {"file": str(args.source), "format": args.origin}
    return {**content, "model": state, "config": config_to_dict(config), "converted_from": origin}
