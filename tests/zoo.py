"""A zoo of video streams: codecs, containers, groups of pictures, copies, cuts, joins, matrices, sizes and rates.

Every frame carries its number (``read_number``). ``STREAMS`` maps a name to a function that writes the file, and the
numbers that its frames must carry; None where the reader may refuse it instead.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from tests.videos import remux, write_video

COUNT, HEIGHT, WIDTH = 24, 64, 96
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
ONE, UNIT = 1 << 16, 1 << 30


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
        for packet in [*(packet for packet in container.demux(stream) if packet.size), None]:
            with contextlib.suppress(av.FFmpegError):  # no picture, or the last one of a file that was cut short
                frames += stream.codec_context.decode(packet)
    while frames and frames[-1].is_corrupt:
        frames.pop()
    return [frame.to_ndarray(format="rgb24") for frame in frames]


# ---- Encoders
def x264(**parameters: object) -> dict[str, Any]:
    settings = {"keyint": 8, "min-keyint": 8, "scenecut": 0, **{k.replace("_", "-"): v for k, v in parameters.items()}}
    text = ":".join(f"{key}={value}" for key, value in settings.items())
    return {"options": {"preset": "medium", "crf": "18", "x264-params": text}}


def x265(**parameters: object) -> dict[str, Any]:
    base = {"log-level": "none", "pools": "none", "frame-threads": 1, "scenecut": 0, "keyint": 8, "min-keyint": 8}
    settings = {**base, "crf": 18, **{k.replace("_", "-"): v for k, v in parameters.items()}}
    text = ":".join(f"{key}={value}" for key, value in settings.items())
    return {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": text}}


def other(codec: str, **options: str) -> dict[str, Any]:
    return {"codec": codec, "gop": 8, "options": options}


MPEG4_B, VP9, AV1 = other("mpeg4", bf="2", qscale="2"), other("libvpx-vp9", crf="20"), other("libsvtav1", crf="20")


@dataclass(frozen=True)
class Stream:
    """How a file is made, and what its frames carry.

    Args:
        make: writes the file into a folder.
        numbers: in order; None where only a decode of the whole file can tell.
        refusable: the reader may refuse the file, or frames of it, with a reason.
        turned: how it is turned for display: a function of a frame.
    """

    make: Callable[[Path], Path]
    numbers: Sequence[int] | None = range(COUNT)
    refusable: bool = False
    turned: Callable[[np.ndarray], np.ndarray] = lambda frame: frame


STREAMS: dict[str, Stream] = {}
Change = Callable[[Path, Path], object]


def encoded(
    name: str, settings: dict[str, Any], *, size: tuple[int, int] = (HEIGHT, WIDTH), count: int = COUNT
) -> None:
    """Add a stream that comes from an encoder as it is."""

    def make(folder: Path) -> Path:
        return write_video(folder / name, numbered(count, *size), **settings)

    STREAMS[name] = Stream(make, range(count))


def derived(
    name: str, source: str, change: Callable[[Path, Path], object], numbers: Any = range(COUNT), **more: Any
) -> None:
    """Add a stream that is made from another one."""

    def make(folder: Path) -> Path:
        parent = folder / source
        if not parent.exists():
            STREAMS[source].make(folder)
        change(parent, folder / name)
        return folder / name

    STREAMS[name] = Stream(make, numbers, **more)


# ---- Copies
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


def joined(*sources: str) -> Callable[[Path, Path], None]:
    """Join streams by copying their packets into one track; the later parameter sets stand in front of key pictures."""

    def change(first: Path, target: Path) -> None:
        with av.open(str(target), "w") as new:
            copy, offset = None, Fraction(0)
            for path in [first, *(STREAMS[source].make(first.parent) for source in sources)]:
                with av.open(str(path)) as old:
                    stream = old.streams.video[0]
                    copy = copy or new.add_stream_from_template(stream)
                    packets = [packet for packet in old.demux(stream) if packet.size]
                    shift, end = round(offset / stream.time_base), max(p.pts + p.duration for p in packets)
                    for packet in packets:
                        data = (sets_of(path) if offset and packet.is_keyframe else b"") + bytes(packet)
                        whole = av.Packet(data)
                        whole.pts, whole.dts, whole.time_base = packet.pts + shift, packet.dts + shift, packet.time_base
                        whole.is_keyframe, whole.duration, whole.stream = packet.is_keyframe, packet.duration, copy
                        new.mux(whole)
                    offset += end * stream.time_base

    return change


def first_bytes(part: float, *, block: int = 1) -> Callable[[Path, Path], None]:
    def change(source: Path, target: Path) -> None:
        data = source.read_bytes()
        target.write_bytes(data[: int(len(data) * part) // block * block])

    return change


# ---- Boxes of MP4
def patched(kind: bytes, at: int, data: bytes) -> Callable[[Path, Path], None]:
    """Write bytes ``at`` after the type of a box."""

    def change(source: Path, target: Path) -> None:
        whole = bytearray(source.read_bytes())
        start = whole.index(kind) + 4 + at
        whole[start : start + len(data)] = data
        target.write_bytes(whole)

    return change


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


def rewritten(change: Callable[[list[Sample]], Iterable[Sample]], *second: str) -> Callable[[Path, Path], None]:
    """Write an MP4 file of changed samples, as they are; those of ``second`` have a description of their own."""

    def make(source: Path, target: Path) -> None:
        config, samples = samples_of(source)
        configs = [config]
        for name in second:
            config, more = samples_of(STREAMS[name].make(source.parent))
            configs.append(config)
            samples += [Sample(s.data, s.place + len(samples), s.key, len(configs)) for s in more]
        write_mp4(target, list(change(samples)), configs, b"hvc1" if "hevc" in source.name else b"avc1")

    return make


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


def sets_of(path: Path) -> bytes:
    """The parameter sets of an H.264 file, as units of a sample."""
    config, _ = samples_of(path)
    size = int.from_bytes(config[6:8], "big")
    sps, rest = config[8 : 8 + size], config[8 + size :]
    pps = rest[3 : 3 + int.from_bytes(rest[1:3], "big")]
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in (sps, pps))


def joined_in_band(*, always: bool) -> Callable[[Path, Path], None]:
    """One description; the second stream's parameter sets in front of its first or of all its key pictures."""

    def make(source: Path, target: Path) -> None:
        second = STREAMS["second.mp4"].make(source.parent)
        sets = sets_of(second)
        config, samples = samples_of(source)
        more = [
            Sample(sets + s.data if not i or (always and s.key) else s.data, s.place + len(samples), s.key)
            for i, s in enumerate(samples_of(second)[1])
        ]
        write_mp4(target, samples + more, [config], b"avc1")

    return make


