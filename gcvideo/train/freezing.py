"""Training only a part of a network: the head on a fixed backbone, or all but the first stages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gcvideo.errors import ConfigError

ALL_BUT_HEAD = "backbone"


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Take parts of a network out of training.

    Args:
        network: a 3D ResNet.
        names: its modules ("stem", "res2", "res3.0"), or "backbone" for everything but the head.

    Raises:
        ConfigError: there is no such part, or nothing is left to train.
    """
    for part in _parts(network, names):
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("train.freeze: leaves no parameter to train; keep at least the head")


def keep_frozen(network: nn.Module, names: Sequence[str]) -> None:
    """Put frozen parts back into evaluation after ``network.train()``.

    Their batch norms then use and keep the statistics they came with, and their drop-path is off: a frozen part is
    one fixed function.
    """
    for part in _parts(network, names):
        part.eval()


def _parts(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    children = dict(network.named_children())
    modules = dict(network.named_modules())
    parts = []
    for name in names:
        if name == ALL_BUT_HEAD:
            parts += [child for child_name, child in children.items() if child_name != "head"]
        elif name in modules and name:
            parts.append(modules[name])
        else:
            raise ConfigError(
                f"train.freeze: the network has no part {name!r}; it has {', '.join(children)}, and "
                f"{ALL_BUT_HEAD!r} stands for all but the head"
            )
    return parts
