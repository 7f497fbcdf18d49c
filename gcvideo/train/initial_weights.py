"""Starting a training from weights that there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from gcvideo import weights
from gcvideo.console import say, warn
from gcvideo.train.resuming import first_difference


def load_initial_weights(network: nn.Module, path: str | Path, *, classes: Sequence[str] | None = None) -> None:
    """Fill a fresh network from a file of weights and say which layers stay fresh.

    The file is a gcvideo checkpoint, a 2D ImageNet network that is inflated, or another toolkit's checkpoint; see
    ``gcvideo.weights``. Context blocks that it lacks stay fresh: so they can be put into a trained plain
    network, which they do not change at first. So does the head where it tells apart another number of classes.

    Args:
        network: a 3D ResNet.
        path: of the file.
        classes: of the data, by label. A head that was trained for others of the same number is taken with a warning.

    Raises:
        CheckpointError: the file cannot be read, or does not fill the network otherwise.
    """
    report = weights.load_initial_weights(network, path)
    fresh, total = layers(set(report.missing)), len(network.state_dict())
    say(
        f"initial weights: {total - len(report.missing)} of {total} tensors from {report.source}; "
        f"fresh: {', '.join(fresh) or 'none'}"
    )
    for note in report.notes:
        say(f"initial weights: {note}")
    if report.classes and classes and "head.proj.weight" in report.copied and list(classes) != report.classes:
        how = first_difference(report.classes, classes)
        warn(f"{path}: its head was trained for other classes than the data's: {how}")
    for key, reason in (report.unmatched | report.dropped).items():
        warn(f"{path}: {key} is not used: {reason}")


def layers(keys: set[str]) -> list[str]:
    """The modules that tensors of a state dict belong to: parts of a head, stem or residual block."""
    return sorted({".".join(key.split(".")[: 3 if key.startswith("res") else 2]) for key in keys})
