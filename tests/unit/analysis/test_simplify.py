"""One map for all queries of a trained block, against the same thing written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gcvideo.analysis.simplify import SharedMapBlock, accuracy_lost, share_maps
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.layers import NonLocalBlock
from gcvideo.layers.non_local import INSTANTIATIONS
from gcvideo.models import create_model


def trained_block(kind: str, **options: object) -> NonLocalBlock:
    torch.manual_seed(0)
    block = NonLocalBlock(6, instantiation=kind, **options).double().eval()  # type: ignore[arg-type]
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.7)
    if block.concat is not None and block.theta is not None:  # so that the ReLU lets something through
        nn.init.constant_(block.concat.weight, 0.5)
        nn.init.constant_(block.theta.bias, 1.0)
    if block.norm is not None:
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2)
    return block


@torch.no_grad()
@pytest.mark.parametrize("subsample", ["none", "before", "after"])
@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_it_pools_with_the_mean_map(kind: str, subsample: str) -> None:
    block = trained_block(kind, subsample=subsample)
    x = torch.randn(2, 6, 2, 4, 4, dtype=torch.float64)
    _, key_value = block(x, return_attention=True)
    mean_map = key_value.attention.flatten(2).mean(1)  # (N, K)
    value = block._embed(x)[2]  # (N, K, d)
    term = block.norm(block.out(torch.einsum("nk,nkd->nd", mean_map, value))[:, :, None, None, None])
    y = SharedMapBlock(block).eval()(x)
    torch.testing.assert_close(y, x + term, rtol=0, atol=1e-10)
    assert (y - block(x)).abs().max() > 1e-3, "the maps must differ for the test to tell"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["embedded_gaussian", "dot_product", "concatenation"])
def test_nothing_changes_where_attention_does_not_depend_on_the_query(kind: str) -> None:
    block = trained_block(kind)
    assert block.theta is not None
    block.theta.weight.zero_()  # all queries are the bias
    x = torch.randn(2, 6, 2, 4, 4, dtype=torch.float64)
    maps = block(x, return_attention=True)[1].attention.flatten(2)
    assert (maps - maps[:, :1]).abs().max() < 1e-12
    assert maps.std(dim=2).min() > 1e-4, "nor may the maps be uniform"
    torch.testing.assert_close(SharedMapBlock(block).eval()(x), block(x), rtol=0, atol=1e-10)


def test_it_replaces_the_blocks_that_are_named_and_leaves_the_network_as_it_was() -> None:
    model = create_model("slow_r50_nl5", num_classes=3, width=4).eval()
    names = [name for name, module in model.named_modules() if isinstance(module, NonLocalBlock)]
    assert len(names) == 5
    some, every = share_maps(model, names[1:2]), share_maps(model, names)
    assert all(isinstance(model.get_submodule(name), NonLocalBlock) for name in names)
    assert isinstance(some.get_submodule(names[1]), SharedMapBlock)
    assert isinstance(some.get_submodule(names[0]), NonLocalBlock)
    assert all(isinstance(every.get_submodule(name), SharedMapBlock) for name in names)
    with torch.no_grad():
        every(torch.randn(1, 3, 2, 64, 64))


def predictions(best: list[int], labels: list[int]) -> Predictions:
    videos = []
    for i, (k, label) in enumerate(zip(best, labels, strict=True)):
        scores = np.full(3, 0.1, np.float32)
        scores[k] = 0.8
        videos.append(VideoScores(i, str(i), label, 1, int(k == label), 1, scores, scores, scores))
    return Predictions.collect(videos)


def test_accuracy_lost_counts_on_the_same_videos() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    lost = accuracy_lost(predictions(labels, labels), predictions([0, 1, 2, 1, 0, 2], labels))
    assert lost["top1_lost"] == pytest.approx(2 / 6)
    assert lost["agreement"] == pytest.approx(4 / 6)
    assert (lost["mcnemar"]["only_first_right"], lost["mcnemar"]["only_second_right"]) == (2, 0)
    assert lost["mcnemar"]["p_value"] == pytest.approx(0.5)
    unlabelled = accuracy_lost(predictions(labels, [-1] * 6), predictions(labels, [-1] * 6))
    assert unlabelled == {"videos": 6, "agreement": 1.0}
