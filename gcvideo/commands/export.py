"""``gcvideo export CHECKPOINT|MODEL OUT.onnx|OUT.pt2``: a network as ONNX or as an exported program of PyTorch."""

import argparse
from pathlib import Path

from torch import nn

from gcvideo import console
from gcvideo.arguments import require_numbers
from gcvideo.config import RunConfig, TestConfig
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.eval.trained import load_trained
from gcvideo.files import require_writable, write_atomically, write_json
from gcvideo.models import create_model
from gcvideo.predict.export import export_network

# The largest difference from the network itself that is accepted, relative to its largest logit (at least 1).
TOLERANCE = 1e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = (
        "The input is float32 clips (batch, 3, T, H, W), normalised; any batch, T, H and W as exported. The output is "
        "logits (batch, classes). The file is run on random clips and compared with the network before it is written."
    )
    parser.add_argument("model", help="a checkpoint, the folder of a run, or the name of a network (slow_r50_gc_c345)")
    parser.add_argument("target", help="the file to write: .onnx or .pt2")
    parser.add_argument("--frames", type=int, help="T; by default data.frames of the checkpoint, else 8")
    parser.add_argument("--size", type=int, help="H and W; by default test.crop of the checkpoint, else 224")
    parser.add_argument("--num-classes", type=int, default=400, help="of a network given by name (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Export, compare with the network, write."""
    require_numbers(args, frames=1, size=1, num_classes=1)
    target = Path(args.target).expanduser()
    if target.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"{args.target}: the suffix gives the format: .onnx, or .pt2 for an exported program")
    require_writable(target, key="the file to write")
    model, config, classes = _load(args)
    frames, size = args.frames or config.data.frames, args.size or config.test.crop
    metadata = {
        "classes": classes,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "clip": [3, frames, size, size],
        "stride": config.data.stride,
    }
    content, error = export_network(model, frames=frames, size=size, format=target.suffix, metadata=metadata)
    if not error <= TOLERANCE:  # it may be NaN
        raise CheckpointError(f"{args.target}: not written, because its logits are {error:.1e} off the network's")
    write_atomically(target, content)
    console.say(f"wrote {args.target}: {len(content) / 2**20:.1f} MiB, logits within {error:.1e} of the network's")
    if args.json:
        write_json(args.json, {"file": args.target, "bytes": len(content), "relative_error": error, **metadata})


def _load(args: argparse.Namespace) -> tuple[nn.Module, RunConfig, list[str] | None]:
    """The network in evaluation mode, and the config and classes of its checkpoint (defaults for a named network)."""
    if not Path(args.model).expanduser().exists() and not Path(args.model).suffix:
        config = RunConfig(name=args.model, test=TestConfig(crop=224))
        return create_model(args.model, num_classes=args.num_classes).eval(), config, None
    network = load_trained(args.model, device="cpu")
    return network.model, network.config, network.classes
