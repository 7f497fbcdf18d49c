"""Starting a training from weights that there are."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gcvideo.console import say, warn
from gcvideo.models import weights


def load_initial_weights(network: nn.Module, path: str | Path) -> None:
    """Fill a fresh network from a file of weights and say which layers stay fresh.

    The file is a gcvideo checkpoint, a 2D ImageNet network that is inflated, or another toolkit's checkpoint; see
    ``gcvideo.models.weights``. Context blocks that it lacks stay fresh: so they can be put into a trained plain
    network, which they do not change at first. So does the head where it tells apart another number of classes.

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
    for key, reason in (report.unmatched | report.dropped).items():
        warn(f"{path}: {key} is not used: {reason}")


def layers(keys: set[str]) -> list[str]:
    """The modules that tensors of a state dict belong to: parts of a head, stem or residual block."""
    return sorted({".".join(key.split(".")[: 3 if key.startswith("res") else 2]) for key in keys})
