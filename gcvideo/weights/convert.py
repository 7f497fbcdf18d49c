"""Conversion of weights between toolkits, by way of gcvideo's own names; every tensor is accounted for."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from gcvideo.config import ModelConfig
from gcvideo.errors import CheckpointError
from gcvideo.models.resnet3d import build_model
from gcvideo.weights.inflate import fit, with_dims
from gcvideo.weights.naming import BLOCK_FORMATS, FORMATS, GCVIDEO, TABLES, Naming, Part
from gcvideo.weights.report import Report

State = dict[str, Tensor]


def find_naming(tensors: Mapping[str, Tensor], *, where: str, format: str | None = None) -> Naming:
    """Variant of a format that knows most of the keys, among those of ``format`` or of all formats.

    Raises:
        CheckpointError: most of the keys are another format's than ``format``, or nobody's.
    """
    known = [(sum(map(naming.knows, tensors)), name, naming) for name in FORMATS for naming in FORMATS[name]]
    most, likely, _ = max(known, key=lambda entry: entry[0])
    count, _, naming = max((entry for entry in known if format in (None, entry[1])), key=lambda entry: entry[0])
    if 2 * count >= len(tensors):
        return naming
    hint = f"; did you mean --from {likely}?" if 2 * most >= len(tensors) else ""
    keys = f"keys like {next(iter(tensors))!r}"
    raise CheckpointError(f"{where}: {keys} are not those of {format or ', '.join(FORMATS)}{hint}")


def naming_to_write(format: str, config: ModelConfig) -> Naming:
    """Variant of a format in which the toolkit itself would write this network."""
    return next((naming for naming in FORMATS[format] if naming.writes(config)), FORMATS[format][0])


def check_limits(naming: Naming, config: ModelConfig, *, where: str) -> None:
    """Refuse a network whose weights another toolkit would take, but compute something else with.

    Raises:
        CheckpointError: its context blocks, or its input of frame differences, do not exist there.
    """
    if config.frame_difference:
        raise CheckpointError(
            f"{where}: model.frame_difference is on, which {naming.title} does not know: the weights would fit and the "
            "network see frames instead of differences"
        )
    context = config.context
    for limit in naming.limits if context.kind != "none" else ():
        value = getattr(context, limit["field"])
        if limit.get("instantiation", context.instantiation) == context.instantiation and value not in limit["allowed"]:
            raise CheckpointError(
                f"{where}: model.context.{limit['field']} is {value}, which {naming.title} does not know: its blocks "
                f"have {' or '.join(map(str, limit['allowed']))}; the weights would fit and the network be another"
            )


def to_gcvideo(tensors: Mapping[str, Tensor], naming: Naming, config: ModelConfig) -> tuple[State, Report]:
    """State dict for the network of ``config`` from the weights of another toolkit, renamed and reshaped.

    2D kernels are inflated (see ``inflate``); a pointwise convolution becomes the linear map that it is.

    Args:
        tensors: the other toolkit's state dict.
        naming: its names.
        config: the network they are for.

    Returns:
        a state dict with those keys of the network for which there are weights, and the account.
    """
    with torch.device("meta"):
        wanted = build_model(config).state_dict()
    return fit_state(tensors, naming, {key: tuple(tensor.shape) for key, tensor in wanted.items()})


def fit_state(
    tensors: Mapping[str, Tensor], naming: Naming, wanted: Mapping[str, tuple[int, ...]]
) -> tuple[State, Report]:
    """State dict for a network of which only keys and shapes are known; see ``to_gcvideo``."""
    renamed, report, origin = _rename(tensors, naming, GCVIDEO, own=wanted)
    state: State = {}
    for ours, tensor in renamed.items():
        theirs = origin[ours]
        if ours not in wanted:
            report.unmatched[theirs] = "the network has no such layer"
        elif (fitted := fit(tensor, wanted[ours])) is None:
            shapes = f"{list(tensors[theirs].shape)}, the network's {ours} {list(wanted[ours])}"
            report.unmatched[theirs] = f"has shape {shapes}"
        else:
            state[ours] = fitted
    report.copied = list(state)
    if naming.image:
        inflated = sum(len(wanted[key]) == 5 and wanted[key][2] > 1 for key in state)
        report.notes.append(f"2D weights: {inflated} kernels repeated over time and divided by their length")
    _complete_norms(state, wanted, naming, report)
    report.missing.update({key: "no tensor of the source goes there" for key in wanted if key not in state})
    return state, report


def from_gcvideo(state: Mapping[str, Tensor], naming: Naming) -> tuple[State, Report]:
    """State dict for another toolkit from gcvideo's weights. For a 2D network, kernels are summed over time."""
    theirs, report, _ = _rename(state, GCVIDEO, naming)
    summed = sum(tensor.dim() == 5 and tensor.shape[2] > 1 for tensor in state.values())
    if naming.image and summed:
        report.notes.append(f"{summed} kernels are summed over time: the 2D network sees what this one sees of a still")
    return theirs, report


