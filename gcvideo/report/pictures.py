"""Pictures and annotated videos: what is drawn on frames, and the files and thumbnails made of them.

Maps are laid over frames, and frames side by side, for PNG, GIF and MP4 files and for pages. An annotated video is a
copy of a video with its labels in the picture, with its sound.
"""

import base64
import bisect
import functools
import heapq
import io
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unicodedata import category

import av
import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from gcvideo.console import printable, warn
from gcvideo.data.records import frames_between
from gcvideo.errors import GcvideoError, VideoError
from gcvideo.files import replacing, write_atomically
from gcvideo.predict.timeline import Segment
from gcvideo.prepare.transcode import encode_frames
from gcvideo.video import FrameStream, open_video

BAND = 18  # pixels above a frame, for its name
Row = list[tuple[str, np.ndarray]]  # name and uint8 (H, W, 3) of each frame
CONTAINERS = (".mp4", ".mkv", ".mov")  # of annotated videos
INVISIBLE = ("Zs", "Cf", "Cc", "Cs")  # categories of characters that need no glyph


def colour(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of any shape as RGB: uint8 (..., 3).

    The colour map is matplotlib's "inferno": its lightness rises evenly, so it reads the same in print and without
    colour vision.
    """
    return matplotlib.colormaps["inferno"](values, bytes=True)[..., :3]


def overlay(frames: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Lay maps over frames: the higher a map, the more of its colour; where it is 0 the frame shows, slightly dimmed.

    Args:
        frames: uint8 (T, H, W, 3).
        maps: (T, H, W) in [0, 1]; even 1 leaves a third of the frame visible.

    Returns:
        uint8 (T, H, W, 3).
    """
    opacity = 0.65 * np.clip(maps, 0, 1)[..., None]
    return (0.8 * frames * (1 - opacity) + colour(maps) * opacity).round().astype(np.uint8)


def ringed(frames: np.ndarray, place: Sequence[float]) -> np.ndarray:
    """The same frames, uint8 (T, H, W, 3), with a white ring around a place.

    Args:
        place: fractions of time, height and width, in [0, 1]. The ring stands in the frame of that time alone.
    """
    count, height, width = frames.shape[:3]
    t = min(int(place[0] * count), count - 1)
    y, x, radius = place[1] * height, place[2] * width, max(3.0, height / 16)
    image = Image.fromarray(frames[t])
    draw = ImageDraw.Draw(image)
    for grown, colour_ in ((1.5, "black"), (0, "white")):  # black around white is seen on anything
        box = (x - radius - grown, y - radius - grown, x + radius + grown, y + radius + grown)
        draw.ellipse(box, outline=colour_, width=max(2, round(height / 64)) + round(2 * grown))
    drawn = frames.copy()
    drawn[t] = np.asarray(image)
    return drawn


def sheet(rows: Sequence[Row], *, frame_height: int = 112) -> np.ndarray:
    """One picture of rows of frames, each frame under its name.

    Args:
        rows: all frames have one size. A name may extend over the frames to its right that have none.
        frame_height: of a frame in the picture, in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = rows[0][0][1].shape[:2]
    size = max(1, round(width * frame_height / height)), frame_height
    picture = Image.new("RGB", (max(map(len, rows)) * size[0], len(rows) * (frame_height + BAND)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for line, row in enumerate(rows):
        top = line * (frame_height + BAND)
        for column, (name, frame) in enumerate(row):
            left = column * size[0]
            if name:  # ends the name before it
                draw.rectangle((left, top, picture.width, top + BAND - 1), "white")
                name = " ".join(name.split())
                draw.text((left + 4, top + BAND / 2), name, fill="black", font=font, anchor="lm")
            picture.paste(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), (left, top + BAND))
    return np.asarray(picture)


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG."""
    write_atomically(path, _encode(Image.fromarray(picture), "PNG"))


def save_animation(path: str | Path, frames: np.ndarray, *, fps: float = 8) -> None:
    """Write uint8 (T, H, W, 3) as an animated GIF if the name ends in .gif, else as an MP4 (H.264)."""
    if Path(path).suffix == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        # 256 colours, dithered: else a map's smooth shades become bands, and the greys of a frame take its colours.
        images = [image.quantize(palette=image.quantize(256, method=Image.Quantize.FASTOCTREE)) for image in images]
        options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0}
        write_atomically(path, _encode(images[0], "GIF", **options))
    else:
        write_atomically(path, encode_frames(frames, fps=fps))


def data_uri(picture: np.ndarray, *, height: int) -> str:
    """A picture (H, W, 3) as a ``data:`` address of a JPEG, scaled down to ``height`` pixels."""
    return _uri(_lower(picture, height), "JPEG", quality=80)


def thumbnails(
    path: str, count: int, *, height: int = 120, span: tuple[float, float] = (0.0, math.inf)
) -> list[tuple[float, str]]:
    """Frames spread evenly over a video, or over a stretch of it in seconds; none if it cannot be read.

    Returns:
        seconds and ``data:`` address of each.
    """
    return [(second, _uri(image, "JPEG", quality=80)) for second, image in _spread(path, count, height, span)]


def moving_picture(path: str, *, count: int = 24, height: int = 160) -> str:
    """Frames spread evenly over a video as a picture that plays in its time: a WebP in a ``data:`` address, or none."""
    found = _spread(path, count, height, (0.0, math.inf))
    if not found:
        return ""
    options = {"duration": max(round(1000 * found[-1][0] / len(found)), 20), "loop": 0, "quality": 60}
    first, *others = (image for _, image in found)
    return _uri(first, "WEBP", save_all=True, append_images=others, **options)


def _spread(path: str, count: int, height: int, span: tuple[float, float]) -> list[tuple[float, Image.Image]]:
    """Frames spread evenly over a stretch of a video, with their seconds; none if it cannot be read."""
    try:
        with open_video(path) as video:
            seconds = video.times - video.times[0]
            first, end = frames_between(seconds, *span)
            places = np.unique((first + (np.arange(count) + 0.5) * (end - first) / count).astype(int))
            # One frame at a time, as 4K frames are large.
            return [(float(seconds[i]), _lower(video.frames([i])[0], height)) for i in places]
    except VideoError:
        return []


def _lower(picture: np.ndarray, height: int) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((image.width, height), Image.Resampling.LANCZOS)
    return image


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    return f"data:image/{kind.lower()};base64," + base64.b64encode(_encode(image, kind, **options)).decode()


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
