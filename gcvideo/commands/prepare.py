"""``gcvideo prepare``: make, index, check and transcode data sets."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gcvideo.console import say, table
from gcvideo.errors import DataError
from gcvideo.files import write_atomically, write_json

if TYPE_CHECKING:
    import pyarrow as pa

    from gcvideo.prepare.transcode import Transcoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand a task, each with its own options."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    _synthetic_arguments(_task(tasks, "synthetic", "make a small synthetic action set", _synthetic))
    _index_arguments(_task(tasks, "index", "write what each video is into one Parquet file", _index))
    _verify_arguments(_task(tasks, "verify", "decode everything and list what is not sound", _verify))
    _transcode_arguments(_task(tasks, "transcode", "write videos anew, laid out for reading clips", _transcode))
    _shard_arguments(_task(tasks, "shard", "pack videos into tar shards", _shard))


def run(args: argparse.Namespace) -> int | None:
    """Run the task that was asked for."""
    task: Callable[[argparse.Namespace], int | None] = args.run_task
    return task(args)


def _task(
    tasks: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run_task: Callable[[argparse.Namespace], int | None],
) -> argparse.ArgumentParser:
    parser = tasks.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run_task=run_task)
    parser.add_argument("--workers", type=int, metavar="N", help="processes; by default one a core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    return parser


def _synthetic_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="folder for the videos and their annotations")
    parser.add_argument("--train", type=int, default=240, metavar="N", help="training videos (%(default)s)")
    parser.add_argument("--val", type=int, default=80, metavar="N", help="validation videos (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same videos (%(default)s)")


def _synthetic(args: argparse.Namespace) -> None:
    from gcvideo.prepare.synthetic import CLASSES, make_synthetic

    made = make_synthetic(args.out, train=args.train, val=args.val, seed=args.seed, workers=args.workers)
    say(f"{args.train} training and {args.val} validation videos of {len(CLASSES)} classes: {made.train}, {made.val}")
    _report(args, {"train": str(made.train), "val": str(made.val), "classes": list(CLASSES)})


def _annotation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotation", type=Path, help="Kinetics CSV, `path label` list, folder of class folders, index")
    parser.add_argument("--root", type=Path, help="folder of the videos; by default the annotation's own")


def _index_arguments(parser: argparse.ArgumentParser) -> None:
    _annotation_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default ANNOTATION with the suffix .parquet")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="class names in label order")


def _index(args: argparse.Namespace) -> None:
    from gcvideo.data.annotations import load_classes
    from gcvideo.prepare.index import make_index

    out = args.out or args.annotation.with_suffix(".parquet")
    classes = load_classes(args.classes) if args.classes else None
    index = make_index(args.annotation, out, root=args.root, classes=classes, workers=args.workers)
    rows = [("videos", index.table.num_rows), ("of them unreadable", len(index.unreadable))]
    rows += [("missing", len(index.missing)), ("extra", len(index.extra)), ("replaced", len(index.replaced))]
    lists = {
        "unreadable": [f"{path}\t{reason}" for path, reason in index.unreadable],
        "missing": index.missing,
        "extra": index.extra,
        "replaced": index.replaced,
    }
    table([*rows, *_totals(index.table)], columns=("index", ""))
    for name, lines in lists.items():
        path = out.with_name(f"{out.stem}.{name}.txt")
        path.unlink(missing_ok=True)
        if lines:
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
            say(f"{name}: {path}")
    say(f"fingerprint of ids and labels: {index.fingerprint}")
    say(f"fingerprint of their bytes too: {index.content}")
    say(f"index: {out}")
    counts = {name: len(lines) for name, lines in lists.items()}
    fingerprints = {"fingerprint": index.fingerprint, "content": index.content}
    _report(args, {"index": str(out), "videos": index.table.num_rows, **counts, **fingerprints})


def _totals(index: pa.Table) -> list[tuple[str, object]]:
    import pyarrow.compute as pc

    codecs = {entry["values"]: entry["counts"] for entry in pc.value_counts(index["codec"]).to_pylist()}
    return [
        ("hours", (pc.sum(index["duration"]).as_py() or 0) / 3600),
        ("GB", (pc.sum(index["bytes"]).as_py() or 0) / 1e9),
        ("frames between key frames, median", pc.quantile(index["gop"], 0.5)[0].as_py()),
        ("codecs", ", ".join(f"{name} {count}" for name, count in codecs.items() if name)),
    ]


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _annotation_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default ANNOTATION.quarantine.jsonl")
    parser.add_argument("--seconds", type=float, default=600, help="time limit of one video (%(default)g)")
    parser.add_argument("--gigabytes", type=float, default=4, help="memory limit of one video (%(default)g)")


def _verify(args: argparse.Namespace) -> None:
    from gcvideo.prepare.jobs import Limits
    from gcvideo.prepare.verify import verify

    out = args.out or args.annotation.with_name(f"{args.annotation.name}.quarantine.jsonl")
    limits = Limits(seconds=args.seconds, memory=int(args.gigabytes * (1 << 30)))
    result = verify(args.annotation, out, root=args.root, workers=args.workers, limits=limits)
    bad = len(result.failures)
    table([("videos", result.videos), ("sound", result.videos - bad), ("not sound", bad)], columns=("verify", ""))
    for failure in result.failures[:20]:
        say(f"  {failure.path}: {failure.reason}")
    say(f"{'first 20 of ' if bad > 20 else ''}{bad} videos to leave out: {out}")
    failures = [failure._asdict() for failure in result.failures]
    _report(args, {"quarantine": str(out), "videos": result.videos, "frames": result.frames, "failures": failures})


def _transcode_arguments(parser: argparse.ArgumentParser) -> None:
    from gcvideo.prepare.encode import PRESETS

    about = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    parser.add_argument("source", type=Path, help="folder of videos; they are only read")
    parser.add_argument("out", type=Path, nargs="?", help="folder for the copies")
    parser.add_argument("--preset", default="clip", choices=PRESETS, help=f"{about} (%(default)s)")
    parser.add_argument("--short-side", type=int, default=256, metavar="PIXELS", help="never enlarged (%(default)s)")
    parser.add_argument("--audio", action="store_true", help="keep the sound")
    parser.add_argument(
        "--annotation", type=Path, action="append", default=[], metavar="FILE", help="write it anew too"
    )
    parser.add_argument("--compare", type=int, metavar="N", help="only measure every preset on N of the videos")


def _transcode(args: argparse.Namespace) -> int | None:
    from gcvideo.prepare.encode import Encoding
    from gcvideo.prepare.transcode import compare_presets, copy_annotation, transcode

    if args.compare:
        results = compare_presets(args.source, videos=args.compare, short_side=args.short_side, workers=args.workers)
    elif args.out is None:
        raise DataError("transcode: give a folder for the copies, or --compare N to measure the presets")
    else:
        encoding = Encoding(preset=args.preset, short_side=args.short_side, audio=args.audio)
        results = {args.preset: transcode(args.source, args.out, encoding, workers=args.workers)}
    columns = ("preset", "videos", "MB before", "MB", "ratio", "ms/clip before", "ms/clip", "times faster")
    table([_preset_row(name, result) for name, result in results.items()], columns=columns)
    failures = {path: reason for result in results.values() for path, reason in result.failures.items()}
    for path, reason in failures.items():
        say(f"not transcoded: {path}: {reason}")
    for annotation in [] if args.compare else args.annotation:
        say(f"annotation: {copy_annotation(annotation, args.source, args.out)}")
    _report(args, {name: dataclasses.asdict(result) for name, result in results.items()})
    return 1 if failures else None


def _preset_row(name: str, result: Transcoding) -> tuple[object, ...]:
    old, new = result.old, result.new
    ratio = new.bytes / max(old.bytes, 1)
    sizes = (old.bytes / 1e6, new.bytes / 1e6, ratio)
    return (name, result.videos, *sizes, old.clip_ms, new.clip_ms, old.clip_ms / new.clip_ms)


def _shard_arguments(parser: argparse.ArgumentParser) -> None:
    _annotation_arguments(parser)
    parser.add_argument("out", type=Path, help="folder for the shards")
    parser.add_argument("--megabytes", type=float, default=256, help="of one shard, about (%(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the one shuffle (%(default)s)")


def _shard(args: argparse.Namespace) -> None:
    from gcvideo.prepare.shards import write_shards

    size = int(args.megabytes * 1e6)
    made = write_shards(
        args.annotation, args.out, root=args.root, shard_bytes=size, seed=args.seed, workers=args.workers
    )
    say(f"{sum(made.counts)} videos in {len(made.names)} shards: {args.out}")
    _report(args, {"shards": len(made.names), "videos": sum(made.counts), "fingerprint": made.fingerprint})


def _report(args: argparse.Namespace, result: dict[str, object]) -> None:
    if args.json:
        write_json(args.json, result)
