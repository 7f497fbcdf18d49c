"""Starting a training from the weights of an earlier one."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gcvideo.console import say, warn
from gcvideo.engine.checkpoint import load_checkpoint
from gcvideo.errors import CheckpointError


def load_initial_weights(network: nn.Module, path: str | Path) -> None:
    """Copy the weights of a gcvideo checkpoint into a fresh network and say which layers stay fresh.

    Layers that the checkpoint lacks stay fresh: so context blocks can be put into a trained plain network, which they
    do not change at first. So does the head where it tells apart another number of classes.

    Raises:
        CheckpointError: the file cannot be read, or a layer has another shape.
    """
    weights = load_checkpoint(path)["model"]
    wanted = network.state_dict()
    taken = {}
    for name, tensor in weights.items():
        if name not in wanted:
            continue
        if tensor.shape == wanted[name].shape:
            taken[name] = tensor
        elif not name.startswith("head."):
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the network of this config "
                f"{tuple(wanted[name].shape)}: set model.* as the checkpoint's config has it"
            )
    if not taken:
        raise CheckpointError(f"{path}: has no layer in common with the network of this config")
    network.load_state_dict({**wanted, **taken})
    fresh, unused = layers(wanted.keys() - taken.keys()), layers(weights.keys() - wanted.keys())
    say(f"initial weights: {len(taken)} of {len(wanted)} tensors from {path}; fresh: {', '.join(fresh) or 'none'}")
    if unused:
        warn(f"{path}: not used, as this network has no such layers: {', '.join(unused)}")


def layers(keys: set[str]) -> list[str]:
    """The modules that tensors of a state dict belong to: parts of a head, stem or residual block."""
    return sorted({".".join(key.split(".")[: 3 if key.startswith("res") else 2]) for key in keys})
