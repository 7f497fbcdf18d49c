"""``gcvideo prepare``: make, download, index, check, transcode and shard data sets.

Each task is a function of its arguments that returns what it did: the table that is printed, and more for ``--json``.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from gcvideo.arguments import require_numbers
from gcvideo.console import printable, say, table, warn
from gcvideo.errors import DataError
from gcvideo.files import write_atomically, write_json
from gcvideo.parts import Part

# Smallest values of the numeric options, of all tasks.
LEAST = {
    "workers": 0,
    "seed": 0,
    "seconds": 1e-3,
    "gigabytes": 1e-3,
    "megabytes": 1e-3,
    "short_side": 1,
    "compare": 1,
    "per_class": 1,
    "fps": 1e-3,
}
SHARED = ("index", "verify", "transcode")  # tasks that processes can share


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand a task, each with its own options."""
    from gcvideo.prepare.download import BASE, EDITIONS
    from gcvideo.prepare.encode import PRESETS

    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")

    def add_task(name: str, about: str, *, annotation: bool = False) -> argparse.ArgumentParser:
        task = tasks.add_parser(name, help=about, description=about)
        if annotation:
            text = "Kinetics CSV, `path label` list, folder of class folders, index"
            several = name == "verify"
            text += "; training lists first, the test list last" * several
            task.add_argument("annotation", type=Path, nargs="+" if several else None, help=text)
            task.add_argument("--root", type=Path, help="folder of the videos; by default the annotation's own")
        if name in SHARED:
            Part.add_argument(task)
        text = "tar files at a time (default 4)" if name == "download" else "processes; by default one a core"
        task.add_argument("--workers", type=int, metavar="N", help=text)
        task.add_argument("--json", default=argparse.SUPPRESS, metavar="FILE", help="write the results as JSON")
        return task

    task = add_task("synthetic", "make a small synthetic set")
    task.add_argument("out", type=Path, help="folder for the videos and their annotations")
    task.add_argument("--task", dest="kind", default="action", choices=["action", "context"], help="(%(default)s)")
    text = "context: the two cues lie near, or far in space, time, both (%(default)s)"
    task.add_argument("--distance", default="both", choices=["near", "space", "time", "both"], help=text)
    task.add_argument("--train", type=int, default=240, metavar="N", help="training videos (%(default)s)")
    task.add_argument("--val", type=int, default=80, metavar="N", help="validation videos (%(default)s)")
    task.add_argument("--seed", type=int, default=0, help="the same seed gives the same videos (%(default)s)")

    task = add_task("download", "download Kinetics from the mirror of CVDF, unpack and index it; resumes")
    task.add_argument("name", choices=EDITIONS, help="kinetics700 is the edition of 2020")
    task.add_argument("out", type=Path, help="folder of the data set")
    splits = ("train", "val", "test")
    task.add_argument("--splits", nargs="+", choices=splits, default=splits[:2], help="train and val if not given")
    task.add_argument("--keep-tars", action="store_true", help="keep the tar files, in OUT/tars")
    task.add_argument("--base", default=BASE, metavar="URL", help="a mirror with the same paths (%(default)s)")

    task = add_task("motion", "write samples of the procedural motion that networks can train on")
    task.add_argument("out", type=Path, help="folder for a folder of videos a class, and sheet.png")
    task.add_argument("--per-class", type=int, default=4, metavar="N", help="videos of each class (%(default)s)")
    task.add_argument("--seed", type=int, default=0, help="the same seed gives the same videos (%(default)s)")

    task = add_task("index", "write the properties of each video into one Parquet file", annotation=True)
    task.add_argument("--out", type=Path, metavar="FILE", help="by default ANNOTATION with the suffix .parquet")
    task.add_argument("--classes", type=Path, metavar="FILE", help="class names in label order")

    about = "check all rows, decode all videos, find copies; list what to leave out. Exit code 1 if there are problems"
    task = add_task("verify", about, annotation=True)
    task.add_argument("--out", type=Path, metavar="FILE", help="by default ANNOTATION.quarantine.jsonl, of the first")
    task.add_argument("--classes", type=Path, metavar="FILE", help="class names in label order")
    task.add_argument("--seconds", type=float, default=600, help="time limit of one video (%(default)g)")
    task.add_argument("--gigabytes", type=float, default=4, help="memory limit of one video (%(default)g)")

    task = add_task("transcode", "write copies of videos in a layout made for reading clips")
    about = "; ".join(f"{name}: {preset['about']}" for name, preset in PRESETS.items())
    task.add_argument("source", type=Path, help="folder of videos; they are only read")
    task.add_argument("out", type=Path, nargs="?", help="folder for the copies")
    task.add_argument("--preset", default="clip", choices=PRESETS, help=f"{about} (%(default)s)")
    task.add_argument("--short-side", type=int, default=256, metavar="PIXELS", help="never enlarged (%(default)s)")
    task.add_argument("--audio", action="store_true", help="keep the sound")
    text = "rewrite this annotation for the copies"
    task.add_argument("--annotation", type=Path, action="append", default=[], metavar="FILE", help=text)
    task.add_argument("--compare", type=int, metavar="N", help="only measure every preset on N of the videos")

    task = add_task(
        "labels", "make a list of the labels that Label Studio, CVAT or VIA exported; exit code 1: some are lost"
    )
    task.add_argument("export", type=Path, nargs="+", help="JSON, CSV, TSV, XML or ZIP")
    task.add_argument("--videos", type=Path, metavar="FOLDER", help="of the videos; by default the export's own")
    task.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="the list to write")
    task.add_argument("--field", metavar="NAME", help="the question or attribute to take, where there are several")
    task.add_argument("--fps", type=float, help="rate by which the tool counted frames, if another than the videos'")

    task = add_task("shard", "pack videos into tar shards", annotation=True)
    task.add_argument("out", type=Path, help="folder for the shards")
    task.add_argument("--megabytes", type=float, default=256, help="size of one shard, about (%(default)g)")
    task.add_argument("--seed", type=int, default=0, help="of the one shuffle (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the task that was asked for; returns 1 if some videos have problems, or failed to transcode."""
    from gcvideo.prepare.jobs import PartDone

    require_numbers(args, **{name: least for name, least in LEAST.items() if name in args})
    tasks = (synthetic, motion, download, index, verify, transcode, labels, shard)
    try:
        results = {task.__name__: task for task in tasks}[args.task](args)
    except PartDone as done:
        say(str(done))
        if args.json:
            part = Part.from_args(args)
            results = {"part": part.number, "of": part.count, "videos": done.videos, "failed": done.failed}
            write_json(part.file(args.json), results)
        return 0
    shown = [(name, value) for name, value in results.items() if not isinstance(value, (list, dict))]
    if shown:
        table(shown, columns=(args.task, ""))
    if args.json:
        write_json(args.json, results)
    if args.task == "transcode":
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
    from gcvideo.prepare.encode import Encoding

    if args.compare:
        done = work.compare_presets(args.source, videos=args.compare, short_side=args.short_side, workers=args.workers)
    elif args.out is None:
        raise DataError("transcode: give a folder for the copies, or --compare N to measure the presets")
    else:
        encoding = Encoding(preset=args.preset, short_side=args.short_side, audio=args.audio)
        options: dict[str, Any] = {"workers": args.workers, "part": Part.from_args(args)}
        done = {args.preset: work.transcode(args.source, args.out, encoding, **options)}
    rows = []
    for preset, result in done.items():
        old, new = result.old, result.new
        sizes = (old.bytes / 1e6, new.bytes / 1e6, new.bytes / max(old.bytes, 1))
        rows.append((preset, result.videos, *sizes, old.clip_ms, new.clip_ms, old.clip_ms / new.clip_ms))
    columns = ("preset", "videos", "MB before", "MB", "ratio", "ms/clip before", "ms/clip", "times faster")
    table(rows, columns=columns)
    for result in done.values():
        for path, reason in result.failures.items():
            warn(printable(f"not transcoded: {path}: {reason}"))
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
