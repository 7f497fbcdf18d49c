"""Verify a data set: decode whole videos, compare rows and contents, and list what to leave out."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from gcvideo.data.annotations import load_records, looks_like
from gcvideo.data.annotations.table import EVERY_SUBSET, Readings
from gcvideo.data.records import VideoRecord
from gcvideo.errors import DamagedVideoError, VideoError
from gcvideo.files import Journal, Row, hash_file, read_yaml, write_atomically
from gcvideo.prepare.duplicates import FRAMES, alike, picture_hash
from gcvideo.prepare.jobs import WHOLE, Part, reason_of, scan
from gcvideo.video import open_video
from gcvideo.video.frame_folder import check_frames, list_files
from gcvideo.video.tar_members import local_path

# Kind of finding -> what it means; the file says more.
KINDS: dict[str, str] = read_yaml(__file__, "verify.yaml")
SOUND = ("pyav", "repeated")
ONLY_REPORTED = (*SOUND, "alike")
SUBSETS = ("train", "val", "test")
SEVERAL = " | "  # between the labels of a video
LOOKS_SAME = "the same pictures"
MARKED = "marked by the decoder"


class Finding(NamedTuple):
    """What is to be known of a row: its kind (see ``KINDS``), place and reason. The line is 0 where there are none."""

    kind: str
    list: str
    line: int
    id: str
    path: str
    reason: str


class Verification(NamedTuple):
    """Result of a verification.

    Attributes:
        rows: how many the annotations have.
        videos: how many were decoded.
        frames: how many frames those have that can be read.
        sound: rows of which nothing is to be said.
        findings: all others, in the order of the rows.
    """

    rows: int
    videos: int
    frames: int
    sound: int
    findings: Sequence[Finding]

    @property
    def problems(self) -> list[Finding]:
        """Findings in rows that are not sound."""
        return [finding for finding in self.findings if finding.kind not in SOUND]


class Entry(NamedTuple):
    """A row whose video was decoded. Lists are numbered in the order given, their subsets in that of ``SUBSETS``."""

    order: tuple[int, int]
    list: str
    line: int
    record: VideoRecord
    label: str | None
    classes: Sequence[str] | None  # of its list

    def found(self, kind: str, reason: str) -> Finding:
        return Finding(kind, self.list, self.line, self.record.id, self.record.path, reason)

    def __str__(self) -> str:
        return f"{self.list}:{self.line}" if self.line else f"{self.record.id} of {self.list}"


def verify(
    annotations: Sequence[str | Path],
    quarantine: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    workers: int | None = None,
    seconds: float = 600,
    memory: int = 4 << 30,
    part: Part = WHOLE,
) -> Verification:
    """Check all rows and decode every frame of every video, in processes that may die; write what to leave out.

    An interrupted run is resumed from a journal beside the list. Parts share the journal; the whole job puts their work
    together.

    Args:
        annotations: anything that ``load_records`` reads: training lists first, the test list last.
        quarantine: the list to write: a JSON object (id, path, reason) a line, as training reads it.
        root: folder of the videos; by default each annotation's own folder.
        classes: class names in label order, where known.
        workers: processes at a time; by default one a core.
        seconds: time limit of one video.
        memory: bytes that decoding one video may take.
        part: of the videos; others do the rest.

    Raises:
        DataError: an annotation cannot be used as a whole.
        PartDone: this is a part, and its videos are decoded.
    """
    entries, findings = read_lists(annotations, root, classes)
    count = len(entries) + len({(finding.list, finding.line, finding.id) for finding in findings})
    journal = Journal(f"{quarantine}.partial", {"format": 2}, rank=part.number - 1)
    limits: dict[str, Any] = {"seconds": seconds, "memory": memory, "workers": workers}
    rows = scan(verify_video, [e.record.path for e in entries], journal=journal, title="verify", part=part, **limits)
    findings += findings_of(entries, rows)
    first = {(finding.list, finding.line, finding.id, finding.kind): finding for finding in reversed(findings)}
    findings = [finding for _, finding in sorted(first.items())]
    listed = [finding for finding in findings if finding.kind not in ONLY_REPORTED]
    leak = {"training_only": True}
    bad = [{"id": f.id, "path": f.path, "reason": f.reason} | (leak if f.kind == "leak" else {}) for f in listed]
    _write_lines(quarantine, bad)
    _write_lines(report_path(quarantine), [finding._asdict() for finding in findings])
    journal.remove()
    named = {(finding.list, finding.line, finding.id) for finding in findings}
    frames = sum(row.get("frames", 0) for row in rows.values())
    return Verification(count, len(rows), frames, count - len(named), findings)


def report_path(quarantine: str | Path) -> Path:
    """Where all findings are written, beside the list of what to leave out."""
    return Path(quarantine).with_suffix(".report.jsonl")


def verify_video(path: str, *, decode: bool = True) -> Row:
    """Decode a video from beginning to end, then read frames of it as training does.

    Damage that decoders hide, by showing part of another picture, counts: decoding is strict. Unless ``decode``, only
    the frames are read.

    Returns:
        ``kind``: "sound", "pyav", "damaged" or "refused", and the ``reason``; of what can be opened the number of
        ``frames``, ``seconds``, the damaged ``pictures`` (numbers from 0 in the order shown), the ``hash`` of the file
        and the ``print`` of its pictures (``picture_hash``).
    """
    row: Row = {}
    try:
        with local_path(path) as file, open_video(file) as video:
            count, times = len(video), video.times
            row |= {"frames": count, "seconds": float(times[-1] - times[0]), "timed": video.timed}
            row["hash"] = hash_file(*list_files(file))
            row["pictures"], reason = find_damage(file, count, timed=video.timed) if decode else ([], "")
            if reason:
                return row | {"kind": "damaged", "reason": reason}
            why = video.reason if video.backend == "pyav" else "decord cannot read its pictures as the tables say"
            numbers = np.searchsorted(times, np.linspace(times[0], times[-1], FRAMES) - 1e-6).clip(0, count - 1)
            row["print"] = picture_hash(video.frames(numbers))
            return row | ({"kind": "pyav", "reason": why} if video.backend == "pyav" else {"kind": "sound"})
    except VideoError as error:
        kind = "missing" if error.reason == "does not exist" else "refused"
        kind = "damaged" if row or isinstance(error, DamagedVideoError) else kind
        return row | {"kind": kind, "reason": error.reason}


def find_damage(file: str, count: int, *, timed: bool) -> tuple[list[int], str]:
    """What is damaged in a file or a folder of frames, as ``strict_decode`` says it."""
    if timed:
        return strict_decode(file, count)
    pictures, reason = check_frames(file)
    jpegs = [(n, name) for n, name in enumerate(list_files(file)) if name.lower().endswith((".jpg", ".jpeg"))]
    if not reason and (hidden := [(n, Path(name).name) for n, name in jpegs if strict_decode(name, 1)[1]]):
        return [n for n, _ in hidden], f"{hidden[0][1]} holds damage that libjpeg conceals"
    return pictures, reason


def strict_decode(file: str, expected: int) -> tuple[list[int], str]:
    """Decode a file and count. What readers leave out at the ends of a recording that was cut does not count.

    Returns:
        Numbers of the damaged pictures, in the order shown; and what is wrong, "" if nothing is.
    """
    times: list[int] = []
    damage: list[tuple[int | None, int, str]] = []  # time of the picture, frames before it, and why
    count, cut = 0, False  # whether the last packet fails
    try:
        # A file must not be taken for a URL or open one, for any name or content that it may have.
        with av.open(f"file:{file}", metadata_errors="replace", options={"protocol_whitelist": "file"}) as container:
            covers = av.stream.Disposition.attached_pic
            stream = next(stream for stream in container.streams.video if not stream.disposition & covers)
            decoder: Any = stream.codec_context
            decoder.thread_count, decoder.options = 1, {"err_detect": "explode"}
            for packet in itertools.chain((packet for packet in container.demux(stream) if packet.size), [None]):
                time = None if packet is None else packet.pts
                if packet is not None and time is not None and not packet.is_discard:
                    times.append(time)
                cut = cut and packet is None
                try:
                    for frame in decoder.decode(packet):
                        if frame.is_corrupt:
                            damage.append((frame.pts, count, MARKED))
                        count += 1
                except av.FFmpegError as error:
                    damage.append((time, count, reason_of(error)))
                    cut = True
    except (av.FFmpegError, ValueError, EOFError, StopIteration) as error:
        damage.append((None, count, reason_of(error)))
    if count == expected:  # it begins between key pictures, or ends within a picture
        damage = [each for each in damage[: len(damage) - cut] if each[1] or each[2] == MARKED]
    numbers: dict[int | None, int] = {time: number for number, time in enumerate(sorted({*times}))}
    pictures = sorted({numbers.get(time, before) if len(numbers) == expected else before for time, before, _ in damage})
    if damage:
        return pictures, f"is damaged at frame{'s' * (len(pictures) > 1)} {_ranges(pictures)} ({damage[0][2]})"
    return [], f"only {count} of {expected} frames can be decoded" if count != expected else ""


def _ranges(numbers: Sequence[int], *, most: int = 8) -> str:
    """Rising numbers as text: "3, 7-9"."""
    runs = [[n for _, n in run] for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:most]]
    return ", ".join(texts) + " ..." * (len(runs) > most)


def read_lists(
    annotations: Sequence[str | Path], root: str | Path | None, classes: Sequence[str] | None
) -> tuple[list[Entry], list[Finding]]:
    """The rows whose videos are there, training first; and what is wrong with the others."""
    entries, findings = list[Entry](), list[Finding]()
    for number, annotation in enumerate(annotations):
        path = Path(annotation).expanduser()
        both = path.is_dir() and looks_like(path) in ("ucf101", "hmdb51")
        for subset in ("train", "test") if both else (EVERY_SUBSET,):
            readings = Readings()
            records = load_records(path, root=root, classes=classes, subset=subset, readings=readings)
            name = f"{annotation} ({subset})" if both else str(annotation)
            findings += [Finding(row.kind, name, row.line, row.id, row.path, row.reason) for row in readings.refusals]
            gone = "no video of this clip is there"
            findings += [Finding("missing", name, row.line, row.id, "", gone) for row in readings.missing]
            for index, record in enumerate(records):
                row = readings.rows[index] if readings.rows else None
                own = row.subset.lower() if row and not both else subset
                order = next((order for order, name_ in enumerate(SUBSETS) if own.startswith(name_)), 0)
                labels = record.label if isinstance(record.label, tuple) else (record.label,)
                texts = [str(records.classes[label] if records.classes else label) for label in labels]
                known = SEVERAL.join(texts) if -1 not in labels else None
                entries.append(Entry((number, order), name, row.line if row else 0, record, known, records.classes))
    return entries, findings


def findings_of(entries: Sequence[Entry], rows: dict[str, Row]) -> list[Finding]:
    """What is to be said of entries of ``read_lists`` by the rows of ``verify_video``, by path."""
    return [*_videos(entries, rows), *_pairs(entries, rows), *_new_classes(entries)]


def _videos(entries: Iterable[Entry], rows: dict[str, Row]) -> Iterator[Finding]:
    """What decoding found, and segments beyond the end."""
    for entry in entries:
        row = rows[entry.record.path]
        if row.get("kind") != "sound":
            yield entry.found(row.get("kind", "failed"), row.get("reason") or row["error"])
        if row.get("frames") and row.get("timed", True):
            try:
                entry.record.frame_range(np.linspace(0, row["seconds"], row["frames"]))
            except VideoError as error:
                yield entry.found("segment", error.reason)


def _new_classes(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Rows of the last list whose class no earlier list has."""
    classes = {entry.order: entry.classes or () for entry in entries}
    last = max(classes, default=None)
    known = {name for order, names in classes.items() if order != last for name in names}
    for entry in entries if known else ():
        for label in (entry.label or "").split(SEVERAL) if entry.order == last and entry.classes else ():
            if label and label not in known:
                yield entry.found("row", f"no earlier list has the class {label!r}")


