"""``gcvideo analyze attention CHECKPOINT``: do attention and output of each block depend on the query position?

The attention statistics on which GC is based.

Cao et al. 2019 (GCNet, arXiv 1904.11492), section 3.2: over all N^2 ordered pairs (i, j) of the N query positions of a
block, the pairs i = j included, they average a distance of what the block sees and makes at i and at j::

    cosine distance            d(u, v) = (1 - cos(u, v)) / 2                       in [0, 1]
    Jensen-Shannon divergence  d(p, q) = (KL(p | m) + KL(q | m)) / 2, m = (p + q) / 2   in [0, ln 2]

of the block's ``input`` x_i, of its ``output`` (the term at i before it is added to x_i) and of its ``attention`` (the
map of query i); the divergence is of the maps that a softmax normalises. Their finding: inputs differ, outputs and
maps hardly do, so one map for all queries is enough. ``gathered`` is measured here as well: what the map gathers,
before W_z and its batch norm. The shift of that norm is common to all positions and makes outputs look more alike.

Maps also agree where they tell nothing apart: a block that has learned no attention averages all positions. So the
``evenness`` of the maps of a softmax is measured as well, exp(H(p)) / K of a map p over K keys, H its entropy: 1 where
all keys weigh the same, 1 / K where one has all the weight; the mean over the queries.

The mean cosine over all pairs needs no pair: it is |sum_i u_i|^2 / N^2, with u_i of unit length.
"""

import argparse
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gcvideo import console
from gcvideo.analysis import networks
from gcvideo.benchmark import harness
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import make_views
from gcvideo.data.records import Failure, RecordTable
from gcvideo.device import to_float64
from gcvideo.errors import ConfigError
from gcvideo.eval.trained import TrainedNetwork
from gcvideo.files import read_yaml
from gcvideo.layers import BlockTrace, NonLocalBlock, TracedBlock, record_attention
from gcvideo.layers.context import AttentionPool
from gcvideo.predict.inputs import input_views

# One clip from the middle of each video, its centre crop: many videos tell more than many views of a few.
ONE_VIEW = ("test.clips=1", "test.crops=1", "test.whole_frame=false")

MEASURES = ("input", "gathered", "output", "attention", "jsd", "evenness")
MOST_PAIRS = 20_000  # of maps that are compared for the divergence

# Table -> its rows, of the GCNet paper from memory; the file says more.
PAPER_TABLES: dict[str, Any] = read_yaml(__file__, "paper.yaml")
PAPER: dict[str, dict[str, float | None]] = PAPER_TABLES["attention"]

_ELEMENTS = 1 << 22  # numbers that are held in float64 at a time while pairs of maps are compared


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write what was asked for."""
    network, records = networks.load(args, defaults=ONE_VIEW)
    if not any(isinstance(module, TracedBlock) for module in network.model.modules()):
        raise ConfigError(f"{network.path}: this network has neither non-local nor context blocks to look into")
    results = analyze(network, records)
    count = results["videos"] - len(results["failures"])
    title = f"{count} of {results['videos']} videos, {results['protocol']}\n{PAPER_TABLES['legend']}"
    harness.finish(args, results, {title: rows_of(results)})
    for row in results["blocks"]:
        if row["jsd_sampled"]:
            error = f"standard error of the draw {row['jsd_error']:.1g}"
            console.say(f"{row['block']}: JSD from {row['jsd_pairs']:,} pairs drawn for each clip, {error}")
        if row["empty_maps"]:
            empty = console.percent(row["empty_maps"])
            console.say(f"{row['block']}: {empty} of the queries attend to nothing; they are left out")


def analyze(network: TrainedNetwork, records: RecordTable) -> dict[str, Any]:
    """Measure each block on every view of every video, one at a time.

    The maps of all blocks are held at once: 4 bytes x queries x keys a block, 39 MB for 8 x 28 x 28 positions with
    sub-sampled keys.

    Args:
        network: in float32.
        records: the videos; their views are those of ``network.config.test``.

    Returns:
        what ``--json`` writes: the summary, the statistics of every clip, the paper's, and what was run on what.
    """
    config, blocks = network.config, dict(network.model.named_modules())
    measured: list[dict[str, Any]] = []
    failures: list[Failure] = []
    total = len(records) * config.test.clips * config.test.crops
    with console.Progress("attention", total=total, unit="clips") as progress:
        for video in input_views(records, data=config.data, test=config.test, workers=config.data.worker_count):
            if video.failure is not None:
                failures.append(video.failure)
                continue
            for clip in make_views(video).split(1):  # uint8 (1, C, T, h, w)
                batch = normalize(clip.to(network.device), mean=config.data.mean, std=config.data.std)
                with torch.no_grad(), record_attention(network.model) as traces:
                    network.model(batch)
                seed = config.seed + len(measured)
                found = {name: block_statistics(blocks[name], trace, seed=seed) for name, trace in traces.items()}
                measured.append({"video": video.id, "blocks": found})
                progress.advance()
    results = {**networks.about(network, records, failures), **summarize(network.model, measured)}
    return {**results, "paper_from_memory_unverified": PAPER, "clips": measured}


def rows_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of blocks, with their average and the paper's values below."""
    blocks = results["blocks"]
    rows = [*blocks, *([{"block": "average", "kind": "non-local", **results["average"]}] if results["average"] else [])]
    rows += [{"block": "paper *", "kind": kind, **PAPER[kind]} for kind in PAPER if kind in {r["kind"] for r in blocks}]
    table = []
    for row in rows:
        values = {measure.replace("jsd", "JSD"): row.get(measure) for measure in MEASURES}
        shown = {k: f"{v:.1e}" if 0 < v < 0.001 else f"{v:.4f}" for k, v in values.items() if v is not None}
        table.append({"block": row["block"], "kind": row["kind"], **dict.fromkeys(values, "–"), **shown})
    return table


