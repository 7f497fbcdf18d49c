"""Write a video back with its labels in the picture, its sound kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gcvideo.errors import GcvideoError
from gcvideo.eval.timeline import Segment
from gcvideo.video import FrameStream

CONTAINERS = (".mp4", ".mkv", ".mov")


def annotate_video(source: str, destination: str | Path, segments: list[Segment]) -> None:
    """Copy a video, with the label and score of each moment on a band at the bottom of the picture.

    Frames keep their times (variable frame rates too) and are turned as displayed; the picture is encoded anew as
    H.264, sound is copied as it is, or encoded as AAC where the container does not take it. The file appears under its
    name only when it is complete.

    Args:
        destination: .mp4, .mkv or .mov.

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
    """Refuse a name that cannot be written to, before any work is done."""
    destination = Path(destination)
    if destination.suffix.lower() not in CONTAINERS:
        raise GcvideoError(f"{destination}: --save writes {', '.join(CONTAINERS)}; give a name with such an ending")
    if destination.exists() and os.path.samefile(source, destination):
        raise GcvideoError(f"{destination}: is the video itself; --save needs another name")
    return destination


def _copy(source: str, output: Any, segments: list[Segment]) -> None:
    import av

    with FrameStream(source) as stream:
        first = next(iter(stream)).picture
    with av.open(f"file:{os.path.abspath(source)}", metadata_errors="replace") as container:
        video = container.streams.video[0]
        sound = container.streams.audio[0] if container.streams.audio else None
        # All tracks must be known before the first packet is written.
        encoder = _video_encoder(output, video, _displayed(first).shape[:2])
        sound_out = _SoundTrack(output, sound) if sound is not None else None
        band = _Band(segments)
        for packet in container.demux(video, *([sound] if sound is not None else [])):
            if sound_out is not None and packet.stream is sound:
                sound_out.put(packet)
                continue
            try:
                frames = packet.decode()
            except (av.error.InvalidDataError, ValueError):
                continue  # a damaged picture; the timeline has said so
            for frame in frames:
                rgb = _displayed(frame)
                band.draw(rgb, (frame.time or 0.0) - (first.time or 0.0))
                drawn = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                drawn.pts, drawn.time_base = frame.pts, frame.time_base
                output.mux(encoder.encode(drawn))
        output.mux(encoder.encode(None))
        if sound_out is not None:
            sound_out.finish()


def _displayed(frame: Any) -> np.ndarray:
    """uint8 (H, W, 3), rotation applied; H and W even, as H.264 wants them."""
    rgb = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(rgb[: len(rgb) // 2 * 2, : rgb.shape[1] // 2 * 2])


def _video_encoder(output: Any, video: Any, size: tuple[int, ...]) -> Any:
    encoder = output.add_stream("libx264", rate=video.average_rate or 25)
    encoder.height, encoder.width = size
    encoder.pix_fmt = "yuv420p"
    encoder.codec_context.time_base = video.time_base
    encoder.options = {"crf": "20", "preset": "veryfast"}
    return encoder


class _SoundTrack:
    """Sound on its way into the new file: copied, or encoded as AAC where the container refuses it as it is."""

    def __init__(self, output: Any, sound: Any) -> None:
        self.output = output
        try:
            self.track = output.add_stream_from_template(sound)
            self.track.time_base = sound.time_base
            self.copied = True
        except ValueError:
            self.track = output.add_stream("aac", rate=sound.codec_context.sample_rate)
            self.copied = False

    def put(self, packet: Any) -> None:
        if self.copied:
            if packet.dts is not None:
                packet.stream = self.track
                self.output.mux(packet)
            return
        for frame in packet.decode():
            self.output.mux(self.track.encode(frame))

    def finish(self) -> None:
        if not self.copied:
            self.output.mux(self.track.encode(None))


class _Band:
    """The band with the label of the moment. It is drawn once a segment, and laid on every frame."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self._place = 0
        self._drawn: tuple[Segment, np.ndarray] | None = None

    def draw(self, rgb: np.ndarray, time: float) -> None:
        """Lay the band on a frame (H, W, 3), in place; times must not go back."""
        while self._place + 1 < len(self.segments) and time >= self.segments[self._place].end:
            self._place += 1
        if not self.segments:
            return
        segment = self.segments[self._place]
        if self._drawn is None or self._drawn[0] is not segment:
            self._drawn = segment, label_band(segment, width=rgb.shape[1], height=max(12, len(rgb) // 12))
        band = self._drawn[1][-len(rgb) :]
        bottom = rgb[-len(band) :]
        bottom[:] = bottom // 4 + band  # the picture shines through, dimmed, so that the text reads on anything


def label_band(segment: Segment, *, width: int, height: int) -> np.ndarray:
    """White text for a dark band: uint8 (height, width, 3), at most 191 so that a dimmed picture can be added."""
    image = Image.new("L", (width, height))
    font = ImageFont.load_default(size=height * 0.6)
    text = " ".join(f"{segment.label} {100 * segment.score:.0f} %".split())
    ImageDraw.Draw(image).text((height * 0.3, height / 2), text, fill=191, font=font, anchor="lm")
    return np.repeat(np.asarray(image)[:, :, None], 3, axis=2)
