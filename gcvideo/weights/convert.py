"""Weights from one toolkit's names and shapes to another's, by way of gcvideo's own, every tensor accounted for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gcvideo.config import ModelConfig
from gcvideo.errors import CheckpointError
from gcvideo.models.resnet3d import build_model
from gcvideo.weights.formats import (
    BLOCK_FORMATS,
    CAFFE2,
    FORMATS,
    GCVIDEO,
    MMACTION2,
    MMACTION2_SUBSAMPLED,
    PYTORCHVIDEO,
    PYTORCHVIDEO_POOLED,
)
from gcvideo.weights.inflate import deflate, fit, with_dims
from gcvideo.weights.naming import Naming, Part
from gcvideo.weights.report import Report

State = dict[str, Tensor]
# Batch norm's epsilon in every toolkit here.
_EPS = 1e-5
NO_COUNT = "counts no batches, which only a batch norm without momentum uses; set to 0"


def detect_format(tensors: Mapping[str, Tensor], *, where: str) -> str:
    """The name of the format whose keys these are.

    Raises:
        CheckpointError: no format knows at least half of them.
    """
    known = {name: _known_keys(tensors, choose_naming(name, tensors)) for name in FORMATS}
    best = max(known, key=known.__getitem__)
    if 2 * known[best] < len(tensors):
        raise CheckpointError(f"{where}: keys like {next(iter(tensors))!r} belong to none of {', '.join(FORMATS)}")
    return best


def choose_naming(format: str, tensors: Mapping[str, Tensor]) -> Naming:
    """The variant of a format that knows most of the keys."""
    return max(FORMATS[format], key=lambda naming: _known_keys(tensors, naming))


def check_format(format: str, tensors: Mapping[str, Tensor], *, where: str) -> Naming:
    """The variant of a format, after a look at whether the keys are its own.

    Raises:
        CheckpointError: most of the keys are another format's, or nobody's.
    """
    naming = choose_naming(format, tensors)
    if 2 * _known_keys(tensors, naming) < len(tensors):
        likely = detect_format(tensors, where=where)
        raise CheckpointError(
            f"{where}: keys like {next(iter(tensors))!r} are not those of {format}; did you mean --from {likely}?"
        )
    return naming


def naming_to_write(format: str, config: ModelConfig) -> Naming:
    """The variant of a format in which it would itself write this network."""
    naming = FORMATS[format][0]
    if naming is PYTORCHVIDEO and config.arch != "slow":
        return PYTORCHVIDEO_POOLED
    if naming is MMACTION2 and config.context.kind == "nl" and config.context.subsample == "after":
        return MMACTION2_SUBSAMPLED
    return naming


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
        value = getattr(context, limit.field)
        if limit.instantiation in (None, context.instantiation) and value not in limit.allowed:
            raise CheckpointError(
                f"{where}: model.context.{limit.field} is {value}, which {naming.title} does not know: its blocks have "
                f"{' or '.join(map(str, limit.allowed))}; the weights would fit and the network be another"
            )


def to_gcvideo(tensors: Mapping[str, Tensor], naming: Naming, config: ModelConfig) -> tuple[State, Report]:
    """Rename and reshape the weights of another toolkit for the network of ``config``.

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
    """The part of ``to_gcvideo`` that needs only the keys and shapes of the network."""
    state: State = {}
    report = Report()
    scale = _bottleneck_scale(tensors, naming, GCVIDEO)
    for key, tensor in tensors.items():
        part = naming.parse(key)
        # Keys of own blocks and backbones are known to their network alone.
        ours = key if naming is GCVIDEO and key in wanted else GCVIDEO.key(part) if part else None
        if ours is None:
            reason = naming.reason_ignored(key)
            (report.dropped if reason else report.unmatched)[key] = reason or f"not a key of {naming.title} known here"
        elif ours not in wanted:
            report.unmatched[key] = "the network has no such layer"
        elif (fitted := fit(tensor, wanted[ours])) is None:
            report.unmatched[key] = f"has shape {list(tensor.shape)}, the network's {ours} {list(wanted[ours])}"
        else:
            state[ours] = fitted * scale if scale != 1 and part and part.name == "gc_reduce" else fitted
            report.copied.append(ours)
    if naming.image:
        inflated = sum(len(wanted[key]) == 5 and wanted[key][2] > 1 for key in state)
        report.notes.append(f"2D weights: {inflated} kernels repeated over time and divided by their length")
    _complete_norms(state, wanted, naming, report)
    report.missing.update({key: "no tensor of the source goes there" for key in wanted if key not in state})
    return state, report


