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
from gcvideo.weights.naming import GCVIDEO, TABLES, Naming
from gcvideo.weights.reading import Weights


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
    parts = ((naming.parse(key), tensor) for key, tensor in weights.tensors.items())
    ours = {str(GCVIDEO.key(part)): tensor for part, tensor in parts if part is not None}
    stated = _stated(weights, naming)
    stated_arch = stated.pop("arch", None)
    values = _trunk(ours, arch=arch or stated_arch, where=weights.path)
    if not naming.image:
        values.setdefault("arch", "c2d")  # mmaction2's C2D is a network of 2D convolutions
    if context := _context(ours):
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


def _trunk(ours: Mapping[str, Tensor], *, arch: str | None, where: str) -> dict[str, Any]:
    """Fields of the network without its blocks, from tensors by gcvideo's keys."""
    blocks = _blocks(ours, "branch2")
    counts = tuple(map(len, blocks.values()))
    bottleneck = "res2.0.branch2.conv_c.weight" in ours
    depths = [n for n, known in BLOCKS_PER_STAGE.items() if counts == known and bottleneck == (n >= 50)]
    first = [ours.get(key) for key in ("stem.conv.weight", *(f"res2.0.branch2.conv_{x}.weight" for x in "ab"))]
    if not depths or any(tensor is None for tensor in first):
        raise CheckpointError(f"{where}: has {counts} blocks in res2 to res5, like no ResNet of depth 18 to 152")
    stem, conv_a, conv_b = (tensor.shape for tensor in first if tensor is not None)
    values: dict[str, Any] = {"depth": depths[0], "width": stem[0]}
    if bottleneck:
        values["groups"] = conv_a[0] // conv_b[1]
        values["width_per_group"] = conv_a[0] * 64 // (stem[0] * values["groups"])
    if "head.proj.weight" in ours:
        values["num_classes"] = ours["head.proj.weight"].shape[0]
    if len(stem) == 4:
        return {**values, "arch": arch} if arch else values
    if any(".branch2.conv_b." in key and tensor.shape[2] > 1 for key, tensor in ours.items()):
        return {**values, "arch": "i3d", "inflation": "3x3x3"}  # which of them have it is a matter of the architecture
    kernels = {"stem": [stem[2]]}
    for stage, numbers in blocks.items():
        convs = (ours.get(f"{stage}.{number}.branch2.conv_a.weight") for number in numbers)
        kernels[stage] = [conv.shape[2] for conv in convs if conv is not None]
    same = {  # for each architecture and stage, which blocks have its temporal kernels
        name: {stage: [k == other for k, other in zip(along, cycle(own[stage]))] for stage, along in kernels.items()}
        for name, own in TEMPORAL_KERNELS.items()
    }
    arch = arch or max(same, key=lambda name: sum(map(sum, same[name].values())))
    differing = {stage: kernels[stage] for stage, equal in same[arch].items() if not all(equal)}
    return {**values, "arch": arch, **({"temporal_kernels": differing} if differing else {})}


def _blocks(ours: Mapping[str, Tensor], part: str) -> dict[str, list[int]]:
    """Indices of the blocks of each stage that have such a part."""
    matches = (re.match(rf"(res\d)\.(\d+)\.{part}", key) for key in ours)
    found = sorted({(match[1], int(match[2])) for match in matches if match})
    return {stage: [number for other, number in found if other == stage] for stage, _ in found}


def _context(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of ``ContextConfig``, as the first block shows them; empty where there is no block."""
    if not (placed := _blocks(ours, "context")):
        return {}
    stage, numbers = next(iter(placed.items()))
    prefix = f"{stage}.{numbers[0]}.context."
    block = {key.removeprefix(prefix): tensor for key, tensor in ours.items() if key.startswith(prefix)}
    values: dict[str, Any] = {"stages": placed}
    if "g.weight" in block:
        g, found = block["g.weight"], {"kind": "nl", "norm": "norm.weight" in block, "bias": "g.bias" in block}
        if "concat.weight" in block:
            found["instantiation"] = "concatenation"
        elif "theta.weight" not in block:
            found["instantiation"] = "gaussian"
        return {**values, **found, "reduction": g.shape[1] // g.shape[0]}
    fusions = [fusion for fusion in ("scale", "add") if any(key.startswith(f"transform.{fusion}.") for key in block)]
    layers = f"transform.{fusions[0]}."
    values |= {"kind": "gc" if "pool.weight" in block else "se", "fusion": "_".join(fusions)}
    if (reduce := block.get(f"{layers}fc1.weight")) is None:
        return {**values, "transform": "linear", "bias": f"{layers}fc.bias" in block}
    values["transform"] = "bottleneck" if f"{layers}norm.weight" in block else "squeeze"
    return {**values, "bias": f"{layers}fc1.bias" in block, "reduction": reduce.shape[1] // reduce.shape[0]}
