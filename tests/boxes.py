"""Frames that carry their number, copies of packets, and an MP4 writer that does as it is told, sound or not."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

COUNT, HEIGHT, WIDTH = 24, 64, 96
ONE, UNIT = 1 << 16, 1 << 30  # of a display matrix


def numbered(count: int = COUNT, height: int = HEIGHT, width: int = WIDTH, *, first: int = 0) -> np.ndarray:
    """Frames with their number in 12 blocks, 10 bits and 2 of check, over moving stripes; uint8 (T, H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        number = first + index
        frames[index] = (120 + 40 * np.sin((x - 3 * number) / 9 + y / 13)).astype(np.uint8)[..., None]
        for bit in range(12):
            row, column = divmod(bit, 6)
            on = (number << 2 | number % 3 + 1) >> (11 - bit) & 1
            rows = slice((8 * row + 1) * height // 16, (8 * row + 7) * height // 16)
            frames[index, rows, (8 * column + 1) * width // 48 : (8 * column + 7) * width // 48] = 16 + 219 * on
    return frames


def read_number(frame: np.ndarray) -> int | None:
    """The number of an upright frame; None where it cannot be read."""
    height, width = frame.shape[:2]
    value = 0
    for bit in range(12):
        row, column = divmod(bit, 6)
        rows = slice((8 * row + 2) * height // 16, (8 * row + 6) * height // 16)
        block = frame[rows, (8 * column + 2) * width // 48 : (8 * column + 6) * width // 48]
        value = value << 1 | int(block.mean() > 125)
    return value >> 2 if value & 3 == (value >> 2) % 3 + 1 else None


def decode_in_order(path: Path) -> list[np.ndarray]:
    """Every frame that libavcodec shows, in the order of output, before rotation: what a reader is compared with."""
    frames = []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        stream.codec_context.options = {"flags": "unaligned"}
        for packet in [*(packet for packet in container.demux(stream) if packet.size), None]:
            with contextlib.suppress(av.FFmpegError):  # no picture, or the last one of a file that was cut short
                frames += stream.codec_context.decode(packet)
    while frames and frames[-1].is_corrupt:
        frames.pop()
    return [frame.to_ndarray(format="rgb24") for frame in frames]


def matrix(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, UNIT)


@dataclass(frozen=True)
class Sample:
    data: bytes
    place: int  # in presentation order
    key: bool
    description: int = 1


def samples_of(path: Path) -> tuple[bytes, list[Sample]]:
    """The decoder configuration and the samples of a file."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        rank = {pts: place for place, pts in enumerate(sorted(packet.pts for packet in packets))}
        extradata = bytes(container.streams.video[0].codec_context.extradata)
        return extradata, [Sample(bytes(p), rank[p.pts], p.is_keyframe) for p in packets]


def box(kind: bytes, *body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, body)), kind) + b"".join(body)


def table(kind: bytes, rows: Sequence[Sequence[Any]], layout: str, *, version: int = 0) -> bytes:
    return box(kind, struct.pack(">II", version << 24, len(rows)), *(struct.pack(">" + layout, *row) for row in rows))


def write_mp4(target: Path, samples: list[Sample], configs: list[bytes], kind: bytes) -> None:
    """An MP4 file of samples as they are, one a chunk, 25 a second."""
    head = struct.pack(">8xHH I I 4x H 32x Hh", WIDTH, HEIGHT, 72 << 16, 72 << 16, 1, 24, -1)
    entries = [
        box(kind, bytes(6), b"\0\1", bytes(8), head, box(b"avcC" if kind == b"avc1" else b"hvcC", config))
        for config in configs
    ]
    count, unity = len(samples), matrix(ONE, 0, 0, ONE)

    def tables(start: int) -> bytes:
        ends = start + np.cumsum([len(sample.data) for sample in samples])
        stbl = box(
            b"stbl",
            box(b"stsd", struct.pack(">II", 0, len(entries)), *entries),
            table(b"stts", [(count, 1)], "II"),
            table(b"ctts", [(1, sample.place - i) for i, sample in enumerate(samples)], "Ii", version=1),
            table(b"stss", [(i + 1,) for i, sample in enumerate(samples) if sample.key], "I"),
            table(b"stsc", [(i + 1, 1, sample.description) for i, sample in enumerate(samples)], "III"),
            box(b"stsz", struct.pack(f">III{count}I", 0, 0, count, *(len(sample.data) for sample in samples))),
            table(b"stco", [(int(end) - len(s.data),) for end, s in zip(ends, samples, strict=True)], "I"),
        )
        dinf = box(b"dinf", table(b"dref", [(12, b"url ", 1)], "I4sI"))
        minf = box(b"minf", box(b"vmhd", b"\0\0\0\1", bytes(8)), dinf, stbl)
        mdhd = box(b"mdhd", struct.pack(">6I", 0, 0, 0, 25, count, 0x55C40000))
        hdlr = box(b"hdlr", bytes(8), b"vide", bytes(13))
        size = struct.pack(">II", WIDTH << 16, HEIGHT << 16)
        tkhd = box(b"tkhd", struct.pack(">6I16x", 3, 0, 0, 1, 0, count), unity, size)
        mvhd = box(
            b"mvhd", struct.pack(">6IH10x", 0, 0, 0, 25, count, ONE, 256), unity, bytes(24), struct.pack(">I", 2)
        )
        movie = box(b"moov", mvhd, box(b"trak", tkhd, box(b"mdia", mdhd, hdlr, minf)))
        return box(b"ftyp", b"isom", bytes(4), b"isom") + movie

    data = box(b"mdat", *(sample.data for sample in samples))
    target.write_bytes(tables(len(tables(0)) + 8) + data)


def sets_of(path: Path) -> bytes:
    """The parameter sets of an H.264 file, as units of a sample."""
    config, _ = samples_of(path)
    size = int.from_bytes(config[6:8], "big")
    sps, rest = config[8 : 8 + size], config[8 + size :]
    pps = rest[3 : 3 + int.from_bytes(rest[1:3], "big")]
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in (sps, pps))


def exchanged(one: int, other_: int) -> Callable[[list[Sample]], list[Sample]]:
    places = {one: other_, other_: one}
    return lambda samples: [Sample(s.data, places.get(s.place, s.place), s.key, s.description) for s in samples]


def in_decoding_order(samples: list[Sample]) -> list[Sample]:
    return [Sample(s.data, place, s.key, s.description) for place, s in enumerate(samples)]


def without(data: bytes | None, *, referenced: bool = False) -> Callable[[list[Sample]], list[Sample]]:
    """A sample left out, or with other data: the first behind the ninth that others refer to, or not."""

    def change(samples: list[Sample]) -> list[Sample]:
        hevc = samples[0].data[4] & 0x80 == 0 and samples[0].data[4] >> 1 in (19, 20, 32, 39)
        disposable = [s.data[4] >> 1 in (0, 8) if hevc else s.data[4] & 0x60 == 0 for s in samples]
        lost = next(s for s, free in zip(samples[9:], disposable[9:], strict=True) if not s.key and free != referenced)
        if data is not None:
            return [Sample(data, s.place, s.key) if s is lost else s for s in samples]
        return [Sample(s.data, s.place - (s.place > lost.place), s.key) for s in samples if s is not lost]

    return change


def first_bytes(part: float, *, block: int = 1) -> Callable[[Path, Path], None]:
    def change(source: Path, target: Path) -> None:
        data = source.read_bytes()
        target.write_bytes(data[: int(len(data) * part) // block * block])

    return change


def last_bytes(part: float) -> Callable[[Path, Path], None]:
    """As a recording of a broadcast begins: between key pictures."""

    def change(source: Path, target: Path) -> None:
        data = source.read_bytes()
        target.write_bytes(data[int(len(data) * (1 - part)) // 188 * 188 :])

    return change


def patched(kind: bytes, at: int, data: bytes) -> Callable[[Path, Path], None]:
    """Write bytes ``at`` after the type of a box."""

    def change(source: Path, target: Path) -> None:
        whole = bytearray(source.read_bytes())
        start = whole.index(kind) + 4 + at
        whole[start : start + len(data)] = data
        target.write_bytes(whole)

    return change


def filtered(description: str) -> Callable[[Path, Path], None]:
    """Copy packets through a bitstream filter, whose parameter sets the new file declares."""

    def change(source: Path, target: Path) -> None:
        with av.open(str(source)) as old, av.open(str(target), "w") as new:
            stream = old.streams.video[0]
            copy = new.add_stream_from_template(stream)
            changed = BitStreamFilterContext(description, stream, copy)
            for packet in [*(packet for packet in old.demux(stream) if packet.size), None]:
                for result in changed.filter(packet):
                    result.stream = copy
                    new.mux(result)

    return change


def edited(*rows: tuple[int, int, int]) -> Callable[[Path, Path], None]:
    """An edit list of (frames shown, first frame or -1 for nothing, rate), in a file of 25 frames a second."""

    def change(source: Path, target: Path) -> None:
        data = source.read_bytes()
        scale = {kind: int.from_bytes(data[data.index(kind) + 16 :][:4], "big") // 25 for kind in (b"mvhd", b"mdhd")}
        start = data.index(b"elst") - 4
        shift = struct.unpack_from(">i", data, start + 20)[0]  # of all times, as of files with B pictures
        times = [
            (n * scale[b"mvhd"], first if first < 0 else first * scale[b"mdhd"] + shift, r) for n, first, r in rows
        ]
        new = table(b"elst", times, "IiHxx")
        old = int.from_bytes(data[start : start + 4], "big")
        whole = bytearray(data[:start] + new + data[start + old :])
        for parent in (b"edts", b"trak", b"moov"):  # behind the media data
            at = data.rindex(parent, 0, start) - 4
            whole[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + len(new) - old).to_bytes(4, "big")
        target.write_bytes(whole)

    return change


def flagged(rule: Callable[[int], bool]) -> Callable[[Path, Path], None]:
    """Other pictures marked as key pictures."""

    def change(source: Path, target: Path) -> None:
        with av.open(str(source)) as old, av.open(str(target), "w") as new:
            stream = old.streams.video[0]
            copy = new.add_stream_from_template(stream)
            for number, packet in enumerate(packet for packet in old.demux(stream) if packet.size):
                packet.is_keyframe, packet.stream = rule(number), copy
                new.mux(packet)

    return change


def only_referenced(samples: list[Sample]) -> list[Sample]:
    """H.264 samples without those that no other refers to, as in thinned recordings; times keep their gaps."""
    return [sample for sample in samples if sample.key or sample.data[4] & 0x60]


def wrapped(samples: list[Sample]) -> list[Sample]:
    """H.264 samples with a delimiter in front and filler behind each picture."""
    return [Sample(b"\0\0\0\2\x09\xf0" + s.data + b"\0\0\0\3\x0c\xff\x80", s.place, s.key) for s in samples]


def ended(samples: list[Sample]) -> list[Sample]:
    """HEVC samples with an end of sequence in front of their second key picture."""
    key = [i for i, sample in enumerate(samples) if sample.key][1]
    return [Sample(s.data + b"\0\0\0\2\x48\x01" * (i == key - 1), s.place, s.key) for i, s in enumerate(samples)]


def not_output(samples: list[Sample]) -> list[Sample]:
    """HEVC samples whose second key picture, an IDR picture, forbids the output of those before it."""
    index = [i for i, sample in enumerate(samples) if sample.key][1]
    key = samples[index]
    position = 0
    while key.data[position + 4] >> 1 not in (19, 20):
        position += 4 + int.from_bytes(key.data[position : position + 4], "big")
    data = bytearray(key.data)
    data[position + 6] |= 0x40
    return [*samples[:index], Sample(bytes(data), key.place, key.key), *samples[index + 1 :]]


def copied(*, from_: int = 0, to: int = 1 << 30, times: str = "pts", **options: str) -> Callable[[Path, Path], None]:
    """Copy packets ``from_`` to ``to`` in decoding order; ``times`` "dts" writes those of decoding, as from AVI."""

    def change(source: Path, target: Path) -> None:
        with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
            stream = old.streams.video[0]
            copy = new.add_stream_from_template(stream)
            packets = [packet for packet in old.demux(stream) if packet.size][from_:to]
            if target.suffix == ".avi":  # which holds byte streams
                to_bytes = BitStreamFilterContext("h264_mp4toannexb", stream, copy)
                packets = [packet for p in packets for packet in to_bytes.filter(p)]
            step = round(1 / stream.time_base / (stream.guessed_rate or 25))
            for number, packet in enumerate(packets):
                if times == "dts" or packet.pts is None:
                    packet.pts = packet.dts = number * step
                packet.stream = copy
                new.mux(packet)

    return change