def from_gcvideo(state: Mapping[str, Tensor], naming: Naming) -> tuple[State, Report]:
    """Rename and reshape gcvideo's weights for another toolkit. For a 2D network, kernels are summed over time."""
    theirs, report = _rewrite(state, GCVIDEO, naming)
    summed = sum(tensor.dim() == 5 and tensor.shape[2] > 1 for tensor in state.values())
    if naming.image and summed:
        report.notes.append(f"{summed} kernels are summed over time: the 2D network sees what this one sees of a still")
    return theirs, report


def convert_block(tensors: Mapping[str, Tensor], source: str, target: str) -> tuple[State, Report]:
    """Convert the state dict of one context block.

    Args:
        tensors: of gcvideo's ``ContextBlock``, of GCNet's and mmcv's ``ContextBlock`` or of timm's ``GlobalContext``.
        source, target: "gcvideo", "mmcv" or "timm".
    """
    return _rewrite(tensors, BLOCK_FORMATS[source], BLOCK_FORMATS[target])


def is_block(tensors: Mapping[str, Tensor], format: str) -> bool:
    """Whether these are the weights of a context block alone."""
    naming = BLOCK_FORMATS.get(format)
    return naming is not None and _known_keys(tensors, naming) == len(tensors)


def _rewrite(tensors: Mapping[str, Tensor], source: Naming, target: Naming) -> tuple[State, Report]:
    state: State = {}
    report = Report()
    zeros = 0
    scale = _bottleneck_scale(tensors, source, target)
    for key, tensor in tensors.items():
        part = source.parse(key)
        theirs = target.key(part) if part else None
        if part is None or theirs is None:
            if reason := source.reason_ignored(key):
                report.dropped[key] = reason
            elif part and part.name in target.parts and part.fields.get("bn") == "num_batches_tracked":
                report.dropped[key] = f"{target.title} counts no batches"
            else:
                report.unmatched[key] = f"{target.title if part else source.title} has no such layer"
            continue
        tensor = tensor * scale if part.name == "gc_reduce" and scale != 1 else tensor
        state[theirs] = _shaped(tensor, part, target)
        report.copied.append(theirs)
        if zero := target.zero_key(part):
            state[zero] = tensor.new_zeros(1)
            zeros += 1
    if zeros:
        report.notes.append(
            f"{target.title} gives attention masks a bias, which gcvideo does without: {zeros} set to 0"
        )
    return state, report


def _bottleneck_scale(tensors: Mapping[str, Tensor], source: Naming, target: Naming) -> float:
    """What makes up for another epsilon of the layer norm after a bottleneck's first layer.

    LN(s h) with epsilon e is LN(h) with epsilon e / s^2, so the layer is scaled by s = sqrt(target's / source's).
    """
    normed = any(part.name == "gc_norm" for key in tensors if (part := source.parse(key)))
    return (target.layer_norm_eps / source.layer_norm_eps) ** 0.5 if normed else 1.0


def _shaped(tensor: Tensor, part: Part, naming: Naming) -> Tensor:
    if naming.image and part.name in ("stem_conv", "conv", "shortcut_conv"):
        tensor = deflate(tensor)
    dims = naming.dims.get((part.name, part.leaf))
    return with_dims(tensor, dims) if dims else tensor


def _complete_norms(state: State, wanted: Mapping[str, tuple[int, ...]], naming: Naming, report: Report) -> None:
    """Fill in what a batch norm can lack: its counter, or the statistics of a Caffe2 network with frozen norms."""
    counters = [key for key in wanted if key.endswith("num_batches_tracked") and key not in state]
    counters = [key for key in counters if key.removesuffix("num_batches_tracked") + "weight" in state]
    state.update({key: torch.zeros((), dtype=torch.long) for key in counters})
    if counters:
        report.notes.append(f"the source {NO_COUNT}")
    if naming is not CAFFE2 or any(key.endswith("running_var") for key in state):
        return
    affine = [key.removesuffix("running_var") for key in wanted if key.endswith("running_var")]
    affine = [norm for norm in affine if norm + "weight" in state]
    for norm in affine:
        scale = state[norm + "weight"]
        state[norm + "running_mean"] = torch.zeros_like(scale)
        state[norm + "running_var"] = torch.full_like(scale, 1 - _EPS)
    if affine:
        report.notes.append(
            "the source's norms have scale and bias alone (affine layers in place of batch norms): running means are "
            "set to 0 and variances to 1 - epsilon, which computes the same"
        )


def _known_keys(tensors: Mapping[str, Tensor], naming: Naming) -> int:
    return sum(naming.parse(key) is not None or naming.reason_ignored(key) is not None for key in tensors)
