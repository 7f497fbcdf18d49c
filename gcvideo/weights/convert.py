"""Conversion of weights between toolkits, by way of gcvideo's own names; every tensor is accounted for."""

import re
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo.config import ModelConfig
from gcvideo.errors import CheckpointError
from gcvideo.weights.naming import FORMATS, GCVIDEO, TABLES, Naming, Part

State = dict[str, Tensor]


@dataclass
class Report:
    """Account of one conversion, inflation or loading: what was copied, dropped, unmatched and missing.

    Attributes:
        source: the file or network the tensors came from.
        copied: keys of the result whose values came from the source.
        dropped: keys of the source that the result does not need, with the reason.
        unmatched: keys of the source that found no place in the result, with the reason.
        missing: keys of the result that the source has nothing for, with what became of them.
        notes: remarks that hold for the whole (assumptions, differences between the toolkits).
    """

    source: str = ""
    copied: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Report as text: one line per reason, its keys gathered as ``res4.{0,1,2}.branch``."""
        result = [f"{self.source}: {len(self.copied)} tensors copied"]
        kinds = {"dropped": self.dropped, "not matched": self.unmatched, "not in the source": self.missing}
        for title, entries in kinds.items():
            by_reason: defaultdict[str, list[str]] = defaultdict(list)
            for key, reason in entries.items():
                by_reason[reason].append(key)
            for reason, keys in by_reason.items():
                result.append(f"{title} ({len(keys)}): {', '.join(gather(keys))}: {reason}")
        return result + [f"note: {note}" for note in self.notes]


def gather(keys: list[str]) -> list[str]:
    """Short list of keys: those that differ only in the number of their block become one. No key is lost.

    >>> gather(["res4.0.a.weight", "res4.2.a.weight", "head.bias"])
    ['res4.{0,2}.a.weight', 'head.bias']
    """
    numbers: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        before, number, after = re.fullmatch(r"(.*?)(\.\d+\.|$)(.*)", key).groups()  # type: ignore[union-attr]
        numbers[before, after].append(number.strip("."))
    return [
        f"{before}.{{{','.join(found)}}}.{after}" if len(found) > 1 else ".".join(filter(None, (before, *found, after)))
        for (before, after), found in numbers.items()
    ]


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
    for name, value, allowed in found:
        if value not in allowed:
            raise CheckpointError(
                f"{where}: model.{name} is {value}, which {naming.title} does not know: it has "
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


def inflate(kernel: Tensor, frames: int) -> Tensor:
    """Inflated kernel: a 2D kernel repeated over time.

    A 2D kernel repeated T times and divided by T gives for T equal frames what the 2D kernel gives for one of them
    (Carreira and Zisserman 2017, section 2.1). So an inflated network sees a still picture exactly as the 2D network
    does, except for frames so near either end that the zero padding in time reaches them. The context of a context or
    non-local block is that of the whole clip, so behind such blocks the padding reaches all frames.

    Args:
        kernel: (C_out, C_in, H, W).
        frames: T.

    Returns:
        (C_out, C_in, T, H, W), each frame a T-th of the kernel.
    """
    return kernel.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames


def fit(tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Tensor in the shape wanted, or None where that takes more than inflation or dimensions of size one."""
    if tensor.shape == tuple(shape):
        return tensor
    if tensor.dim() == 4 and len(shape) == 5 and tensor.shape == (*shape[:2], *shape[3:]):
        return inflate(tensor, shape[2])
    if [size for size in tensor.shape if size > 1] == [size for size in shape if size > 1]:
        return tensor.reshape(*shape)  # (C, D) is (C, D, 1, 1, 1): a linear map is a convolution with a kernel of one
    return None


def with_dims(tensor: Tensor, dims: int) -> Tensor:
    """Tensor with ``dims`` dimensions: trailing ones of size one are appended or removed."""
    while tensor.dim() > dims and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    return tensor.reshape(*tensor.shape, *[1] * (dims - tensor.dim()))
