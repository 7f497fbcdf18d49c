"""Config of the network that a file of weights belongs to: from its shapes, its names, and the config it may hold.

What none of them tells is left at its default or given by the caller: dropout, the instantiation of a non-local block
that has theta and phi, and whether frames are pooled in time.
"""

import re
from collections.abc import Mapping
from itertools import cycle
from typing import Any

from torch import Tensor

from gcvideo.config.model import BLOCKS_PER_STAGE
from gcvideo.errors import CheckpointError
from gcvideo.models.resnet3d import TEMPORAL_KERNELS
from gcvideo.weights.naming import GCVIDEO, TABLES, Naming, Part
from gcvideo.weights.reading import Weights

Parsed = list[tuple[Part, Tensor]]


def model_fields(weights: Weights, naming: Naming, *, arch: str | None = None) -> dict[str, Any]:
    """Fields of ``ModelConfig`` that a file of weights shows.

    Args:
        weights: the file.
        naming: its names.
        arch: "slow", "c2d" or "i3d", overriding what the file suggests; by default the architecture that the file
            states, else the one with the most similar temporal kernels.

    Raises:
        CheckpointError: these are not the weights of a ResNet.
    """
    if naming is GCVIDEO and isinstance(weights.extra.get("config"), Mapping):
        return dict(weights.extra["config"]["model"])
    parsed = [(part, tensor) for key, tensor in weights.tensors.items() if (part := naming.parse(key))]
    stated = _stated(weights, naming)
    stated_arch = stated.pop("arch", None)
    values = _trunk(parsed, arch=arch or stated_arch, where=weights.path)
    if not naming.image:
        values.setdefault("arch", "c2d")  # mmaction2's C2D is a network of 2D convolutions
    if context := _context(parsed):
        if naming is not GCVIDEO and context.get("instantiation") == "gaussian":
            context["scale"] = False  # mmcv never scales the plain gaussian
        values["context"] = {**stated, **context} if context["kind"] == "nl" else context
    return values


def _stated(weights: Weights, naming: Naming) -> dict[str, Any]:
    """Architecture, and fields of a non-local ``ContextConfig``, that names or the config inside state."""
    stated: dict[str, Any] = {k: v[0] for k, v in naming.when.items() if k == "subsample" or len(v) == 1}
    meta = weights.extra.get("meta")
    text = str(weights.extra.get("cfg") or (meta.get("cfg") if isinstance(meta, Mapping) else ""))
    for field, pattern in TABLES["stated"].items():
        if match := re.search(pattern, text):
            word = match[match.lastindex or 0]
            stated[field] = TABLES["translated"].get(word, word)
    if pool := re.search(r"\bPOOL:([\s\d,\[\]-]+)", text):  # PySlowFast's kernels of keys and values
        stated["subsample"] = "before" if max(map(int, re.findall(r"\d+", pool[1]))) > 1 else "none"
    return stated


def _trunk(parsed: Parsed, *, arch: str | None, where: str) -> dict[str, Any]:
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
    return {**values, **_temporal(parsed, stem, arch)}


def _depth(parsed: Parsed, bottleneck: bool, where: str) -> int:
    blocks = tuple(map(len, _places(parsed, "conv").values()))
    for depth, expected in BLOCKS_PER_STAGE.items():
        if blocks == expected and bottleneck == (depth >= 50):
            return depth
    raise CheckpointError(f"{where}: has {blocks} blocks in res2 to res5, like no ResNet of depth 18 to 152")


def _temporal(parsed: Parsed, stem: Tensor, arch: str | None) -> dict[str, Any]:
    """Architecture, and the temporal kernels that differ from its own; nothing for 2D weights."""
    if stem.dim() == 4:
        return {"arch": arch} if arch else {}
    convs = [(part.fields, tensor.shape[2]) for part, tensor in parsed if part.name == "conv"]
    if any(fields["conv"] == "b" and length > 1 for fields, length in convs):
        return {"arch": "i3d", "inflation": "3x3x3"}  # which of them have it is a matter of the architecture
    kernels: dict[str, list[int]] = {"stem": [stem.shape[2]]}
    for fields, length in sorted(convs, key=lambda conv: int(conv[0]["block"])):
        if fields["conv"] == "a":
            kernels.setdefault(f"res{fields['stage']}", []).append(length)
    arch = arch or max(TEMPORAL_KERNELS, key=lambda name: sum(map(sum, _compare(kernels, name).values())))
    differing = {stage: kernels[stage] for stage, same in _compare(kernels, arch).items() if not all(same)}
    return {"arch": arch, **({"temporal_kernels": differing} if differing else {})}


def _compare(kernels: dict[str, list[int]], arch: str) -> dict[str, list[bool]]:
    """For each stage, which blocks have the temporal kernels of an architecture."""
    own = TEMPORAL_KERNELS[arch]
    return {stage: [k == other for k, other in zip(along, cycle(own[stage]))] for stage, along in kernels.items()}


def _places(parsed: Parsed, prefix: str | tuple[str, ...]) -> dict[str, list[int]]:
    """Indices of the blocks of each stage that have parts of such a name."""
    places = sorted({(p.fields["stage"], int(p.fields["block"])) for p, _ in parsed if p.name.startswith(prefix)})
    return {f"res{stage}": [block for s, block in places if s == stage] for stage, _ in places}


def _context(parsed: Parsed) -> dict[str, Any]:
    """Fields of ``ContextConfig``, empty where there is no block."""
    if not (placed := _places(parsed, ("nl_", "gc_"))):
        return {}
    names = {part.name for part, _ in parsed}
    values: dict[str, Any]
    if "nl_conv" in names:
        g = _first(parsed, "nl_conv", where="", projection="g", leaf="weight")
        values = {"kind": "nl", "stages": placed, "reduction": g.shape[1] // g.shape[0], "norm": "nl_norm" in names}
        if "nl_concat" in names:
            values["instantiation"] = "concatenation"
        elif not any(part.fields.get("projection") == "theta" for part, _ in parsed):
            values["instantiation"] = "gaussian"
        return {**values, "bias": _has_bias(parsed, "nl_conv")}
    fusions = {part.fields["fusion"] for part, _ in parsed if "fusion" in part.fields}
    values = {"kind": "gc" if "gc_mask" in names else "se", "stages": placed}
    values["fusion"] = "scale_add" if len(fusions) == 2 else fusions.pop()
    if "gc_linear" in names:
        return {**values, "transform": "linear", "bias": _has_bias(parsed, "gc_linear")}
    reduce = _first(parsed, "gc_reduce", where="", leaf="weight")
    values["reduction"] = reduce.shape[1] // reduce.shape[0]
    values["transform"] = "bottleneck" if "gc_norm" in names else "squeeze"
    return {**values, "bias": _has_bias(parsed, "gc_reduce")}


def _has_bias(parsed: Parsed, name: str) -> bool:
    return any(part.name == name and part.leaf == "bias" for part, _ in parsed)


def _first(parsed: Parsed, name: str, *, where: str, **fields: str) -> Tensor:
    for part, tensor in parsed:
        if part.name == name and all(part.fields.get(field) == word for field, word in fields.items()):
            return tensor
    raise CheckpointError(f"{where}: not the weights of a ResNet: it has no {name} {fields or ''}".rstrip())
