"""Which network a set of weights belongs to: its config, read from the shapes.

What shapes cannot tell is left at its default or taken from the caller: dropout, the instantiation of a non-local block
that has theta and phi, and whether frames are pooled in time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gcvideo.config import BLOCKS_PER_STAGE
from gcvideo.errors import CheckpointError
from gcvideo.models.resnet3d import TEMPORAL_KERNELS
from gcvideo.weights.naming import Part

Parsed = list[tuple[Part, Tensor]]


def infer_model(parsed: Parsed, *, arch: str | None = None, where: str) -> dict[str, Any]:
    """The fields of ``ModelConfig`` that the weights of a whole network show.

    Args:
        parsed: parts and their tensors.
        arch: "slow", "c2d" or "i3d" where it is known; by default the one with the most similar temporal kernels.
        where: the file, for errors.

    Raises:
        CheckpointError: these are not the weights of a ResNet.
    """
    stem = _first(parsed, "stem_conv", where=where)
    conv_a = _first(parsed, "conv", where=where, stage="2", block="0", conv="a")
    conv_b = _first(parsed, "conv", where=where, stage="2", block="0", conv="b")
    width, bottleneck = stem.shape[0], any(p.name == "conv" and p.fields["conv"] == "c" for p, _ in parsed)
    values: dict[str, Any] = {"depth": _depth(parsed, bottleneck, where), "width": width}
    if bottleneck:
        hidden = conv_a.shape[0]
        values["groups"] = hidden // conv_b.shape[1]
        values["width_per_group"] = hidden * 64 // (width * values["groups"])
    head = [tensor for part, tensor in parsed if part.name == "head" and part.leaf == "weight"]
    if head:
        values["num_classes"] = head[0].shape[0]
    values.update(_temporal(parsed, stem, arch))
    context = _context(parsed)
    return {**values, "context": context} if context else values


def _depth(parsed: Parsed, bottleneck: bool, where: str) -> int:
    last = dict.fromkeys("2345", 0)
    for part, _ in parsed:
        if part.name == "conv":
            last[part.fields["stage"]] = max(last[part.fields["stage"]], int(part.fields["block"]) + 1)
    blocks = tuple(last.values())
    for depth, expected in BLOCKS_PER_STAGE.items():
        if blocks == expected and bottleneck == (depth >= 50):
            return depth
    raise CheckpointError(f"{where}: has {blocks} blocks in res2 to res5, like no ResNet of depth 18 to 152")


def _temporal(parsed: Parsed, stem: Tensor, arch: str | None) -> dict[str, Any]:
    """Architecture, and the temporal kernels in which the weights differ from it; nothing for 2D weights."""
    if stem.dim() == 4:
        return {"arch": arch} if arch else {}
    kernels: dict[str, list[int]] = {"stem": [stem.shape[2]]}
    in_b = 1
    for part, tensor in sorted((p for p in parsed if p[0].name == "conv"), key=lambda p: int(p[0].fields["block"])):
        if part.fields["conv"] == "a":
            kernels.setdefault(f"res{part.fields['stage']}", []).append(tensor.shape[2])
        if part.fields["conv"] == "b":
            in_b = max(in_b, tensor.shape[2])
    if in_b > 1:  # the 3 x 3 convolutions carry the time; which of them is a matter of the architecture
        return {"arch": "i3d", "inflation": "3x3x3"}
    arch = arch or max(TEMPORAL_KERNELS, key=lambda name: _agreement(kernels, TEMPORAL_KERNELS[name]))
    differing = {
        stage: along for stage, along in kernels.items() if along != _repeat(TEMPORAL_KERNELS[arch][stage], len(along))
    }
    return {"arch": arch, **({"temporal_kernels": differing} if differing else {})}


def _agreement(kernels: dict[str, list[int]], basis: dict[str, list[int]]) -> int:
    return sum(
        one == other
        for stage, along in kernels.items()
        for one, other in zip(along, _repeat(basis[stage], len(along)), strict=True)
    )


def _repeat(basis: list[int], count: int) -> list[int]:
    return [basis[i % len(basis)] for i in range(count)]


def _context(parsed: Parsed) -> dict[str, Any]:
    """Fields of ``ContextConfig``, empty where there is no block."""
    stages: dict[str, set[int]] = {}
    for part, _ in parsed:
        if part.name.startswith(("nl_", "gc_")):
            stages.setdefault(f"res{part.fields['stage']}", set()).add(int(part.fields["block"]))
    if not stages:
        return {}
    placed = {stage: sorted(blocks) for stage, blocks in sorted(stages.items())}
    names = {part.name for part, _ in parsed}
    if "nl_conv" in names:
        return {"stages": placed, **_non_local(parsed, names)}
    fusions = {part.fields["fusion"] for part, _ in parsed if "fusion" in part.fields}
    values: dict[str, Any] = {"kind": "gc" if "gc_mask" in names else "se", "stages": placed}
    values["fusion"] = "scale_add" if len(fusions) == 2 else fusions.pop()
    if "gc_linear" in names:
        return {**values, "transform": "linear", "bias": _has_bias(parsed, "gc_linear")}
    reduce = _first(parsed, "gc_reduce", where="", leaf="weight")
    values["reduction"] = reduce.shape[1] // reduce.shape[0]
    values["transform"] = "bottleneck" if "gc_norm" in names else "squeeze"
    return {**values, "bias": _has_bias(parsed, "gc_reduce")}


def _non_local(parsed: Parsed, names: set[str]) -> dict[str, Any]:
    g = _first(parsed, "nl_conv", where="", projection="g", leaf="weight")
    values: dict[str, Any] = {"kind": "nl", "reduction": g.shape[1] // g.shape[0], "norm": "nl_norm" in names}
    values["bias"] = _has_bias(parsed, "nl_conv")
    if "nl_concat" in names:
        values["instantiation"] = "concatenation"
    elif not any(part.fields.get("projection") == "theta" for part, _ in parsed):
        values["instantiation"] = "gaussian"
    return values


def _has_bias(parsed: Parsed, name: str) -> bool:
    return any(part.name == name and part.leaf == "bias" for part, _ in parsed)


def _first(parsed: Iterable[tuple[Part, Tensor]], name: str, *, where: str, **fields: str) -> Tensor:
    for part, tensor in parsed:
        if part.name == name and all(part.fields.get(field) == word for field, word in fields.items()):
            return tensor
    raise CheckpointError(f"{where}: not the weights of a ResNet: it has no {name} {fields or ''}".rstrip())
