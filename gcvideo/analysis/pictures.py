"""Maps laid over frames, and frames as PNG, GIF and MP4 files or as data for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gcvideo.errors import GcvideoError
from gcvideo.files import write_atomically

# Control points of the colour scale: black, purple, orange, pale yellow. Its lightness rises evenly, so it reads the
# same in print and without colour vision.
SCALE = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)


def colour(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of any shape as RGB: uint8 (..., 3)."""
    places = np.clip(values, 0, 1) * (len(SCALE) - 1)
    channels = [np.interp(places, np.arange(len(SCALE)), SCALE[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


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


def grid(rows: Sequence[tuple[str, np.ndarray]], *, frame_height: int = 112) -> np.ndarray:
    """One picture of several rows of frames, each under its name.

    Args:
        rows: name and uint8 (T, H, W, 3); all rows have the same number and size of frames.
        frame_height: of a frame in the picture, in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    band = 18
    count, height, width = rows[0][1].shape[:3]
    frame_width = max(1, round(width * frame_height / height))
    sheet = Image.new("RGB", (count * frame_width, len(rows) * (frame_height + band)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for row, (name, frames) in enumerate(rows):
        top = row * (frame_height + band)
        draw.text((4, top + band / 2), " ".join(name.split()), fill="black", font=font, anchor="lm")
        for column, frame in enumerate(frames):
            small = Image.fromarray(frame).resize((frame_width, frame_height), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * frame_width, top + band))
    return np.asarray(sheet)


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG."""
    write_atomically(path, _encode(Image.fromarray(picture), "PNG"))


def save_animation(path: str | Path, frames: np.ndarray, *, fps: float = 8) -> None:
    """Write uint8 (T, H, W, 3) as an animated GIF or an MP4 (H.264), by the ending of the name."""
    suffix = Path(path).suffix.lower()
    if suffix == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / fps), "loop": 0}
        write_atomically(path, _encode(images[0], "GIF", **options))
    elif suffix == ".mp4":
        write_atomically(path, _mp4(frames, fps))
    else:
        raise GcvideoError(f"{path}: an animation is written as .gif or .mp4")


def data_uri(picture: np.ndarray, *, height: int | None = None, quality: int = 80) -> str:
    """A picture (H, W, 3) as a ``data:`` address of a JPEG, scaled down to ``height`` pixels."""
    image = Image.fromarray(picture)
    if height is not None and height < image.height:
        image = image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
    return "data:image/jpeg;base64," + base64.b64encode(_encode(image, "JPEG", quality=quality)).decode()


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
