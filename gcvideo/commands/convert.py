"""``gcvideo convert SRC DST --from FORMAT --to FORMAT``: weights from and to other toolkits."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcvideo import console
from gcvideo.config import RunConfig, config_from_dict, config_to_dict, load_config
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from gcvideo.weights.naming import Naming
    from gcvideo.weights.reading import Weights
    from gcvideo.weights.report import Report

SOURCES = ("gcvideo", "pytorchvideo", "pyslowfast", "mmaction2", "caffe2", "torchvision", "timm", "gcnet", "mmcv")
EPILOG = """\
gcvideo, pytorchvideo, pyslowfast, mmaction2 and caffe2 are 3D networks. torchvision, timm and gcnet are 2D ones: their
kernels are inflated, and summed over time on the way back. mmcv (or timm, or gcvideo) may also be the state dict of one
context block alone. Which network a file holds is read from its shapes; key=value says what shapes cannot:
model.context.instantiation=dot_product, model.arch=slow for I3D and C2D without temporal pooling.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", help="a file of weights: .pt, .pth, .pyth, .safetensors; .pkl with --unsafe-pickle")
    parser.add_argument("target", help="the file to write; .safetensors and .pkl are written as such")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the network's config")
    parser.add_argument("--from", dest="origin", required=True, choices=SOURCES, help="the toolkit that wrote SRC")
    parser.add_argument("--to", dest="destination", required=True, choices=SOURCES, help="the toolkit to write for")
    parser.add_argument("--config", metavar="FILE", help="the gcvideo config of the network, instead of its shapes")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, to keep in a gcvideo checkpoint")
    parser.add_argument("--partial", action="store_true", help="convert what matches even if something does not")
    parser.add_argument("--unsafe-pickle", action="store_true", help="read a raw pickle, which can run any code")
    parser.add_argument("--json", metavar="FILE", help="write the account of every tensor there as well")


def run(args: argparse.Namespace) -> None:
    """Convert, print the account of every tensor, and refuse to write an incomplete network."""
    from gcvideo.weights.convert import is_block
    from gcvideo.weights.reading import read_weights

    if Path(args.source).expanduser().resolve() == Path(args.target).expanduser().resolve():
        raise ConfigError(f"{args.target}: source and target are the same file")
    weights = read_weights(args.source, unsafe_pickle=args.unsafe_pickle)
    if is_block(weights.tensors, args.origin):
        content, reports = _convert_block(weights, args)
    elif "mmcv" in (args.origin, args.destination):
        raise ConfigError(
            f"{args.source}: mmcv means one context block; this is not a state dict of one in {args.origin}"
        )
    else:
        content, reports = _convert_network(weights, args)
    for line in (line for report in reports for line in report.lines()):
        console.say(line)
    if args.json:
        write_json(args.json, [asdict(report) for report in reports])
    if not args.partial:
        _refuse_incomplete(args.source, reports)
    _write(args.target, content, args.destination)
    console.say(f"wrote {args.target}")


def _convert_block(weights: Weights, args: argparse.Namespace) -> tuple[dict[str, Any], list[Report]]:
    from gcvideo.weights.convert import convert_block
    from gcvideo.weights.naming import BLOCK_FORMATS

    if args.destination not in BLOCK_FORMATS:
        raise ConfigError(f"--to {args.destination}: a context block alone goes to gcvideo, mmcv or timm")
    state, report = convert_block(weights.tensors, args.origin, args.destination)
    report.source = f"{args.source} (one context block)"
    return state, [report]


def _convert_network(weights: Weights, args: argparse.Namespace) -> tuple[dict[str, Any], list[Report]]:
    """By way of gcvideo's own names, so that there is one table a toolkit instead of one a pair."""
    from gcvideo.weights.convert import check_limits, find_naming, from_gcvideo, naming_to_write, to_gcvideo

    naming = find_naming(weights.tensors, where=args.source, format=args.origin)
    config = _config(weights, naming, args)
    state, report = to_gcvideo(weights.tensors, naming, config.model)
    report.source = f"{args.source} ({naming.title})"
    if caveat := naming.caveats.get(config.model.arch):
        report.notes.append(caveat)
    if args.destination == "gcvideo":
        return _checkpoint(state, config, weights, args), [report]
    naming = naming_to_write(args.destination, config.model)
    check_limits(naming, config.model, where=args.source)
    theirs, onward = from_gcvideo(state, naming)
    onward.source = f"to {naming.title}"
    return {naming.container: theirs} if naming.container else theirs, [report, onward]


def _config(weights: Weights, naming: Naming, args: argparse.Namespace) -> RunConfig:
    """The network of a file: as a config says, else as the file shows; in either case with the overrides."""
    from gcvideo.weights.infer import model_fields

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
    values = stored if args.origin == "gcvideo" and isinstance(stored, dict) else {"name": _name(args.target)}
    return config_from_dict({**values, "model": fields}, where=args.source, overrides=args.overrides)


def _name(target: str) -> str:
    return Path(target).stem or "converted"


def _checkpoint(
    state: dict[str, Tensor], config: RunConfig, weights: Weights, args: argparse.Namespace
) -> dict[str, Any]:
    """A checkpoint to test, predict or start from; what a gcvideo one said of its training is kept."""
    from gcvideo.data.annotations import load_classes

    kept: dict[str, Any] = {
        key: weights.extra[key] for key in ("classes", "fingerprint", "epoch", "step") if key in weights.extra
    }
    classes = list(load_classes(args.classes)) if args.classes else kept.get("classes")
    if classes is not None and len(classes) != config.model.num_classes:
        raise ConfigError(f"{args.classes}: {len(classes)} class names for a head of {config.model.num_classes}")
    origin = {"file": str(args.source), "format": args.origin}
    defaults: dict[str, Any] = {"fingerprint": "", "epoch": 0, "step": 0, "converted_from": origin}
    return {**defaults, **kept, "model": state, "config": config_to_dict(config), "classes": classes}


def _refuse_incomplete(source: str, reports: list[Report]) -> None:
    for report in reports:
        for what, keys in (("found no place", report.unmatched), ("has no weights in the source", report.missing)):
            if keys:
                key, reason = next(iter(keys.items()))
                more = f" (and {len(keys) - 1} more, listed above)" if len(keys) > 1 else ""
                raise CheckpointError(f"{source}: {key} {what}: {reason}{more}; --partial converts the rest")


def _write(target: str, content: dict[str, Any], destination: str) -> None:
    from gcvideo.train.checkpoint import FORMAT, save_checkpoint
    from gcvideo.weights.reading import write_weights

    suffix = Path(target).suffix
    if suffix == ".pkl" and destination != "caffe2":
        raise ConfigError(f"{target}: .pkl is Caffe2's; write .pth or .safetensors for {destination}")
    if destination == "gcvideo" and "config" in content and suffix != ".safetensors":
        save_checkpoint(target, content)
    else:
        write_weights(target, {"format": FORMAT, **content} if "config" in content else content)