def convert_block(tensors: Mapping[str, Tensor], source: str, target: str) -> tuple[State, Report]:
    """State dict of one context block, converted.

    Args:
        tensors: of gcvideo's ``ContextBlock``, of GCNet's and mmcv's ``ContextBlock`` or of timm's ``GlobalContext``.
        source, target: "gcvideo", "mmcv" or "timm".
    """
    state, report, _ = _rename(tensors, BLOCK_FORMATS[source], BLOCK_FORMATS[target])
    return state, report


def halved(content: Any) -> Any:
    """Nested dicts of tensors with their kernels in float16; vectors, such as variances, stay as they are."""
    if isinstance(content, Mapping):
        return {key: halved(value) for key, value in content.items()}
    return content.half() if isinstance(content, Tensor) and content.dim() > 1 else content


def is_block(tensors: Mapping[str, Tensor], format: str) -> bool:
    """Whether these are the weights of a context block alone."""
    naming = BLOCK_FORMATS.get(format)
    return naming is not None and all(map(naming.knows, tensors))


def _rename(
    tensors: Mapping[str, Tensor], source: Naming, target: Naming, own: Container[str] = ()
) -> tuple[State, Report, dict[str, str]]:
    """Tensors under the target's keys and in its shapes, the account, and the source key of each.

    ``own`` keys keep their names where both are gcvideo's: those of own blocks and backbones, which no table knows.
    """
    state: State = {}
    report, origin = Report(), {}
    scale = _bottleneck_scale(tensors, source, target)
    for key, tensor in tensors.items():
        part = source.parse(key)
        theirs = key if source is target and key in own else target.key(part) if part else None
        if theirs is None:
            _account_unnamed(key, part, source, target, report)
            continue
        if part is not None:
            tensor = _shaped(tensor * scale if part.name == "gc_reduce" and scale != 1 else tensor, part, target)
            if zero := target.zero_key(part):
                state[zero] = tensor.new_zeros(1)
        state[theirs], origin[theirs] = tensor, key
    report.copied = list(origin)
    return state, report, origin


def _account_unnamed(key: str, part: Part | None, source: Naming, target: Naming, report: Report) -> None:
    """Say why a key of the source has no key in the target."""
    if reason := source.reason_ignored(key):
        report.dropped[key] = reason
    elif part is None:
        report.unmatched[key] = f"not a key of {source.title} known here"
    elif part.name in target.parts and part.fields.get("bn") == "num_batches_tracked":
        report.dropped[key] = f"{target.title} counts no batches"
    else:
        report.unmatched[key] = f"{target.title} has no such layer"


def _bottleneck_scale(tensors: Mapping[str, Tensor], source: Naming, target: Naming) -> float:
    """Factor of a bottleneck's first layer that makes up for another epsilon of the layer norm after it.

    LN(s h) with epsilon e is LN(h) with epsilon e / s^2, so the layer is scaled by s = sqrt(target's / source's).
    """
    normed = any(part.name == "gc_norm" for key in tensors if (part := source.parse(key)))
    return (target.layer_norm_eps / source.layer_norm_eps) ** 0.5 if normed else 1.0


def _shaped(tensor: Tensor, part: Part, naming: Naming) -> Tensor:
    if naming.image and part.name in ("stem_conv", "conv", "shortcut_conv"):
        tensor = tensor.sum(2)  # over time: the response to a still
    dims = naming.dims.get(part.name) if part.leaf == "weight" or part.name == "gc_norm" else None
    return with_dims(tensor, dims) if dims else tensor


def _complete_norms(state: State, wanted: Mapping[str, tuple[int, ...]], naming: Naming, report: Report) -> None:
    """Add what a batch norm can lack: its counter, or the statistics of a Caffe2 network with frozen norms."""
    frozen = naming.frozen_norms and not any(key.endswith("running_var") for key in state)
    for key in wanted:
        norm, _, leaf = key.rpartition(".")
        if key not in state and leaf in TABLES["completed"] and (scale := state.get(f"{norm}.weight")) is not None:
            completed, counter = TABLES["completed"][leaf], leaf == "num_batches_tracked"
            if counter or frozen:
                dtype = torch.long if counter else scale.dtype
                state[key] = scale.new_full(wanted[key], completed["value"], dtype=dtype)
                report.notes = [*dict.fromkeys([*report.notes, completed["note"]])]