def _pairs(entries: Sequence[Entry], rows: dict[str, Row]) -> Iterator[Finding]:
    """What follows from rows that show the same pictures. Rows that are alike in all go together: there may be many."""
    contents: dict[str, dict[tuple[Any, ...], list[Entry]]] = {}
    for entry in sorted(entries, key=lambda entry: entry.order):
        same = contents.setdefault(rows[entry.record.path].get("hash", entry.record.path), {})
        same.setdefault((entry.order, entry.label, entry.record.start, entry.record.end), []).append(entry)
    for same in contents.values():
        for first, *others in same.values():
            yield from (entry.found("repeated", f"the same as {first}") for entry in others)
        for one, two in itertools.combinations(same.values(), 2):
            yield from _compare(one, two, "the same clip")
    shown = [(rows[next(iter(same.values()))[0].record.path], same) for same in contents.values()]
    shown = [(row, same) for row, same in shown if "print" in row]
    for i, j in alike([row for row, _ in shown]):
        for pair in itertools.product(shown[i][1].values(), shown[j][1].values()):
            one, two = sorted(pair, key=lambda entries: entries[0].order)
            yield from _compare(one, two, LOOKS_SAME)


def _compare(ones: list[Entry], twos: list[Entry], what: str) -> Iterator[Finding]:
    """What is to be said of rows of two kinds, the earlier one first."""
    one, two = ones[0], twos[0]
    spans = [(r.start or 0.0, np.inf if r.end is None else r.end) for r in (one.record, two.record)]
    shared = min(spans[0][1], spans[1][1]) - max(spans[0][0], spans[1][0])
    if shared <= min(end - start for start, end in spans) / 2 and np.isfinite(shared):
        return
    disagree = None not in (one.label, two.label) and bool(one.classes) == bool(two.classes) and one.label != two.label
    times = "{:g} to {:g} s here, {:g} to {:g} s there".format(*spans[1], *spans[0])
    if disagree:
        kind = "alike" if what == LOOKS_SAME else "conflict"
        for entries, other in ((ones, two), (twos, one)):
            reason = f"{what} as {other}, label {entries[0].label!r} here, {other.label!r} there"
            yield from (entry.found(kind, reason) for entry in entries)
    if one.order != two.order:
        yield from (entry.found("leak", f"{what} as {two}: {two.record.id}") for entry in ones)
    elif not disagree and what != LOOKS_SAME:
        kind, more = ("repeated", "") if spans[0] == spans[1] else ("conflict", f" with other times, {times}")
        yield from (entry.found(kind, f"{what} as {one}{more}") for entry in twos)


def _write_lines(path: str | Path, rows: Iterable[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # A name that is no UTF-8 holds surrogates, for which the replacement is just JSON's escape.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))
