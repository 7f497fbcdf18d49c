"""Maps laid over frames, and frames as PNG, GIF and MP4 files or as data for a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gcvideo.errors import GcvideoError, VideoError
from gcvideo.files import write_atomically
from gcvideo.video.reader import open_video

# Control points of the colour scale: black, purple, orange, pale yellow. Its lightness rises evenly, so it reads the
# same in print and without colour vision.
SCALE = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)

BAND = 18  # pixels above a frame, for its name


def colour(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of any shape as RGB: uint8 (..., 3)."""
    places = np.clip(values, 0, 1) * (len(SCALE) - 1)
    channels = [np.interp(places, np.arange(len(SCALE)), SCALE[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def scale_in_css() -> str:
    """The colours of the scale as the stops of a CSS gradient."""
    return ",".join(f"rgb({r:g} {g:g} {b:g})" for r, g, b in SCALE)


def overlay(frames: np.ndarray, maps: np.ndarray, *, strength: float = 0.75) -> np.ndarray:
    """Lay maps over frames: where a map is high its colour covers the frame, where it is 0 the frame shows, dimmed.

    Args:
        frames: uint8 (T, H, W, 3).
        maps: (T, H, W) in [0, 1].
        strength: how much of the frame the highest value covers.

    Returns:
        uint8 (T, H, W, 3).
    """
    opacity = strength * np.clip(maps, 0, 1)[..., None]
    return (0.6 * frames * (1 - opacity) + colour(maps) * opacity).round().astype(np.uint8)


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


def grid(rows: Sequence[tuple[str, np.ndarray]], *, frame_height: int = 112) -> np.ndarray:
    """One picture of several rows of frames, each under its name.

    Args:
        rows: name and uint8 (T, H, W, 3); all rows have the same number and size of frames.
        frame_height: of a frame in the picture, in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    count, height, width = rows[0][1].shape[:3]
    frame_width = max(1, round(width * frame_height / height))
    sheet = Image.new("RGB", (count * frame_width, len(rows) * (frame_height + BAND)), "white")
    for row, (name, frames) in enumerate(rows):
        top = row * (frame_height + BAND)
        _write_name(sheet, name, (0, top), width=sheet.width)
        for column, frame in enumerate(frames):
            _paste(sheet, frame, (column * frame_width, top + BAND), (frame_width, frame_height))
    return np.asarray(sheet)


def tiles(pictures: Sequence[tuple[str, np.ndarray]], *, frame_height: int = 192) -> np.ndarray:
    """One picture of several frames, each under its name, about as wide as high.

    Args:
        pictures: name and uint8 (H, W, 3), all of one size.
        frame_height: of a frame in the picture, in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = pictures[0][1].shape[:2]
    frame_width = max(1, round(width * frame_height / height))
    columns = math.ceil(math.sqrt(len(pictures)))
    lines = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * frame_width, lines * (frame_height + BAND)), "white")
    for number, (name, frame) in enumerate(pictures):
        left, top = number % columns * frame_width, number // columns * (frame_height + BAND)
        _write_name(sheet, name, (left, top), width=frame_width)
        _paste(sheet, frame, (left, top + BAND), (frame_width, frame_height))
    return np.asarray(sheet)


def _write_name(sheet: Image.Image, name: str, place: tuple[int, int], *, width: int) -> None:
    """A name on its band; one that is too long ends in dots."""
    font = ImageFont.load_default(size=12)
    name = " ".join(name.split())
    fitting = name
    while fitting and font.getlength(fitting) > width - 8:
        name, fitting = name[:-1], f"{name[:-1].rstrip()}..."
    ImageDraw.Draw(sheet).text((place[0] + 4, place[1] + BAND / 2), fitting, fill="black", font=font, anchor="lm")


def _paste(sheet: Image.Image, frame: np.ndarray, place: tuple[int, int], size: tuple[int, int]) -> None:
    sheet.paste(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), place)


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG."""
    write_atomically(path, _encode(Image.fromarray(picture), "PNG"))


def save_animation(path: str | Path, frames: np.ndarray, *, fps: float = 8) -> None:
    """Write uint8 (T, H, W, 3) as an animated GIF or an MP4 (H.264), by the ending of the name."""
    suffix = Path(path).suffix.lower()
    if suffix == ".gif":
        images = [_dithered(Image.fromarray(frame)) for frame in frames]
        options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0}
        write_atomically(path, _encode(images[0], "GIF", **options))
    elif suffix == ".mp4":
        write_atomically(path, _mp4(frames, fps))
    else:
        raise GcvideoError(f"{path}: an animation is written as .gif or .mp4")


def _dithered(image: Image.Image) -> Image.Image:
    """256 colours, dithered: else a map's smooth shades become bands, and the greys of a frame take its colours."""
    palette = image.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def data_uri(picture: np.ndarray, *, height: int | None = None, quality: int = 80) -> str:
    """A picture (H, W, 3) as a ``data:`` address of a JPEG, scaled down to ``height`` pixels."""
    image = Image.fromarray(picture)
    if height is not None and height < image.height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    return "data:image/jpeg;base64," + base64.b64encode(_encode(image, "JPEG", quality=quality)).decode()


def thumbnails(path: str, count: int, *, height: int = 120) -> list[tuple[float, str]]:
    """Frames spread evenly over a video, as seconds and ``data:`` addresses; none if it cannot be read."""
    try:
        with open_video(path) as video:
            places = ((np.arange(count) + 0.5) * len(video) / count).astype(int)
            unique = np.unique(np.minimum(places, len(video) - 1))
            times = video.pts[unique] - video.pts[0]
            frames = [video.frames([index])[0] for index in unique]  # one at a time: 4K frames are large
        return [(float(time), data_uri(frame, height=height)) for time, frame in zip(times, frames, strict=True)]
    except VideoError:
        return []


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _mp4(frames: np.ndarray, fps: float) -> bytes:
    import av

    buffer = io.BytesIO()
    height, width = (side // 2 * 2 for side in frames.shape[1:3])  # H.264 wants even sides
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            output.mux(stream.encode(image))
        output.mux(stream.encode(None))
    return buffer.getvalue()
