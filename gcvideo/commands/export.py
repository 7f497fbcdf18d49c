"""``gcvideo export CHECKPOINT|MODEL OUT.onnx|OUT.pt2``: a network as ONNX or as an exported program of PyTorch."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcvideo import console
from gcvideo.config import DataConfig, RunConfig
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.files import write_atomically, write_json

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

# The largest difference from the network itself that is let pass, relative to its largest logit (at least 1).
TOLERANCE = 1e-4
# The name in both formats under which the classes, pixel statistics and clip shape are kept, as JSON.
METADATA = "gcvideo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = (
        "The input is float32 clips (batch, 3, T, H, W), normalised; any batch, T, H and W as exported. The output is "
        "logits (batch, classes). Both files are run on random clips and compared with the network before they count."
    )
    parser.add_argument("model", help="a checkpoint, the folder of a run, or the name of a network (slow_r50_gc_c345)")
    parser.add_argument("target", help="the file to write: .onnx or .pt2")
    parser.add_argument("--frames", type=int, help="T; by default data.frames of the checkpoint, else 8")
    parser.add_argument("--size", type=int, help="H and W; by default test.crop of the checkpoint, else 224")
    parser.add_argument("--num-classes", type=int, help="of a network given by name; by default 400")
    parser.add_argument("--json", metavar="FILE", help="write what was done there as well")


def run(args: argparse.Namespace) -> None:
    """Export, check against the network, write."""
    for name in ("frames", "size", "num_classes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be 1 or more")
    suffix = Path(args.target).suffix
    if suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"{args.target}: the ending tells the format: .onnx, or .pt2 for an exported program")
    if suffix == ".onnx":
        _require_onnx()
    model, config, classes = _load(args)
    frames = args.frames or (config.data.frames if config else 8)
    size = args.size or (config.test.crop if config else 224)
    console.say(f"exporting {args.model} for clips (batch, 3, {frames}, {size}, {size})")
    program = export_program(model, frames=frames, size=size)
    data = config.data if config else DataConfig()
    metadata = {
        "classes": classes,
        "mean": list(data.mean),
        "std": list(data.std),
        "clip": [3, frames, size, size],
        "stride": data.stride,
    }
    content = to_onnx(program, metadata) if suffix == ".onnx" else to_pt2(program, metadata)
    error = compare(model, content, frames=frames, size=size, format=suffix)
    if not error <= TOLERANCE:
        raise CheckpointError(f"{args.target}: not written, because its logits are {error:.1e} off the network's")
    try:
        write_atomically(Path(args.target).expanduser(), content)
    except OSError as reason:
        raise CheckpointError(f"{args.target}: cannot be written: {reason.strerror or reason}") from None
    console.say(f"wrote {args.target}: {len(content) / 2**20:.1f} MiB, logits within {error:.1e} of the network's")
    if args.json:
        write_json(args.json, {"file": args.target, "bytes": len(content), "relative_error": error, **metadata})


def export_program(model: nn.Module, *, frames: int, size: int) -> ExportedProgram:
    """Trace a network in evaluation mode, its batch size left open.

    Args:
        model: (N, 3, frames, size, size) -> (N, classes), in evaluation mode, on the CPU.

    Raises:
        InputShapeError: the network does not take such clips.
    """
    import torch

    example = torch.zeros(2, 3, frames, size, size)
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def to_pt2(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """The bytes of a file for ``torch.export.load``; the metadata is its extra file ``gcvideo``."""
    import torch

    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def to_onnx(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """The bytes of an ONNX file, input ``clips``, output ``logits``; the metadata is its property ``gcvideo``."""
    import torch

    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["clips"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            custom_translation_table={torch.ops.aten.searchsorted.Tensor: _searchsorted()},
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props[METADATA] = json.dumps(metadata)
    return exported.model_proto.SerializeToString()


def compare(model: nn.Module, content: bytes, *, frames: int, size: int, format: str) -> float:
    """The largest difference from the network's logits on random clips, in batches of one and three.

    Returns:
        relative to the largest logit, or to 1 where all are smaller.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    call = _onnx_runner(content) if format == ".onnx" else torch.export.load(io.BytesIO(content)).module()
    for batch in (1, 3):
        clips = torch.randn(batch, 3, frames, size, size, generator=generator)
        with torch.no_grad():
            expected, logits = model(clips), call(clips)
        difference = float((logits - expected).abs().max() / expected.abs().max().clamp(min=1))
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _load(args: argparse.Namespace) -> tuple[nn.Module, RunConfig | None, list[str] | None]:
    """The network in evaluation mode, and the config and classes of its checkpoint."""
    from gcvideo.eval.trained import load_trained
    from gcvideo.models import MODELS, create_model

    if args.model in MODELS:
        return create_model(args.model, num_classes=args.num_classes or 400).eval(), None, None
    if args.num_classes is not None:
        raise ConfigError("--num-classes: only for a network given by name; a checkpoint has its own classes")
    if not Path(args.model).expanduser().exists() and not Path(args.model).suffix:
        create_model(args.model)  # no file, and no ending: a misspelt name, whose error names the nearest
    network = load_trained(args.model, device="cpu")
    return network.model, network.config, network.classes


def _require_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"ONNX export needs the package {name}: pip install 'gcvideo[export]'")


def _onnx_runner(content: bytes) -> Any:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {"clips": clips.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own work from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _searchsorted() -> Any:
    """``torch.searchsorted`` in ONNX operators, for the concatenation form of the non-local block.

    ONNX has no such operator: the place of a value is the number of entries below it, counted over all pairs.
    """
    from onnxscript import INT64, opset18

    op: Any = opset18

    def count_below(ordered: Any, values: Any, **options: Any) -> Any:  # (N, K), (N, Q) -> (N, Q)
        below = op.Less(op.Unsqueeze(ordered, [1]), op.Unsqueeze(values, [2]))  # (N, Q, K)
        return op.ReduceSum(op.Cast(below, to=INT64.dtype), [2], keepdims=0)

    return count_below
