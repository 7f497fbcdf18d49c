"""What a toolkit's checkpoint says of its network beside the weights, where it says anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from gcvideo.errors import CheckpointError
from gcvideo.weights.formats import (
    GCVIDEO,
    MMACTION2,
    MMACTION2_SUBSAMPLED,
    PYSLOWFAST,
    PYTORCHVIDEO,
    PYTORCHVIDEO_POOLED,
)
from gcvideo.weights.infer import infer_model
from gcvideo.weights.naming import Naming
from gcvideo.weights.reading import Weights

# The temporal pooling of PySlowFast's architectures in terms of gcvideo's: slow is the one without.
_PYSLOWFAST_ARCH = {"slow": "slow", "c2d": "c2d", "i3d": "i3d", "c2d_nopool": "slow", "i3d_nopool": "slow"}
_PYSLOWFAST_INSTANTIATION = {"softmax": "embedded_gaussian", "dot_product": "dot_product"}


def model_fields(weights: Weights, naming: Naming, *, arch: str | None = None) -> dict[str, Any]:
    """The fields of ``ModelConfig`` that a file shows: by its shapes, its names, and the config it may hold.

    Args:
        weights: the file.
        naming: its names.
        arch: "slow", "c2d" or "i3d", overriding what the file suggests.

    Raises:
        CheckpointError: these are not the weights of a ResNet.
    """
    if naming is GCVIDEO and isinstance(weights.extra.get("config"), Mapping):
        return dict(weights.extra["config"]["model"])
    parsed = [(part, tensor) for key, tensor in weights.tensors.items() if (part := naming.parse(key))]
    stated_arch, context = _stated(weights, naming)
    fields = infer_model(parsed, arch=arch or stated_arch, where=weights.path)
    if fields.get("context", {}).get("kind") == "nl":
        fields["context"] = {**context, **fields["context"]}
    return fields


def _stated(weights: Weights, naming: Naming) -> tuple[str | None, dict[str, Any]]:
    """Architecture, and fields of a non-local ``ContextConfig``."""
    if naming is PYTORCHVIDEO:
        return "slow", {}
    if naming is PYTORCHVIDEO_POOLED:
        return None, {}
    if naming is PYSLOWFAST:
        return _of_pyslowfast(weights)
    if naming is MMACTION2 or naming is MMACTION2_SUBSAMPLED:
        return _of_mmaction2(weights, naming)
    return None, {}


def _of_pyslowfast(weights: Weights) -> tuple[str | None, dict[str, Any]]:
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
    if non_local.get("POOL"):
        context["subsample"] = "before" if max(_numbers(non_local["POOL"])) > 1 else "none"
    return _PYSLOWFAST_ARCH.get(str((config.get("MODEL") or {}).get("ARCH"))), context


def _of_mmaction2(weights: Weights, naming: Naming) -> tuple[str | None, dict[str, Any]]:
    """mmaction2 stores its config as Python text; only two plain values are looked for in it."""
    stem = weights.tensors.get("backbone.conv1.conv.weight")
    arch = "c2d" if stem is not None and stem.dim() == 4 else None  # its C2D is a ResNet of 2D convolutions
    context: dict[str, Any] = {"subsample": "after" if naming is MMACTION2_SUBSAMPLED else "none"}
    meta = weights.extra.get("meta")
    text = str(meta.get("cfg", "")) if isinstance(meta, Mapping) else ""
    if mode := re.search(r"\bmode='(embedded_gaussian|dot_product)'", text):
        context["instantiation"] = mode[1]
    if scale := re.search(r"\buse_scale=(True|False)", text):
        context["scale"] = scale[1] == "True"
    if not any(".theta." in key for key in weights.tensors):
        context["scale"] = False  # mmcv never scales the plain gaussian
    return arch, context


def _numbers(nested: Any) -> Iterator[int]:
    if isinstance(nested, list):
        for item in nested:
            yield from _numbers(item)
    else:
        yield int(nested)