def mean_cosine_distance(vectors: Tensor) -> float | None:
    """Mean of (1 - cos) / 2 over all ordered pairs of rows, each row with itself included, in float64.

    Rows that are all zero have no direction and are left out; None where no other is there.

    Args:
        vectors: (n, d).
    """
    kept = to_float64(vectors[vectors.any(dim=1)])
    if not len(kept):
        return None
    mean = (kept / kept.norm(dim=1, keepdim=True)).mean(dim=0)
    return max(0.0, (1 - float(mean @ mean)) / 2)  # rounding may put it just below 0


def mean_js_divergence(maps: Tensor, *, max_pairs: int = MOST_PAIRS, seed: int = 0) -> dict[str, Any]:
    """Mean Jensen-Shannon divergence in nats over all ordered pairs of rows, each row with itself included.

    Up to ``max_pairs`` different pairs are all taken. Beyond that so many ordered pairs are drawn, independently and
    each equally likely, which makes the mean right on average; ``jsd_error`` says how far off it may be.

    Args:
        maps: (n, k), rows not negative and with sum 1.
        max_pairs: the most pairs to compare.
        seed: of the draw.

    Returns:
        ``jsd``: the mean. ``jsd_error``: the standard error that sampling pairs leaves, 0 where all pairs were taken.
        ``jsd_pairs``: how many different pairs (all), or how many draws (sampled). ``jsd_sampled``: whether pairs were
        drawn.
    """
    n, k = maps.shape
    sampled = n * (n - 1) // 2 > max_pairs
    drawn: Any = np.random.default_rng(seed).integers(n, size=(2, max_pairs)) if sampled else np.triu_indices(n, k=1)
    entropy = _entropy(maps)  # (n,)
    values = []
    for first, second in torch.as_tensor(np.stack(drawn), device=entropy.device).split(max(1, _ELEMENTS // k), dim=1):
        middle = _entropy((to_float64(maps[first]) + to_float64(maps[second])) / 2)
        values.append(middle - (entropy[first] + entropy[second]) / 2)  # JSD = H(m) - (H(p) + H(q)) / 2
    divergences = torch.cat(values).clamp(min=0)
    mean, error = 2 * float(divergences.sum()) / n**2, 0.0
    if sampled:
        mean, error = float(divergences.mean()), float(divergences.std()) / math.sqrt(max_pairs)
    return {"jsd": mean, "jsd_error": error, "jsd_pairs": len(divergences), "jsd_sampled": sampled}


def _entropy(maps: Tensor) -> Tensor:
    return torch.special.entr(to_float64(maps)).sum(1)


def mean_evenness(maps: Tensor) -> float:
    """Mean of exp(entropy) / k over rows, from 1 / k (one key has all the weight) to 1 (all weigh the same).

    Args:
        maps: (n, k), rows not negative and with sum 1.
    """
    return float(_entropy(maps).exp().mean()) / maps.shape[1]


def block_statistics(block: nn.Module, trace: BlockTrace, *, seed: int = 0) -> dict[str, Any]:
    """The measures of one block for one clip.

    A context block has one map, one context and one term for all queries, so all distances except that of its input
    are 0 by construction (None for what it does not have, as SE has no attention).

    Args:
        block: a ``ContextBlock`` or ``NonLocalBlock``.
        trace: of a single clip (N = 1).
        seed: of the draw of pairs.

    Returns:
        a value for each of ``MEASURES`` (None: does not apply); ``jsd_error``, ``jsd_pairs``, ``jsd_sampled``; and
        ``empty_maps``: the share of queries that attend to nothing (through a ReLU), which have no cosine.
    """
    found: dict[str, Any] = dict.fromkeys((*MEASURES, "jsd_error", "jsd_pairs", "jsd_sampled"))
    found |= {"input": mean_cosine_distance(_tokens(trace.input)), "empty_maps": 0.0}
    maps = None if trace.attention is None else trace.attention[0].flatten(1)  # (Q, K); Q is 1 for a shared map
    if not isinstance(block, NonLocalBlock):
        found |= {"gathered": 0.0, "output": 0.0}
        return found if maps is None else {**found, "attention": 0.0, "jsd": 0.0, "evenness": mean_evenness(maps)}
    assert maps is not None
    seen = {"gathered": _tokens(trace.context), "output": _tokens(trace.output), "attention": maps}
    found |= {key: mean_cosine_distance(vectors) for key, vectors in seen.items()}
    if block.instantiation not in ("gaussian", "embedded_gaussian"):  # the two of a softmax
        return {**found, "empty_maps": float((maps == 0).all(1).float().mean())}
    return {**found, **mean_js_divergence(maps, max_pairs=MOST_PAIRS, seed=seed), "evenness": mean_evenness(maps)}


def _tokens(grid: Tensor) -> Tensor:
    """The positions of a single clip: (1, C, T, H, W) -> (THW, C)."""
    return grid[0].flatten(1).T


def summarize(model: nn.Module, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Average over the clips, block by block, and over the non-local blocks.

    Args:
        model: whose blocks were measured.
        measured: of each clip, "blocks": block name -> ``block_statistics``.

    Returns:
        ``blocks``: a list of {"block", "kind", "clips", the mean of each of ``MEASURES``, "std" of each over the clips,
        "jsd_pairs", "jsd_sampled", "jsd_error", "empty_maps"}; ``average``: the mean of each measure over the
        non-local blocks, None without any.
    """
    rows: list[dict[str, Any]] = []
    for name in measured[0]["blocks"]:
        clips = [clip["blocks"][name] for clip in measured]
        values = {key: [clip[key] for clip in clips if clip[key] is not None] for key in clips[0]}
        errors = values["jsd_error"]
        rows.append(
            {
                "block": name,
                "kind": block_kind(model.get_submodule(name)),
                "clips": len(clips),
                **{key: _mean(values[key]) for key in (*MEASURES, "empty_maps")},
                "std": {key: float(np.std(values[key], ddof=1)) if len(values[key]) > 1 else None for key in MEASURES},
                "jsd_pairs": clips[0]["jsd_pairs"],
                "jsd_sampled": clips[0]["jsd_sampled"],
                "jsd_error": math.hypot(*errors) / len(errors) if errors else None,  # of a mean of independent draws
            }
        )
    pairwise = [row for row in rows if row["kind"] in PAPER]
    average = {key: _mean([row[key] for row in pairwise if row[key] is not None]) for key in MEASURES}
    return {"blocks": rows, "average": average if pairwise else None}


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def block_kind(block: nn.Module) -> str:
    """The instantiation of a non-local block; "shared attention" or "average pooling" for a context block."""
    shared = "shared attention" if isinstance(getattr(block, "pool", None), AttentionPool) else "average pooling"
    return block.instantiation if isinstance(block, NonLocalBlock) else shared
