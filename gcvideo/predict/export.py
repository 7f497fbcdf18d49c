"""Export a network as ONNX or as an exported program of PyTorch, and check the file against the network."""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gcvideo.errors import ConfigError

# The name in both formats under which the classes, pixel statistics and clip shape are kept, as JSON.
METADATA = "gcvideo"


def export_network(
    model: nn.Module, *, frames: int, size: int, format: str, metadata: dict[str, Any]
) -> tuple[bytes, float]:
    """Export a network with an open batch size.

    Args:
        model: (N, 3, frames, size, size) float32 -> (N, classes), in evaluation mode, on the CPU.
        format: ``.onnx`` or ``.pt2``.
        metadata: kept in the file, as JSON values.

    Returns:
        the content of the file, and its relative error on random clips; see ``compare``.

    Raises:
        InputShapeError: the network does not take such clips.
        ConfigError: a package for ONNX is missing.
    """
    if format == ".onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        raise ConfigError("ONNX export needs further packages: pip install 'gcvideo[export]'")
    example = torch.zeros(2, 3, frames, size, size)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    content = _to_onnx(program, metadata) if format == ".onnx" else _to_pt2(program, metadata)
    return content, compare(model, content, frames=frames, size=size, format=format)


def compare(model: nn.Module, content: bytes, *, frames: int, size: int, format: str) -> float:
    """The largest difference from the network's logits on random clips, in batches of one and three.

    Returns:
        relative to the largest logit, or to 1 where all are smaller; NaN where a logit is not finite.
    """
    generator = torch.Generator().manual_seed(0)
    call: Callable[[Tensor], Tensor]
    if format == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        call = lambda clips: torch.from_numpy(session.run(None, {"clips": clips.numpy()})[0])  # noqa: E731
    else:
        call = torch.export.load(io.BytesIO(content)).module()
    differences = []
    for batch in (1, 3):
        clips = torch.randn(batch, 3, frames, size, size, generator=generator)
        with torch.no_grad():
            expected, logits = model(clips), call(clips)
        differences.append((logits - expected).abs().max() / expected.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())


def _to_pt2(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """The bytes of a file for ``torch.export.load``; the metadata is its extra file ``gcvideo``."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def _to_onnx(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """The bytes of an ONNX file, input ``clips``, output ``logits``; the metadata is its property ``gcvideo``."""
    logging.disable(logging.WARNING)  # hides the exporter's warnings about its own work
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["clips"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
                custom_translation_table={torch.ops.aten.searchsorted.Tensor: _searchsorted()},
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)
    assert exported is not None
    exported.model.metadata_props[METADATA] = json.dumps(metadata)
    return exported.model_proto.SerializeToString()


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
