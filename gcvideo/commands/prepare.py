"""``gcvideo prepare``: make, download, index, check, transcode and shard data sets.

Each task is a function of its arguments that returns what it did: the table that is printed, and more for ``--json``.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from gcvideo.console import printable, say, table, warn
from gcvideo.errors import DataError
from gcvideo.files import write_atomically, write_json
from gcvideo.parts import Part


def run(args: argparse.Namespace) -> int:
    """Run the task that was asked for; returns 1 if some videos have problems, or failed to transcode."""
    from gcvideo.prepare.jobs import PartDone

    tasks = (synthetic, motion, download, index, verify, transcode, labels, shard)
    try:
        results = {task.__name__: task for task in tasks}[args.subcommand](args)
    except PartDone as done:
        say(str(done))
        if args.json:
            part = Part.from_args(args)
            results = {"part": part.number, "of": part.count, "videos": done.videos, "failed": done.failed}
            write_json(part.file(args.json), results)
        return 0
    shown = [(name, value) for name, value in results.items() if not isinstance(value, (list, dict))]
    if shown:
        table(shown, columns=(args.subcommand, ""))
    if args.json:
        write_json(args.json, results)
    if args.subcommand == "transcode":
        return int(any(result["failures"] for result in results.values()))
    return int(bool(results.get("problems")))


def synthetic(args: argparse.Namespace) -> dict[str, Any]:
    """Make the synthetic action set, or the task for global context."""
    from gcvideo.prepare.synthetic import CLASSES, CUE_COLOURS, frames_apart, make_synthetic

    options = {"train": args.train, "val": args.val, "seed": args.seed, "workers": args.workers}
    train, val = make_synthetic(args.out, task=args.kind, distance=args.distance, **options)
    made = {"train": str(train), "val": str(val)}
    if args.kind == "action":
        return {**made, "classes": list(CLASSES)}
    return {**made, "classes": list(CUE_COLOURS), "frames from cue to cue": frames_apart(args.distance)}


def download(args: argparse.Namespace) -> dict[str, Any]:
    """Download splits of Kinetics and index them; prints what there is beside what was published."""
    from gcvideo.data.annotations import load_classes, load_records
    from gcvideo.prepare.download import EDITIONS, download_kinetics

    options: dict[str, Any] = {"splits": args.splits, "base": args.base, "keep_tars": args.keep_tars}
    files = download_kinetics(args.name, args.out, workers=args.workers or 4, **options)
    results, rows = {}, []
    for split, count in files.items():
        options = {"annotation": args.out / f"annotations/{split}.csv", "root": args.out / split}
        out = args.out / f"{split}.parquet"
        if not out.exists():
            unknown = {*(load_records(**options).classes or ())} - {*load_classes(args.name)}
            if unknown:
                warn(f"{split}.csv: {min(unknown)!r} is no class of {args.name}; labels follow its own sorted names")
            classes = None if unknown else args.name
            index(argparse.Namespace(out=out, classes=classes, workers=args.workers, part=None, **options))
        records, published = load_records(out), EDITIONS[args.name]["videos"][split]
        counts = {"files": count, "published": published, "indexed": len(records), "missing": len(records.missing)}
        results[split] = {"index": str(out), **counts, "fingerprint": records.fingerprint}
        rows.append((split, *counts.values(), records.fingerprint))
    columns = ("split", "files", "published", "indexed", "missing", "fingerprint")
    table(rows, columns=columns, title=f"{args.name}: files of the tar files, and videos of the annotations")
    return results


def motion(args: argparse.Namespace) -> dict[str, Any]:
    """Write samples of procedural motion."""
    from gcvideo.prepare.motion import CLASSES, write_samples

    sheet = write_samples(args.out, per_class=args.per_class, seed=args.seed, workers=args.workers)
    return {"sheet": str(sheet), "videos": args.per_class * len(CLASSES), "classes": list(CLASSES)}


def index(args: argparse.Namespace) -> dict[str, Any]:
    """Index a data set; what does not match goes into text files beside the index."""
    from gcvideo.data.annotations import load_classes
    from gcvideo.prepare.index import make_index

    out = args.out or args.annotation.with_suffix(".parquet")
    classes = load_classes(args.classes) if args.classes else None
    options: dict[str, Any] = {"root": args.root, "workers": args.workers, "part": Part.from_args(args)}
    made = make_index(args.annotation, out, classes=classes, **options)
    unreadable = [f"{path}\t{reason}" for path, reason in made.unreadable]
    lists = {"unreadable": unreadable, "missing": made.missing, "extra": made.extra, "replaced": made.replaced}
    for name, lines in lists.items():
        path = out.with_name(f"{out.stem}.{name}.txt")
        path.unlink(missing_ok=True)
        if lines:
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
            say(f"{name}: {path}")
    counts = {"videos": made.table.num_rows, **{name: len(lines) for name, lines in lists.items()}}
    return {"index": str(out), **counts, **made.totals(), "fingerprint": made.fingerprint, "content": made.content}


def verify(args: argparse.Namespace) -> dict[str, Any]:
    """Check rows, videos and copies, and list what to leave out."""
    from gcvideo.data.annotations import load_classes
    from gcvideo.prepare import verify as work

    out = args.out or args.annotation[0].with_name(f"{args.annotation[0].name}.quarantine.jsonl")
    limits: dict[str, Any] = {"seconds": args.seconds, "memory": int(args.gigabytes * (1 << 30))}
    options: dict[str, Any] = {"root": args.root, "workers": args.workers, "part": Part.from_args(args)}
    classes = load_classes(args.classes) if args.classes else None
    result = work.verify(args.annotation, out, classes=classes, **limits, **options)
    kinds = {kind: [finding for finding in result.findings if finding.kind == kind] for kind in work.KINDS}
    rows = [(work.KINDS[kind], len(found)) for kind, found in kinds.items() if found]
    table([("sound", result.sound), *rows], columns=("rows that are", "rows"))
    for kind, found in kinds.items():
        for finding in found[:5]:
            place = f"{finding.list}:{finding.line}" if finding.line else finding.list  # folders have no lines
            say(printable(f"{kind}: {place}: {finding.id}: {finding.reason}"))
        if len(found) > 5:
            say(f"{kind}: and {len(found) - 5:,} more, see {work.report_path(out)}")
    counts = {"rows": result.rows, "videos": result.videos, "frames": result.frames, "sound": result.sound}
    files = {"quarantine": str(out), "report": str(work.report_path(out))}
    findings = [finding._asdict() for finding in result.findings]
    numbers = {kind: len(found) for kind, found in kinds.items()}
    return {**files, **counts, "problems": len(result.problems), "kinds": numbers, "findings": findings}


def transcode(args: argparse.Namespace) -> dict[str, Any]:
    """Copy videos into a faster layout, or measure what each preset would give."""
    from gcvideo.prepare import transcode as work
    from gcvideo.prepare.encode import PRESETS, Encoding

    if not (args.out or args.compare):
        raise DataError("transcode: give a folder for the copies, or --compare N to measure the presets")
    options: dict[str, Any] = {"most": args.compare, "workers": args.workers, "part": Part.from_args(args)}
    done = {}
    with tempfile.TemporaryDirectory(prefix="gcvideo-presets-") as folder:
        for preset in PRESETS if args.compare else [args.preset]:
            encoding = Encoding(preset=preset, short_side=args.short_side, audio=args.audio)
            out = Path(folder) / preset if args.compare else args.out
            done[preset] = work.transcode(args.source, out, encoding, **options)
    rows = []
    for preset, result in done.items():
        old, new = result.old, result.new
        sizes = (old.bytes / 1e6, new.bytes / 1e6, new.bytes / max(old.bytes, 1))
        rows.append((preset, result.videos, *sizes, old.clip_ms, new.clip_ms, old.clip_ms / new.clip_ms))
        for path, reason in result.failures.items():
            warn(printable(f"not transcoded: {path}: {reason}"))
    columns = ("preset", "videos", "MB before", "MB", "ratio", "ms/clip before", "ms/clip", "times faster")
    table(rows, columns=columns)
    for annotation in [] if args.compare else args.annotation:
        say(f"annotation: {work.copy_annotation(annotation, args.source, args.out)}")
    return {preset: dataclasses.asdict(result) for preset, result in done.items()}


def labels(args: argparse.Namespace) -> dict[str, Any]:
    """Make a list of the labels of exports, and name what could not be used."""
    from gcvideo.data.annotations.exports import read_export, write_label_list

    marks = [mark for export in args.export for mark in read_export(export)]
    videos = args.videos or args.export[0].parent
    made = write_label_list(marks, args.out, videos=videos, field=args.field, fps=args.fps)
    for problem in made["problems"]:
        warn(printable(f"left out: {problem}"))
    return {"list": str(args.out), **made}


def shard(args: argparse.Namespace) -> dict[str, Any]:
    """Pack the videos of an annotation into tar shards."""
    from gcvideo.prepare.shards import write_shards

    options = {"root": args.root, "seed": args.seed, "workers": args.workers}
    made = write_shards(args.annotation, args.out, shard_bytes=int(args.megabytes * 1e6), **options)
    return {"shards": len(made.names), "videos": sum(made.counts), "fingerprint": made.fingerprint}