def _second(folder: Path, name: str, settings: dict[str, Any], size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    path = folder / name
    return path if path.exists() else write_video(path, numbered(16, *size, first=200), **settings)


# ---- The streams
for bframes in (0, 1, 2, 4):
    for gop in (1, 5, 12, 250):
        encoded(f"h264_b{bframes}_gop{gop}.mp4", x264(bframes=bframes, keyint=gop, min_keyint=min(gop, 8), b_adapt=0))
for pyramid in ("none", "strict", "normal"):
    encoded(f"h264_pyramid_{pyramid}.mp4", x264(bframes=5, b_pyramid=pyramid, b_adapt=0, keyint=16))
    encoded(f"h264_open_{pyramid}.mp4", x264(bframes=3, b_pyramid=pyramid, open_gop=1, b_adapt=0))
for label, parameters in {
    "slices": {"slices": 4},
    "cavlc": {"cabac": 0},
    "refresh": {"intra-refresh": 1, "keyint": 10},
    "aud": {"aud": 1},
    "headers": {"repeat-headers": 1},
    "refs": {"ref": 8, "bframes": 3},
    "field_order": {"tff": 1},
    "scenecuts": {"scenecut": 80, "keyint": 60},
    "hrd": {"nal-hrd": "vbr", "vbv-maxrate": 500, "vbv-bufsize": 500, "bitrate": 300},
    "weights": {"weightp": 2, "weightb": 1, "bframes": 3},
    "fake": {"fake-interlaced": 1},
}.items():
    encoded(f"h264_{label}.mp4", x264(**parameters))
for bframes in (0, 2, 4):
    for open_gop in (0, 1):
        encoded(f"hevc_b{bframes}_open{open_gop}.mp4", x265(bframes=bframes, open_gop=open_gop))
for label, parameters in {
    "layers": {"temporal-layers": 3, "bframes": 4},
    "headers": {"repeat-headers": 1},
    "aud": {"aud": 1},
    "intra": {"keyint": 1},
    "long": {"keyint": 60},
    "radl": {"radl": 2, "open-gop": 0, "bframes": 4},
}.items():
    encoded(f"hevc_{label}.mp4", x265(**parameters))
for pixel_format in ("yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "gray"):
    encoded(f"h264_{pixel_format}.mp4", {**x264(), "pixel_format": pixel_format})
for pixel_format in ("yuv422p", "yuv420p10le", "gray"):
    encoded(f"hevc_{pixel_format}.mp4", {**x265(), "pixel_format": pixel_format})
for suffix in ("mov", "mkv", "avi", "ts", "flv", "3gp"):
    encoded(f"h264.{suffix}", x264(bframes=2))
for suffix in ("mov", "mkv", "ts"):
    encoded(f"hevc.{suffix}", x265(bframes=2))
encoded("h264_open.mkv", x264(bframes=3, open_gop=1))
encoded("hevc_open.mkv", x265(bframes=3, open_gop=1))
encoded("h264_fragments.mp4", {**x264(bframes=2), "container_options": FRAGMENTS})
encoded("hevc_fragments.mp4", {**x265(bframes=2), "container_options": FRAGMENTS})
encoded("h264_faststart.mp4", {**x264(bframes=2), "container_options": {"movflags": "faststart"}})
encoded("h264_sound.mp4", {**x264(bframes=2), "audio": True})
encoded("h264.h264", {**x264(bframes=2), "container_format": "h264"})
encoded("hevc.hevc", {**x265(bframes=2), "container_format": "hevc"})
for suffix in ("mp4", "avi", "mkv", "mov"):
    encoded(f"mpeg4.{suffix}", other("mpeg4", qscale="2"))
    encoded(f"mpeg4_b.{suffix}", MPEG4_B)
for suffix in ("webm", "mkv", "mp4"):
    encoded(f"vp9.{suffix}", VP9)
    encoded(f"av1.{suffix}", AV1)
encoded("vp9_fragments.mp4", {**VP9, "container_options": FRAGMENTS})
encoded("vp9_late.webm", other("libvpx-vp9", **{"lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "4"}))
encoded("vp8.webm", other("libvpx", **{"auto-alt-ref": "1", "lag-in-frames": "12", "b": "400k"}))
encoded("mpeg2.ts", other("mpeg2video", bf="2", qscale="2"))
encoded("mpeg2.mkv", other("mpeg2video", bf="2", qscale="2"))
encoded("mjpeg.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"})
encoded("mjpeg.mov", {"codec": "mjpeg", "pixel_format": "yuvj420p"})
encoded("ffv1.mkv", {"codec": "ffv1"})
encoded("raw.avi", {"codec": "rawvideo"})
for label, size in {"tiny": (16, 48), "tall": (96, 48), "uneven": (50, 98), "narrow": (128, 24)}.items():
    encoded(f"size_{label}.mp4", x264(), size=size)
    encoded(f"size_{label}.mkv", x264(), size=size)
for rate in ("10", "24000/1001", "30000/1001", "60"):
    for suffix in ("mp4", "avi"):
        encoded(f"rate_{rate.replace('/', '_')}.{suffix}", {**x264(bframes=2), "fps": Fraction(rate)})
UNEVEN = np.cumsum(np.random.default_rng(1).integers(1, 6, COUNT)).tolist()
for suffix in ("mp4", "mkv"):
    encoded(f"uneven.{suffix}", {**x264(bframes=2), "pts": UNEVEN, "time_base": Fraction(1, 100)})
    encoded(f"late.{suffix}", {**x264(bframes=2), "pts": range(75, 75 + COUNT), "time_base": Fraction(1, 25)})
for count in (1, 2, 3):
    encoded(f"frames_{count}.mp4", x264(), count=count)
    encoded(f"frames_{count}.mkv", x264(), count=count)
for degrees in (90, 180, 270):

    def turn(frame: np.ndarray, turns: int = -degrees // 90) -> np.ndarray:
        return np.rot90(frame, turns)

    for suffix, more in {".mp4": {}, ".mkv": {}, "_frag.mp4": {"container_options": FRAGMENTS}}.items():
        name = f"turned_{degrees}{suffix}"
        encoded(name, {**x264(bframes=2), "rotation": degrees, **more})
        STREAMS[name] = Stream(STREAMS[name].make, turned=turn)

B, OPEN, HEVC = "h264_b2_gop12.mp4", "h264_open_normal.mp4", "hevc_b2_open0.mp4"
for suffix in ("mov", "mkv", "ts", "flv", "avi"):
    derived(f"mp4_to_{suffix}.{suffix}", B, copied())
    derived(f"open_to_{suffix}.{suffix}", OPEN, copied())
for source in ("h264.avi", "h264.ts", "h264.flv", "h264.mkv", "hevc.ts", "hevc.mkv", "mpeg4_b.avi"):
    for suffix in ("mp4", "mkv"):
        unknown_times = source.endswith("avi")
        derived(
            f"{source.replace('.', '_')}_to_{suffix}.{suffix}", source, copied(times="dts" if unknown_times else "pts")
        )
for source in (B, OPEN, HEVC, "hevc_b4_open1.mp4", "h264_pyramid_normal.mp4"):
    stem = source.removesuffix(".mp4")
    for suffix in ("mp4", "mkv"):
        derived(f"{stem}_decoding_times.{suffix}", source, copied(times="dts"))
    derived(f"{stem}_decoding_times_rewritten.mp4", source, rewritten(in_decoding_order))
    derived(f"{stem}_exchanged.mp4", source, rewritten(exchanged(5, 7)), refusable=True)
    derived(f"{stem}_exchanged_far.mp4", source, rewritten(exchanged(3, 6)), refusable=True)
    derived(f"{stem}_exchanged_groups.mp4", source, rewritten(exchanged(4, 19)), refusable=True)
    for start in (0.2, 0.5):
        for suffix in ("mp4", "mkv"):

            def cut(old: Path, new: Path, start: float = start) -> None:
                remux(old, new, start=start, end=0.8)

            derived(f"{stem}_cut_{start}.{suffix}", source, cut, None)
for name, part, block in (
    ("h264.flv", 0.6, 1),
    ("h264.ts", 0.6, 1),
    ("h264.ts", 0.6, 188),
    ("mpeg2.ts", 0.5, 188),
    ("raw.avi", 0.55, 1),
    ("mpeg4.avi", 0.5, 1),
    ("h264.mkv", 0.6, 1),
    ("vp9.webm", 0.6, 1),
    ("h264_fragments.mp4", 0.6, 1),
):
    derived(f"short_{block}_{name}", name, first_bytes(part, block=block), None)

STREAMS["second.mp4"] = Stream(
    lambda folder: _second(folder, "second.mp4", x264(bframes=2, open_gop=1, cabac=0, crf=30, ref=2)), range(200, 216)
)
STREAMS["second_hevc.mp4"] = Stream(
    lambda folder: _second(folder, "second_hevc.mp4", x265(bframes=2, sao=0, cbqpoffs=6)), range(200, 216)
)
STREAMS["second_small.mp4"] = Stream(
    lambda folder: _second(folder, "second_small.mp4", x264(bframes=2), (48, 96)), range(200, 216)
)
BOTH = [*range(COUNT), *range(200, 216)]
for suffix in ("mp4", "mkv", "ts"):
    derived(f"joined.{suffix}", B, joined("second.mp4"), BOTH)
    derived(f"joined_sizes.{suffix}", B, joined("second_small.mp4"), None, refusable=True)
derived("joined_in_band_once.mp4", B, joined_in_band(always=False), BOTH)
derived("joined_in_band_always.mp4", B, joined_in_band(always=True), BOTH)
derived("joined_descriptions.mp4", B, rewritten(lambda samples: samples, "second.mp4"), BOTH)
derived("joined_descriptions_hevc.mp4", HEVC, rewritten(lambda samples: samples, "second_hevc.mp4"), BOTH)
derived(
    "joined_descriptions_sizes.mp4", B, rewritten(lambda samples: samples, "second_small.mp4"), None, refusable=True
)
for source, access_unit in ((B, b"\0\0\0\2\x09\xf0"), (HEVC, b"\0\0\0\3\x46\x01\x50")):
    stem = source.removesuffix(".mp4")
    derived(f"{stem}_nothing.mp4", source, rewritten(without(b"")), None, refusable=True)
    derived(f"{stem}_no_picture.mp4", source, rewritten(without(access_unit)), None, refusable=True)
    derived(f"{stem}_lost.mp4", source, rewritten(without(None, referenced=True)), None, refusable=True)
    derived(f"{stem}_left_out.mp4", source, rewritten(without(None)), None)
for label, values, turned in (
    ("mirrored", (-ONE, 0, 0, ONE), lambda frame: frame[:, ::-1]),
    ("upside_down", (ONE, 0, 0, -ONE), lambda frame: frame[::-1]),
    ("transposed", (0, ONE, ONE, 0), lambda frame: frame.swapaxes(0, 1)),
    ("transversed", (0, -ONE, -ONE, 0), lambda frame: np.rot90(frame, 2).swapaxes(0, 1)),
    ("zeros", (0, 0, 0, 0), lambda frame: frame),
    ("scaled", (2 * ONE, 0, 0, 2 * ONE), lambda frame: frame),
):
    derived(f"matrix_{label}.mp4", B, patched(b"tkhd", 40, matrix(*values)), turned=turned)
    derived(f"matrix_{label}_fragments.mp4", "h264_fragments.mp4", patched(b"tkhd", 40, matrix(*values)), turned=turned)
derived("matrix_45.mp4", B, patched(b"tkhd", 40, matrix(46341, 46341, -46341, 46341)), refusable=True)
derived("matrix_movie.mp4", B, patched(b"mvhd", 36, matrix(0, ONE, -ONE, 0)), turned=lambda frame: np.rot90(frame, -1))
