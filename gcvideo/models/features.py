"""Features inside a network: those of a layer, without computing the layers behind it."""

import copy
from typing import Any

from torch import Tensor, nn

from gcvideo.errors import ConfigError, nearest

HEAD = "head"


class FeatureNetwork(nn.Module):
    """A network up to a layer: clips (N, 3, T, H, W) -> its features, float32.

    It shares its weights with the network. ``head`` is what the last linear layer takes, averaged over all positions,
    in any network that has one; other layers are those that the network's attribute ``LAYERS`` names, which its method
    ``features(x, layer)`` must compute.

    Args:
        model: not compiled, ready to run.
        layer: ``head``, or one of a ``ResNet3d``: ``stem``, ``res2``, ``res3``, ``res4``, ``res5``.
        pooled: whether to average over all positions: (N, C). Else the map (N, C, T', H', W'); that of ``head`` is the
            map that the head averages.

    Raises:
        ConfigError: the network has no such layer.
    """

    def __init__(self, model: nn.Module, layer: str = HEAD, *, pooled: bool = True) -> None:
        super().__init__()
        known = getattr(model, "LAYERS", ())
        if layer not in (HEAD, *known):
            names = ", ".join((HEAD, *known))
            raise ConfigError(f"layer: the network has no {layer!r}{nearest(layer, known)}; its layers are {names}")
        self.layer = known[-1] if known and layer == HEAD else layer
        self.pooled = pooled
        self.model = model if known else without_last_linear(model)
        self.train(model.training)  # else whoever restores this module's mode would change that of the network

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W), normalised -> (N, C) or (N, C, T', H', W'), float32."""
        network: Any = self.model
        y: Tensor = network(x) if self.layer == HEAD else network.features(x, self.layer)
        return y.float().flatten(2).mean(2) if self.pooled and y.ndim > 2 else y.float()


def without_last_linear(model: nn.Module) -> nn.Module:
    """A copy, with the same weights, that gives what its last linear layer would have taken.

    Raises:
        ConfigError: the network has no linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("layer: the network has no linear layer whose input could be the features of its head")
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    copied.set_submodule(linear[-1], nn.Identity())
    return copied
