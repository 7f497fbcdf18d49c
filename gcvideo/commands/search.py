"""``gcvideo search QUERY --index FILE.parquet``: the videos whose feature vectors are nearest to those of a video."""

import argparse

import numpy as np

from gcvideo.console import clock, printable, say, table
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.files import write_json
from gcvideo.predict.embedding import Embedding
from gcvideo.predict.predictor import load
from gcvideo.predict.vectors import VectorIndex
from gcvideo.report.page import write_page


def run(args: argparse.Namespace) -> int:
    """Search; prints the nearest videos, clips or windows, of other videos than the query."""
    index = VectorIndex.load(args.index)
    own = index.find(args.query)
    vectors, starts, ends = (column[own] for column in index.rows) if len(own) else _embed_query(args, index)
    chosen = (starts <= args.at) & (args.at < ends) if args.at is not None else np.full(len(vectors), True)
    if not chosen.any():
        raise ConfigError(f"--at: {args.at:g} s lies in no clip or window of the query; it ends at {ends.max():g} s")
    query = {"path": args.query, "start": float(starts[chosen].min()), "end": float(ends[chosen].max())}
    found = index.nearest(vectors[chosen].mean(axis=0), top=args.top, leave_out=own)
    rows = [
        [rank, f"{row['similarity']:.3f}", *map(clock, (row["start"], row["end"])), printable(row["path"])]
        for rank, row in enumerate(found, start=1)
    ]
    table(rows, columns=["rank", "similarity", "from", "to", "video"], title=f"nearest to {printable(args.query)}")
    write_json(args.json, {"query": query, "index": args.index, "found": found})
    if args.html:
        values = {"rows": [query, *found], "info": index.info, "vectors": len(index.paths)}
        write_page(args.html, "search.html.j2", title="Similar videos", **values)
        say(f"page: {printable(args.html)}")
    return 0


def _embed_query(args: argparse.Namespace, index: VectorIndex) -> Embedding:
    """The vectors of a video that is not in the index, made as those in it."""
    made = index.info["checkpoint"]
    predictor = load(args.checkpoint or made["path"], device=args.device, precision=made["precision"])
    if predictor.describe()["sha256"] != made["sha256"]:
        fix = "embed the videos again with it, or give theirs with --checkpoint"
        raise CheckpointError(f"{predictor.source}: is not the checkpoint that made {args.index}; {fix}")
    return predictor.embed(args.query, **index.making())
