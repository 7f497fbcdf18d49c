"""Config of the network that a file of weights belongs to: from its shapes, its names, and the config it may hold.

What none of them tells is left at its default or given by the caller: dropout, the instantiation of a non-local block
that has theta and phi, and whether frames are pooled in time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import yaml
from torch import Tensor

from gcvideo.config.model import BLOCKS_PER_STAGE
from gcvideo.errors import CheckpointError
from gcvideo.models.resnet3d import TEMPORAL_KERNELS
from gcvideo.weights.naming import GCVIDEO, Naming, Part
from gcvideo.weights.reading import Weights

Parsed = list[tuple[Part, Tensor]]
# The temporal pooling of PySlowFast's architectures in terms of gcvideo's: slow is the one without.
_PYSLOWFAST_ARCH = {"slow": "slow", "c2d": "c2d", "i3d": "i3d", "c2d_nopool": "slow", "i3d_nopool": "slow"}
_PYSLOWFAST_INSTANTIATION = {"softmax": "embedded_gaussian", "dot_product": "dot_product"}


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
    stated_arch, stated_context = _stated(weights, naming)
    values = _trunk(parsed, arch=arch or stated_arch, where=weights.path)
    if context := _context(parsed):
        values["context"] = {**stated_context, **context} if context["kind"] == "nl" else context
    return values


def _stated(weights: Weights, naming: Naming) -> tuple[str | None, dict[str, Any]]:
    """Architecture, and fields of a non-local ``ContextConfig``, that names or the config inside state."""
    if naming.title == "PySlowFast":
        return _of_pyslowfast(weights)
    if naming.title.startswith("mmaction2"):
        return _of_mmaction2(weights, naming)
    archs = naming.when.get("arch", ())
    return archs[0] if len(archs) == 1 else None, {}


def _of_pyslowfast(weights: Weights) -> tuple[str | None, dict[str, Any]]:
    """PySlowFast stores its config as YAML."""
    text = weights.extra.get("cfg")
    try:
        config = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError as error:
        raise CheckpointError(f"{weights.path}: the config inside is not YAML: {error}") from None
    if not isinstance(config, dict):
        return None, {}
    non_local: dict[str, Any] = config.get("NONLOCAL") or {}
    context: dict[str, Any] = {}
    if non_local.get("INSTANTIATION") in _PYSLOWFAST_INSTANTIATION:
        context["instantiation"] = _PYSLOWFAST_INSTANTIATION[non_local["INSTANTIATION"]]
    if non_local.get("POOL"):  # nested lists of kernel sizes
        sizes = map(int, re.findall(r"\d+", str(non_local["POOL"])))
        context["subsample"] = "before" if max(sizes) > 1 else "none"
    return _PYSLOWFAST_ARCH.get(str((config.get("MODEL") or {}).get("ARCH"))), context


def _of_mmaction2(weights: Weights, naming: Naming) -> tuple[str | None, dict[str, Any]]:
    """mmaction2 stores its config as Python text; only two plain values are looked for in it."""
    stem = weights.tensors.get("backbone.conv1.conv.weight")
    arch = "c2d" if stem is not None and stem.dim() == 4 else None  # its C2D is a ResNet of 2D convolutions
    context: dict[str, Any] = {"subsample": naming.when["subsample"][0]}
    meta = weights.extra.get("meta")
    text = str(meta.get("cfg", "")) if isinstance(meta, Mapping) else ""
    if mode := re.search(r"\bmode='(embedded_gaussian|dot_product)'", text):
        context["instantiation"] = mode[1]
    if scale := re.search(r"\buse_scale=(True|False)", text):
        context["scale"] = scale[1] == "True"
    if not any(".theta." in key for key in weights.tensors):
        context["scale"] = False  # mmcv never scales the plain gaussian
    return arch, context


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
    """Architecture, and the temporal kernels that differ from its own; nothing for 2D weights."""
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
    arch = arch or max(TEMPORAL_KERNELS, key=lambda name: sum(map(sum, _compare(kernels, name).values())))
    differing = {stage: kernels[stage] for stage, same in _compare(kernels, arch).items() if not all(same)}
    return {"arch": arch, **({"temporal_kernels": differing} if differing else {})}


def _compare(kernels: dict[str, list[int]], arch: str) -> dict[str, list[bool]]:
    """For each stage, which blocks have the temporal kernels of an architecture."""
    own = TEMPORAL_KERNELS[arch]
    return {stage: [k == other for k, other in zip(along, cycle(own[stage]))] for stage, along in kernels.items()}


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


def _first(parsed: Parsed, name: str, *, where: str, **fields: str) -> Tensor:
    for part, tensor in parsed:
        if part.name == name and all(part.fields.get(field) == word for field, word in fields.items()):
            return tensor
    raise CheckpointError(f"{where}: not the weights of a ResNet: it has no {name} {fields or ''}".rstrip())
