"""Give all queries of a trained non-local block one map, without retraining: does the network notice?

GCNet (Cao et al. 2019, arXiv 1904.11492) concludes from its statistics that one map for all queries is enough
(section 3.3, the simplified block SNL). Here the conclusion is put to the test on the trained weights themselves: each
query's map is replaced by the mean of all maps, a_j = mean_i a_ij, and nothing else is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
from torch import Tensor, nn

from gcvideo.analysis.scoring import mcnemar, score
from gcvideo.errors import ConfigError
from gcvideo.eval.predictions import Predictions
from gcvideo.layers import NonLocalBlock


class SharedMapBlock(nn.Module):
    """A trained ``NonLocalBlock`` whose queries all use the mean of their maps.

    Pooling, W_z and, in evaluation, its batch norm are affine, so the term that the mean map gives is the mean of the
    terms that the single maps give: z_i = x_i + mean_k (nl(x) - x)_k. So no map is ever formed. In training the norm
    would measure its batch before the mean is taken, so only evaluation mode is defined.

    Args:
        block: is kept as it is, weights shared.
    """

    def __init__(self, block: NonLocalBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, H, W) plus one term (N, C, 1, 1, 1) for all positions.

        Raises:
            RuntimeError: in training mode.
        """
        if self.training:
            raise RuntimeError("SharedMapBlock stands for a trained block: call eval() first")
        term = self.block(x) - x
        return x + term.mean((2, 3, 4), keepdim=True)


def share_maps(model: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """A copy of a network, in evaluation mode, with ``SharedMapBlock`` in place of its non-local blocks.

    Args:
        names: of the blocks to replace ("res4.1.context"); by default all.

    Raises:
        ConfigError: there is no such block.
    """
    model = copy.deepcopy(model).eval()
    found = non_local_blocks(model)
    for name in found if names is None else names:
        if name not in found:
            raise ConfigError(f"no non-local block {name!r}; there are {', '.join(found) or 'none'}")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, SharedMapBlock(found[name]).eval())
    return model


def non_local_blocks(model: nn.Module) -> dict[str, NonLocalBlock]:
    """The non-local blocks of a network by name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NonLocalBlock)}


def accuracy_lost(original: Predictions, simplified: Predictions) -> dict[str, Any]:
    """What the simplification cost on the same videos.

    Returns:
        ``accuracy`` of both by name; ``top1_lost`` (video accuracy, a fraction; negative where the simplified network
        is better); ``agreement``: the share of videos, labelled or not, to which both give the same best class;
        ``mcnemar``: the original is the first. Without labels only the agreement.
    """
    same = original.scores.argmax(axis=1) == simplified.scores.argmax(axis=1)
    found: dict[str, Any] = {"videos": len(same), "agreement": float(np.mean(same))}
    before, after = original.accuracy(), simplified.accuracy()
    if before:
        found["accuracy"] = after
        found["top1_lost"] = before["video"]["top1"] - after["video"]["top1"]
        found["mcnemar"] = mcnemar(score(original), score(simplified))
    return found
