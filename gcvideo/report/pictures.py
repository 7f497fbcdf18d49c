"""Pictures: maps laid over frames, frames side by side, PNG, GIF and MP4 files, and thumbnails for pages."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gcvideo.data.records import frames_between
from gcvideo.errors import VideoError
from gcvideo.files import write_atomically
from gcvideo.prepare.transcode import encode_frames
from gcvideo.video import open_video

BAND = 18  # pixels above a frame, for its name
Row = list[tuple[str, np.ndarray]]  # name and uint8 (H, W, 3) of each frame


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
        palettes = [image.quantize(256, method=Image.Quantize.FASTOCTREE) for image in images]
        images = [image.quantize(palette=own) for image, own in zip(images, palettes, strict=True)]
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
