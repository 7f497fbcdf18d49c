"""``gcvideo analyze simplify CHECKPOINT``: the accuracy lost when all queries of a non-local block share one map.

GCNet (Cao et al. 2019, arXiv 1904.11492) concludes from its statistics that one map for all queries is enough
(section 3.3, the simplified block SNL). Here the conclusion is put to the test on the trained weights themselves: each
query's map is replaced by the mean of all maps, a_j = mean_i a_ij, and nothing else is touched.
"""

import argparse
import copy
from collections.abc import Collection
from typing import Any

import numpy as np
from torch import Tensor, nn

from gcvideo import console
from gcvideo.analysis import networks
from gcvideo.analysis.statistics import mcnemar
from gcvideo.benchmark import harness
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions
from gcvideo.eval.trained import TrainedNetwork
from gcvideo.layers import NonLocalBlock
from gcvideo.predict.inputs import input_views


class SharedMapBlock(nn.Module):
    """A trained ``NonLocalBlock`` whose queries all use the mean of their maps.

    Pooling, W_z and, in evaluation, its batch norm are affine, so the term that the mean map gives is the mean of the
    terms that the single maps give: z_i = x_i + mean_k (nl(x) - x)_k. So no map is ever formed. In training the norm
    would measure its batch before the mean is taken, so only evaluation mode is defined.

    Args:
        block: a ``NonLocalBlock``, kept as it is, weights shared.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, T, H, W) plus one term (N, C, 1, 1, 1) for all positions."""
        term = self.block(x) - x
        return x + term.mean((2, 3, 4), keepdim=True)


def share_maps(model: nn.Module, names: Collection[str]) -> nn.Module:
    """A copy of a network, in evaluation mode, with ``SharedMapBlock`` in place of some of its non-local blocks.

    Args:
        names: of the blocks to replace ("res4.1.context").
    """
    model = copy.deepcopy(model).eval()
    for name in names:
        model.set_submodule(name, SharedMapBlock(model.get_submodule(name)).eval())
    return model


def accuracy_lost(original: Predictions, simplified: Predictions) -> dict[str, Any]:
    """What the simplification costs on the same videos.

    Returns:
        "videos"; "agreement": the share of videos, labelled or not, for which both predict the same best class; and
        for labelled videos "accuracy" of the simplified network by name, "top1_lost" (video accuracy, a fraction;
        negative if the simplified network is better) and "mcnemar", in which the original is the first.
    """
    same = original.scores.argmax(axis=1) == simplified.scores.argmax(axis=1)
    found: dict[str, Any] = {"videos": len(same), "agreement": float(np.mean(same))}
    before, after = original.accuracy(), simplified.accuracy()
    if before:
        found["accuracy"], found["mcnemar"] = after, mcnemar(original, simplified)
        found["top1_lost"] = before["video"]["top1"] - after["video"]["top1"]
    return found


def run(args: argparse.Namespace) -> None:
    """Test the network with and without a map for each query; print and write what the difference costs."""
    network, records = networks.load(args)
    results = simplify(network, records, each=args.each)
    title = f"{results['simplified'][0]['videos']} videos, {results['protocol']}; mean map for all queries of:"
    rows = [{"blocks": "no block (original)", **_accuracies(results["original"])}]
    for row in results["simplified"]:
        name = row["blocks"][0] if len(row["blocks"]) == 1 else f"all {len(row['blocks'])} blocks"
        rows.append({"blocks": name, **_accuracies(row.get("accuracy", {}))})
        if "mcnemar" in row:
            points, p_value = 0 - 100 * row["top1_lost"], row["mcnemar"]["p_value"]
            rows[-1] |= {"points": f"{points:+.2f}", "McNemar p": f"{p_value:.3g}"}
        rows[-1]["same prediction"] = console.percent(row["agreement"])
    harness.finish(args, results, {title: rows})


def simplify(network: TrainedNetwork, records: RecordTable, *, each: bool = False) -> dict[str, Any]:
    """What ``--json`` writes: the original's accuracy, and what sharing the maps of each set of blocks costs.

    Args:
        network: with non-local blocks.
        records: the videos to test on.
        each: also simplify each block alone.
    """
    names = [name for name, block in network.model.named_modules() if isinstance(block, NonLocalBlock)]
    if not names:
        raise ConfigError(f"{network.path}: this network has no non-local block to simplify")
    if network.config.model.multi_label:
        raise ConfigError(f"{network.path}: top-1 is compared here, which a network of several labels a video has not")
    how: dict[str, Any] = {"data": network.config.data, "test": network.config.test}

    def test(model: nn.Module, title: str) -> Predictions:
        with console.Progress(title, total=len(records), unit="videos") as progress:
            loader = input_views(records, workers=network.config.data.worker_count, **how)
            return evaluate(model, loader, on_video=lambda _: progress.advance(), **how)

    original = test(network.model, "original")
    results = {**networks.about(network, records, original.failures), "original": original.accuracy(), "simplified": []}
    for blocks in [names, *([name] for name in names if each and len(names) > 1)]:
        title = "all blocks share" if blocks == names else f"{blocks[0]} shares"
        lost = accuracy_lost(original, test(share_maps(network.model, blocks), title))
        results["simplified"].append({"blocks": blocks, **lost})
    return results


def _accuracies(accuracy: dict[str, Any]) -> dict[str, str]:
    shown = {"video top-1": ("video", "top1"), "video top-5": ("video", "top5"), "clip top-1": ("clip", "top1")}
    return {name: console.percent(accuracy[kind][top]) for name, (kind, top) in shown.items() if accuracy}
