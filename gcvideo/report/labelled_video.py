"""Annotated videos: a copy of a video with its labels in the picture, with its sound."""

import bisect
import functools
import heapq
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unicodedata import category

import av
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from gcvideo.console import printable, warn
from gcvideo.errors import GcvideoError
from gcvideo.files import replacing
from gcvideo.predict.timeline import Segment
from gcvideo.video import FrameStream

CONTAINERS = (".mp4", ".mkv", ".mov")
INVISIBLE = ("Zs", "Cf", "Cc", "Cs")  # categories of characters that need no glyph


def annotate_video(source: str, destination: str | Path, segments: Sequence[Segment]) -> None:
    """Copy a video, with the label and score of each moment on a band at the bottom of the picture.

    Frames keep their times (variable frame rates too) and are rotated as displayed. The picture is encoded as H.264,
    sound as AAC. The file appears under its name only when it is complete.

    Args:
        source: the video.
        destination: see ``check_destination``.
        segments: of its timeline, at least one, in order of time.

    Raises:
        VideoError: the source cannot be read.
        GcvideoError: the destination cannot be written.
    """
    if missing := sorted({c for segment in segments for c in find_font(segment.label)[1]}):
        characters = printable("".join(missing[:20])) + ("..." if len(missing) > 20 else "")
        fix = "install one that has them (on Debian and Ubuntu: apt install fonts-noto-cjk fonts-noto-core)"
        warn(f"{printable(str(destination))}: no font here has {characters}, which are drawn as boxes; {fix}")
    try:
        with replacing(destination) as temporary, av.open(f"file:{os.path.abspath(temporary)}", "w") as output:
            _copy(source, output, segments)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise GcvideoError(f"{destination}: cannot be written ({reason})") from None


def check_destination(source: str, destination: str | Path) -> None:
    """Check that the name can be written to, before any work is done."""
    destination = Path(destination)
    if destination.suffix.lower() not in CONTAINERS:
        raise GcvideoError(f"{destination}: --save writes {', '.join(CONTAINERS)}; choose such a name")
    if destination.exists() and os.path.samefile(source, destination):
        raise GcvideoError(f"{destination}: is the video itself; choose another name for --save")


def _copy(source: str, output: Any, segments: Sequence[Segment]) -> None:
    with FrameStream(source) as stream, av.open(f"file:{os.path.abspath(source)}", metadata_errors="replace") as file:
        tracks = [_label(stream, output, file.streams.video[0].average_rate or 25, segments)]
        tracks += [_encode_sound(file, sound, output) for sound in file.streams.audio[:1]]
        # Every track must be known before the first packet is written: "merge" asks each for a packet first.
        for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)


def _label(stream: FrameStream, output: Any, rate: Any, segments: Sequence[Segment]) -> Iterator[Any]:
    """The packets of the picture, with its labels."""
    ends = [segment.end for segment in segments]
    encoder = output.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
    for frame in stream:
        rgb = frame.rgb()
        if frame.index == 0:
            start, time_base = frame.picture.time or 0.0, frame.picture.time_base
            if frame.picture.time is None:
                warn(f"{printable(stream.name)}: has no times, so the copy plays {stream.fps:g} frames per second")
            pts = round(start / time_base) - 1
            encoder.height, encoder.width = (side // 2 * 2 for side in rgb.shape[:2])  # H.264 wants even sides
            encoder.pix_fmt, encoder.codec_context.time_base = "yuv420p", time_base
        rgb = np.ascontiguousarray(rgb[: encoder.height, : encoder.width])
        draw_label(rgb, segments[min(bisect.bisect_right(ends, frame.time), len(ends) - 1)])
        drawn = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        pts = max(round((start + frame.time) / time_base), pts + 1)  # must rise, as it does not for H.264 in AVI
        drawn.pts, drawn.time_base = pts, time_base
        yield from encoder.encode(drawn)
    yield from encoder.encode(None)


def _encode_sound(file: Any, sound: Any, output: Any) -> Iterator[Any]:
    """The packets of the sound, as AAC."""
    track = output.add_stream("aac", rate=sound.codec_context.sample_rate)
    for frame in itertools.chain(file.decode(sound), [None]):
        yield from track.encode(frame)


def draw_label(rgb: np.ndarray, segment: Segment) -> None:
    """Draw the label and score of a segment on a dark band at the bottom of a frame, uint8 (H, W, 3), in place."""
    label, score = " ".join(segment.label.split()), f"  {100 * segment.score:.0f} %"
    band = _band(label, score, rgb.shape[1], max(12, len(rgb) // 12))[-len(rgb) :]
    bottom = rgb[-len(band) :]
    bottom[:] = bottom // 4 + band  # the picture shows through, dimmed, so that the text can be read on anything


@functools.lru_cache(maxsize=256)
def find_font(text: str) -> tuple[str, set[str]]:
    """The font of this machine that lacks the fewest characters of a text: its file, and these characters."""
    visible = {c for c in text if category(c) not in INVISIBLE}
    found: list[tuple[str, set[str]]] = []
    # That of matplotlib is everywhere. It is the first, and regular ones come before bold ones.
    paths = sorted(font_manager.findSystemFonts(), key=lambda p: (not p.endswith(("Regular.ttf", "Sans.ttf")), p))
    for path in [font_manager.findfont("DejaVu Sans"), *paths]:
        with suppress(OSError, RuntimeError):  # damaged, or pictures of one size only
            ImageFont.truetype(path, 20)
            found.append((path, visible - {*map(chr, FT2Font(path).get_charmap())}))
            if not found[-1][1]:
                break
    return min(found, key=lambda font: len(font[1]))


@functools.lru_cache(maxsize=1)  # drawn once for all the frames of a segment
def _band(label: str, score: str, width: int, height: int) -> np.ndarray:
    """White text: uint8 (height, width, 1), at most 191, so that a dimmed picture can be added."""
    image, place = Image.new("L", (width, height)), height * 0.3
    draw = ImageDraw.Draw(image)
    for text in (label, score):
        font = ImageFont.truetype(find_font(text)[0], height * 0.6)
        draw.text((place, height / 2), text, fill=191, font=font, anchor="lm")
        place += draw.textlength(text, font)
    return np.asarray(image)[:, :, None]
