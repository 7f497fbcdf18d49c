"""Start a network from a file of weights, whatever toolkit wrote it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gcvideo.errors import CheckpointError
from gcvideo.weights.convert import choose_naming, detect_format, fit_state
from gcvideo.weights.reading import read_weights
from gcvideo.weights.report import Report


def load_initial_weights(model: nn.Module, path: str | Path) -> Report:
    """Load a file of weights into a network that is about to be trained.

    The file may be a gcvideo checkpoint, a 2D ImageNet network with torchvision's or timm's keys (its kernels are
    inflated), or the checkpoint of another toolkit; its keys tell which. Two things may be absent from it or not fit,
    and then start fresh: the head, where the classes are others, and context blocks.

    Args:
        model: a ``ResNet3d``; its tensors are changed in place.
        path: the file.

    Returns:
        the account of every tensor; to be shown to the user.

    Raises:
        CheckpointError: the file is unreadable or unsafe to read, or does not fill the network besides its head and
            context blocks. The model is then as it was.
    """
    weights = read_weights(path)
    own = model.state_dict()
    naming = choose_naming(detect_format(weights.tensors, where=str(path)), weights.tensors)
    state, report = fit_state(weights.tensors, naming, {key: tuple(tensor.shape) for key, tensor in own.items()})
    if any(not key.startswith("head.") for key in state) and not {"head.proj.weight", "head.proj.bias"} <= set(state):
        state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}  # both or neither
    report.copied = [key for key in report.copied if key in state]
    report.source = f"{path} ({naming.title})"
    report.classes = weights.extra.get("classes")
    for key in own:
        if key not in state:
            fresh = key.startswith("head.") or ".context." in key
            report.missing[key] = "starts fresh" if fresh else "no tensor of the source fits"
    lacking = [key for key, reason in report.missing.items() if reason != "starts fresh"]
    if lacking:
        raise CheckpointError(f"{path}: {_why(lacking, report)}")
    model.load_state_dict({**own, **state})
    return report


def _why(lacking: list[str], report: Report) -> str:
    key, reason = next(iter(report.unmatched.items()), ("", ""))
    if reason.startswith("has shape"):
        return f"{key} {reason}: set model.* to the network that the file is of"
    others = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
    strange = f"; it has {key}, which has no place there" if key else ""
    return f"has nothing for {lacking[0]}{others} of this network{strange}"
