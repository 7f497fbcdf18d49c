"""Conversion of weights between toolkits, by way of gcvideo's own names; every tensor is accounted for."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo.config import ModelConfig
from gcvideo.errors import CheckpointError
from gcvideo.weights.inflate import fit, with_dims
from gcvideo.weights.naming import FORMATS, GCVIDEO, TABLES, Naming, Part
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
    values = {"arch": config.arch, "subsample": config.context.subsample if config.context.kind == "nl" else "none"}
    fitting = (n for n in FORMATS[format] if all(values[name] in allowed for name, allowed in n.when.items()))
    return next(fitting, FORMATS[format][0])


def check_limits(naming: Naming, config: ModelConfig, *, where: str) -> None:
    """Refuse a network whose weights another toolkit would take, but compute something else with.

    Raises:
        CheckpointError: its context blocks, or its input of frame differences, do not exist there.
    """
    found = [("frame_difference", config.frame_difference, (False,))]
    for limit in naming.limits if config.context.kind != "none" else ():
        if limit.get("instantiation", config.context.instantiation) == config.context.instantiation:
            found.append((f"context.{limit['field']}", getattr(config.context, limit["field"]), limit["allowed"]))
    for field, value, allowed in found:
        if value not in allowed:
            raise CheckpointError(
                f"{where}: model.{field} is {value}, which {naming.title} does not know: it has "
                f"{' or '.join(map(str, allowed))}; the weights would fit and the network be another"
            )


def to_gcvideo(tensors: Mapping[str, Tensor], naming: Naming, model: nn.Module) -> tuple[State, Report]:
    """State dict for a network from the weights of another toolkit, renamed and reshaped.

    2D kernels are inflated (see ``inflate``); a pointwise convolution becomes the linear map that it is.

    Args:
        tensors: the other toolkit's state dict.
        naming: its names.
        model: the network they are for, of which keys and shapes alone are looked at: it may be on the meta device.

    Returns:
        a state dict with those keys of the network for which there are weights, and the account.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    renamed, report, origin = rename(tensors, naming, GCVIDEO, own=wanted)
    state: State = {}
    for ours, tensor in renamed.items():
        theirs = origin.get(ours, ours)
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
    frozen = naming.frozen_norms and not any(key.endswith("running_var") for key in state)
    for key in (key for key in wanted if key not in state):  # what a batch norm can lack
        norm, _, leaf = key.rpartition(".")
        scale, counter = state.get(f"{norm}.weight"), leaf == "num_batches_tracked"
        if scale is not None and (counter or (frozen and leaf in TABLES["completed"])):
            completed = TABLES["completed"][leaf]
            state[key] = scale.new_full(wanted[key], completed["value"], dtype=torch.long if counter else scale.dtype)
            report.notes = [*dict.fromkeys([*report.notes, completed["note"]])]
    report.missing.update({key: "no tensor of the source goes there" for key in wanted if key not in state})
    return state, report


def rename(
    tensors: Mapping[str, Tensor], source: Naming, target: Naming, *, own: Container[str] = ()
) -> tuple[State, Report, dict[str, str]]:
    """State dict for another toolkit, or for its context block, the account, and the source key of each of its keys.

    For a 2D network, kernels are summed over time: it sees what the 3D one sees of a still.

    Args:
        tensors: a state dict.
        source: its names.
        target: the names and shapes to write.
        own: keys that stay as they are where both are gcvideo's: those of own blocks and backbones, which no table
            knows.
    """
    state: State = {}
    report, origin, summed = Report(), {}, 0
    # LN(s h) with epsilon e is LN(h) with epsilon e / s^2, so the layer before a layer norm makes up for the epsilon.
    scale = (target.layer_norm_eps / source.layer_norm_eps) ** 0.5
    for key, tensor in tensors.items():
        part = source.parse(key)
        theirs = key if source is target and key in own else target.key(part) if part else None
        if theirs is None:
            if reason := source.reason_ignored(key):
                report.dropped[key] = reason
            elif part is not None and part.name == "gc_mask_bias":
                report.dropped[key] = "the softmax over positions cancels a constant added to every logit"
            elif part is None:
                report.unmatched[key] = f"not a key of {source.title} known here"
            elif part.name in target.parts and part.fields.get("bn") == "num_batches_tracked":
                report.dropped[key] = f"{target.title} counts no batches"
            else:
                report.unmatched[key] = f"{target.title} has no such layer"
            continue
        if part is not None:
            if part.name == "gc_reduce" and scale != 1:
                tensor = tensor * scale
            if target.image and part.name in ("stem_conv", "conv", "shortcut_conv"):
                summed += tensor.shape[2] > 1
                tensor = tensor.sum(2)
            if (dims := target.dims.get(part.name)) and (part.fields.get("leaf") != "bias" or part.name == "gc_norm"):
                tensor = with_dims(tensor, dims)
            if part.name == "gc_mask" and (beside := target.key(Part("gc_mask_bias", part.fields))):
                state[beside] = tensor.new_zeros(1)
        state[theirs], origin[theirs] = tensor, key
    report.copied = list(origin)
    if summed:
        report.notes.append(f"{summed} kernels are summed over time: the 2D network sees what this one sees of a still")
    return state, report, origin


def halved(content: Any) -> Any:
    """Nested dicts of tensors with their kernels in float16; vectors, such as variances, stay as they are."""
    if isinstance(content, Mapping):
        return {key: halved(value) for key, value in content.items()}
    return content.half() if isinstance(content, Tensor) and content.dim() > 1 else content
