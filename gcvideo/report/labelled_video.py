"""Annotated videos: a copy of a video with its labels in the picture, with its sound."""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gcvideo.errors import GcvideoError
from gcvideo.eval.timeline import Segment
from gcvideo.video import FrameStream

CONTAINERS = (".mp4", ".mkv", ".mov")


def annotate_video(source: str, destination: str | Path, segments: Sequence[Segment]) -> None:
    """Copy a video, with the label and score of each moment on a band at the bottom of the picture.

    Frames keep their times (variable frame rates too) and are rotated as displayed. The picture is encoded as H.264;
    sound is copied, or encoded as AAC if the container does not take it. The file appears under its name only when it
    is complete.

    Args:
        source: the video.
        destination: .mp4, .mkv or .mov.
        segments: of its timeline, at least one, in order of time.

    Raises:
        VideoError: the source cannot be read.
        GcvideoError: the destination cannot be written.
    """
    import av

    destination = check_destination(source, destination)
    temporary = destination.with_name(f".{os.getpid()}.{destination.name[-100:]}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with av.open(f"file:{os.path.abspath(temporary)}", "w") as output:
            _copy(source, output, segments)
        os.replace(temporary, destination)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise GcvideoError(f"{destination}: cannot be written ({reason})") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_destination(source: str, destination: str | Path) -> Path:
    """Check that the name can be written to, before any work is done."""
    destination = Path(destination)
    if destination.suffix.lower() not in CONTAINERS:
        raise GcvideoError(f"{destination}: --save writes {', '.join(CONTAINERS)}; choose such a name")
    if destination.exists() and os.path.samefile(source, destination):
        raise GcvideoError(f"{destination}: is the video itself; choose another name for --save")
    return destination


def _copy(source: str, output: Any, segments: Sequence[Segment]) -> None:
    import av

    with FrameStream(source) as stream:
        first = next(iter(stream)).picture
    with av.open(f"file:{os.path.abspath(source)}", metadata_errors="replace") as container:
        video, *sounds = container.streams.video[:1] + container.streams.audio[:1]
        # All tracks must be known before the first packet is written.
        encoder = output.add_stream(
            "libx264", rate=video.average_rate or 25, options={"crf": "20", "preset": "veryfast"}
        )
        encoder.height, encoder.width = _displayed(first).shape[:2]
        encoder.pix_fmt, encoder.codec_context.time_base = "yuv420p", video.time_base
        sound, is_copied = _sound_track(output, sounds)
        ends = [segment.end for segment in segments]
        for packet in container.demux(video, *sounds):
            if packet.stream is video:
                for frame in _decode(packet):
                    rgb = _displayed(frame)
                    time = (frame.time or 0.0) - (first.time or 0.0)
                    draw_label(rgb, segments[min(bisect.bisect_right(ends, time), len(ends) - 1)])
                    drawn = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                    drawn.pts, drawn.time_base = frame.pts, frame.time_base
                    output.mux(encoder.encode(drawn))
            elif not is_copied:
                output.mux([encoded for frame in packet.decode() for encoded in sound.encode(frame)])
            elif packet.dts is not None:  # None: the packet that flushes a decoder
                packet.stream = sound
                output.mux(packet)
        for stream in [encoder, *([] if is_copied else [sound])]:
            output.mux(stream.encode(None))


def _decode(packet: Any) -> list[Any]:
    """The frames of a packet; none if it is damaged, of which the timeline has warned."""
    import av

    try:
        return list(packet.decode())
    except (av.error.InvalidDataError, ValueError):
        return []


def _sound_track(output: Any, sounds: Sequence[Any]) -> tuple[Any, bool]:
    """A track for the sound, if any, and whether it is copied: where the container does not take it, it becomes AAC."""
    for sound in sounds:
        try:
            track = output.add_stream_from_template(sound)
            track.time_base = sound.time_base
            return track, True
        except ValueError:
            return output.add_stream("aac", rate=sound.codec_context.sample_rate), False
    return None, True


def _displayed(frame: Any) -> np.ndarray:
    """uint8 (H, W, 3), rotated as displayed; H and W even, as H.264 requires."""
    rgb = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(rgb[: len(rgb) // 2 * 2, : rgb.shape[1] // 2 * 2])


def draw_label(rgb: np.ndarray, segment: Segment) -> None:
    """Draw the label and score of a segment on a dark band at the bottom of a frame, uint8 (H, W, 3), in place."""
    text = " ".join(f"{segment.label} {100 * segment.score:.0f} %".split())
    band = _band(text, rgb.shape[1], max(12, len(rgb) // 12))[-len(rgb) :]
    bottom = rgb[-len(band) :]
    bottom[:] = bottom // 4 + band  # the picture shows through, dimmed, so that the text can be read on anything


@functools.lru_cache(maxsize=1)  # drawn once for all the frames of a segment
def _band(text: str, width: int, height: int) -> np.ndarray:
    """White text: uint8 (height, width, 1), at most 191, so that a dimmed picture can be added."""
    image = Image.new("L", (width, height))
    font = ImageFont.load_default(size=height * 0.6)
    ImageDraw.Draw(image).text((height * 0.3, height / 2), text, fill=191, font=font, anchor="lm")
    return np.asarray(image)[:, :, None]
