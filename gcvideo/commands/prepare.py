"""``gcvideo prepare``: make, download, index, check, transcode and shard data sets.

Each task is a function of its arguments that returns what it did: the table that is printed, and more for ``--json``.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from gcvideo.console import printable, say, table, warn
from gcvideo.data.annotations import load_classes, load_records
from gcvideo.data.annotations.exports import read_export, write_label_list
from gcvideo.errors import DataError
from gcvideo.files import write_atomically, write_json
from gcvideo.prepare import download as kinetics
from gcvideo.prepare import motion as moving
from gcvideo.prepare import synthetic as sets
from gcvideo.prepare import transcode as copying
from gcvideo.prepare import verify as verifying
from gcvideo.prepare.index import make_index, write_shards
from gcvideo.prepare.jobs import Part, PartDone


def run(args: argparse.Namespace) -> int:
    """Run the task that was asked for; returns 1 if some videos have problems, or failed to transcode."""
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
    write_json(args.json, results)
    if args.subcommand == "transcode":
        return int(any(result["failures"] for result in results.values()))
    return int(bool(results.get("problems")))


def synthetic(args: argparse.Namespace) -> dict[str, Any]:
    """Make the synthetic action set, or the task for global context."""
    options = {"train": args.train, "val": args.val, "seed": args.seed, "workers": args.workers}
    train, val = sets.make_synthetic(args.out, task=args.kind, distance=args.distance, **options)
    apart = {"frames from cue to cue": sets.frames_apart(args.distance)} if args.kind == "context" else {}
    classes = list(sets.CUE_COLOURS if apart else sets.CLASSES)
    return {"train": str(train), "val": str(val), "classes": classes, **apart}


def download(args: argparse.Namespace) -> dict[str, Any]:
    """Download splits of Kinetics and index them; prints what there is beside what was published."""
    options: dict[str, Any] = {"splits": args.splits, "base": args.base, "keep_tars": args.keep_tars}
    files = kinetics.download_kinetics(args.name, args.out, workers=args.workers or 4, **options)
    results: dict[str, Any] = {}
    for split, count in files.items():
        out = args.out / f"{split}.parquet"
        if not out.exists():
            places = {"annotation": args.out / f"annotations/{split}.csv", "root": args.out / split}
            unknown = {*(load_records(**places).classes or ())} - {*load_classes(args.name)}
            if unknown:
                warn(f"{split}.csv: {min(unknown)!r} is no class of {args.name}; labels follow its own sorted names")
            classes = None if unknown else args.name  # all of them in the published order, also those without videos
            index(argparse.Namespace(out=out, classes=classes, workers=args.workers, part=None, **places))
        records, published = load_records(out), kinetics.EDITIONS[args.name]["videos"][split]
        counts = {"files": count, "published": published, "indexed": len(records), "missing": len(records.missing)}
        results[split] = {"index": str(out), **counts, "fingerprint": records.fingerprint}
    columns = ("split", "files", "published", "indexed", "missing", "fingerprint")
    rows = [(split, *list(result.values())[1:]) for split, result in results.items()]
    table(rows, columns=columns, title=f"{args.name}: files of the tar files, and videos of the annotations")
    return results


def motion(args: argparse.Namespace) -> dict[str, Any]:
    """Write samples of procedural motion."""
    sheet = moving.write_samples(args.out, per_class=args.per_class, seed=args.seed, workers=args.workers)
    classes = list(moving.CLASSES)
    return {"sheet": str(sheet), "videos": args.per_class * len(classes), "classes": classes}


def index(args: argparse.Namespace) -> dict[str, Any]:
    """Index a data set; the ids of missing videos go into a text file beside the index."""
    out = args.out or args.annotation.with_suffix(".parquet")
    classes = load_classes(args.classes) if args.classes else None
    options: dict[str, Any] = {"root": args.root, "workers": args.workers, "part": Part.from_args(args)}
    made = make_index(args.annotation, out, classes=classes, **options)
    records, path = load_records(out), out.with_name(f"{out.stem}.missing.txt")
    path.unlink(missing_ok=True)
    if records.missing:
        write_atomically(path, "".join(f"{name}\n" for name in records.missing).encode("utf-8", "surrogateescape"))
        say(f"missing: {path}")
    counts = {"videos": len(made), "unreadable": made["error"].drop_null().length(), "missing": len(records.missing)}
    return {"index": str(out), **counts, "fingerprint": records.fingerprint}


def verify(args: argparse.Namespace) -> dict[str, Any]:
    """Check rows, videos and copies, and list what to leave out."""
    out = args.out or args.annotation[0].with_name(f"{args.annotation[0].name}.quarantine.jsonl")
    limits: dict[str, Any] = {"seconds": args.seconds, "memory": int(args.gigabytes * (1 << 30))}
    options: dict[str, Any] = {"root": args.root, "workers": args.workers, "part": Part.from_args(args)}
    classes = load_classes(args.classes) if args.classes else None
    result = verifying.verify(args.annotation, out, classes=classes, **limits, **options)
    report = str(verifying.report_path(out))
    kinds = {kind: [finding for finding in result.findings if finding.kind == kind] for kind in verifying.KINDS}
    rows = [(verifying.KINDS[kind], len(found)) for kind, found in kinds.items() if found]
    table([("sound", result.sound), *rows], columns=("rows that are", "rows"))
    for kind, found in kinds.items():
        for finding in found[:5]:
            place = f"{finding.list}:{finding.line}" if finding.line else finding.list  # folders have no lines
            say(printable(f"{kind}: {place}: {finding.id}: {finding.reason}"))
        if len(found) > 5:
            say(f"{kind}: and {len(found) - 5:,} more, see {report}")
    numbers = {"problems": len(result.problems), "kinds": {kind: len(found) for kind, found in kinds.items()}}
    findings = [finding._asdict() for finding in result.findings]
    return {"quarantine": str(out), "report": report, **result._asdict(), **numbers, "findings": findings}


def transcode(args: argparse.Namespace) -> dict[str, Any]:
    """Copy videos into a faster layout, or measure what each preset would give."""
    if not (args.out or args.compare):
        raise DataError("transcode: give a folder for the copies, or --compare N to measure the presets")
    options: dict[str, Any] = {"most": args.compare, "workers": args.workers, "part": Part.from_args(args)}
    done = {}
    with tempfile.TemporaryDirectory(prefix="gcvideo-presets-") as folder:
        for preset in copying.PRESETS if args.compare else [args.preset]:
            encoding = copying.Encoding(preset=preset, short_side=args.short_side, audio=args.audio)
            out = Path(folder) / preset if args.compare else args.out
            done[preset] = copying.transcode(args.source, out, encoding, **options)
    rows = []
    for preset, result in done.items():
        (old_bytes, old_ms), (new_bytes, new_ms) = result.old.values(), result.new.values()
        sizes = (old_bytes / 1e6, new_bytes / 1e6, new_bytes / max(old_bytes, 1))
        rows.append((preset, result.videos, *sizes, old_ms, new_ms, old_ms / new_ms))
        for path, reason in result.failures.items():
            warn(printable(f"not transcoded: {path}: {reason}"))
    columns = ("preset", "videos", "MB before", "MB", "ratio", "ms/clip before", "ms/clip", "times faster")
    table(rows, columns=columns)
    for annotation in [] if args.compare else args.annotation:
        say(f"annotation: {copying.copy_annotation(annotation, args.source, args.out)}")
    return {preset: result._asdict() for preset, result in done.items()}


def labels(args: argparse.Namespace) -> dict[str, Any]:
    """Make a list of the labels of exports, and name what could not be used."""
    marks = [mark for export in args.export for mark in read_export(export)]
    videos = args.videos or args.export[0].parent
    made = write_label_list(marks, args.out, videos=videos, field=args.field, fps=args.fps)
    for problem in made["problems"]:
        warn(printable(f"left out: {problem}"))
    return {"list": str(args.out), **made}


def shard(args: argparse.Namespace) -> dict[str, Any]:
    """Pack the videos of an annotation into tar shards."""
    options = {"root": args.root, "seed": args.seed, "workers": args.workers}
    made = write_shards(args.annotation, args.out, shard_bytes=int(args.megabytes * 1e6), **options)
    shards = made["shards"]
    return {"shards": len(shards), "videos": sum(s["samples"] for s in shards), "fingerprint": made["fingerprint"]}
