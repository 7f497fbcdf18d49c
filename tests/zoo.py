"""A zoo of video streams: codecs, containers, groups of pictures, copies, cuts, joins, matrices, sizes and rates.

Every frame carries its number (``read_number``). ``STREAMS`` maps a name to a function that writes the file, and the
numbers that its frames must carry; None where the reader may refuse it instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.boxes import (
    COUNT,
    HEIGHT,
    ONE,
    WIDTH,
    Sample,
    copied,
    edited,
    ended,
    exchanged,
    filtered,
    first_bytes,
    flagged,
    in_decoding_order,
    last_bytes,
    matrix,
    not_output,
    numbered,
    only_referenced,
    patched,
    samples_of,
    sets_of,
    without,
    wrapped,
    write_mp4,
)
from tests.videos import remux, write_video

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


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


# ---- Boxes of MP4
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

for name in ("h264.ts", "hevc.ts", "mpeg2.ts"):
    derived(f"late_start_{name}", name, last_bytes(0.7), None)

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

# ---- What the stream itself says of display and output
for name, source, change in (
    ("cropped_left", B, "h264_metadata=crop_left=8"),
    ("cropped_left_hevc", HEVC, "hevc_metadata=crop_left=8"),
    ("cropped_all", B, "h264_metadata=crop_left=2:crop_right=6:crop_top=4:crop_bottom=2"),
    ("range_in_stream", B, "h264_metadata=video_full_range_flag=1:matrix_coefficients=1"),
):
    for suffix in ("mp4", "mkv"):
        derived(f"{name}.{suffix}", source, filtered(change), None)
for source in (HEVC, "hevc_b2_open1.mp4", "hevc_b4_open1.mp4"):
    derived(f"ended_{source}", source, rewritten(ended), None, refusable="open1" in source)
derived("not_output_hevc.mp4", HEVC, rewritten(not_output), None)
# ---- Edit lists of several parts, marks of key pictures that lie, thinned recordings
for name, rows in {
    "two_parts": [(6, 0, 1), (6, 14, 1)],
    "repeated": [(6, 3, 1), (6, 3, 1)],
    "reversed": [(6, 14, 1), (6, 2, 1)],
    "still": [(4, 1, 1), (3, 9, 0), (6, 9, 1)],
    "gap_between": [(6, 0, 1), (4, -1, 1), (6, 13, 1)],
}.items():
    for source in (B, "hevc_b2_open1.mp4"):
        derived(f"edits_{name}_{source}", source, edited(*rows), None)
for name, rule in {"all": lambda number: True, "third": lambda number: number % 3 == 0}.items():
    for source, suffix in ((B, "mp4"), (OPEN, "mkv"), ("vp9.webm", "mkv")):
        derived(f"marked_{name}_{source.split('.')[0]}.{suffix}", source, flagged(rule))
derived("thinned.mp4", "h264_pyramid_normal.mp4", rewritten(only_referenced), None)
derived("wrapped.mp4", B, rewritten(wrapped))
