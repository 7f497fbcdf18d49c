"""Videos that tests make for themselves, through PyAV."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 prints its settings otherwise

# Quick and, for the size of these videos, good enough. `threads` keeps x265 and SVT-AV1 from starting a pool.
FAST_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "18", "threads": "1"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "threads": "1"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
}


def moving_frames(count: int, height: int = 48, width: int = 64, *, seed: int = 0) -> np.ndarray:
    """Frames that all differ: a texture that slides, a square that moves, and a bar code of the frame number.

    Returns:
        uint8 (T, H, W, 3).
    """
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    frames = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        frames[t] = np.roll(texture, (t, 2 * t), axis=(0, 1))[:height, :width]
        x = (3 * t) % max(1, width - 8)
        frames[t, height // 2 : height // 2 + 8, x : x + 8] = (255, 0, 0)
        for bit in range(8):  # the number of the frame, least significant bit on the left
            frames[t, : height // 6, bit * width // 8 : (bit + 1) * width // 8] = 255 * (t >> bit & 1)
    return frames


def write_video(
    path: str | Path,
    frames: np.ndarray,
    *,
    fps: float | Fraction = 25,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    gop: int | None = None,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    container_format: str | None = None,
    audio: bool = False,
) -> Path:
    """Encode frames to a video file; the suffix chooses the container.

    Args:
        path: file to write.
        frames: uint8 (T, H, W, 3) RGB.
        fps: frames per second, where ``pts`` does not say otherwise.
        codec: an encoder of libavcodec.
        rotation: degrees clockwise, a multiple of 90, by which a player must turn the frames; kept as metadata.
        pts: presentation time of each frame, in units of ``time_base``: variable frame rate, or a start other than 0.
        gop: largest distance between key frames.
        options: for the encoder, over its entry in ``FAST_OPTIONS``.
        container_options: for the muxer, for example ``{"movflags": "frag_keyframe+empty_moov"}``.
        container_format: where the suffix does not say it.
        audio: add a silent sound track.
    """
    rate = Fraction(fps).limit_denominator(100_000)
    time_base = time_base or 1 / rate
    settings = {**FAST_OPTIONS.get(codec, {}), **(options or {})}
    with av.open(str(path), "w", format=container_format, options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=settings)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.time_base = stream.codec_context.time_base = time_base
        if gop is not None:
            stream.gop_size = gop
        if rotation:
            stream.set_display_rotation(-rotation)
        if audio:
            sound = container.add_stream("aac", rate=16_000, layout="mono")
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 16_000, 0
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
            if audio and index == 0:
                container.mux(sound.encode(silence))
        container.mux(stream.encode(None))
        if audio:
            container.mux(sound.encode(None))
    return Path(path)


def remux(
    source: str | Path, path: str | Path, *, start: float = 0.0, end: float = float("inf"), **options: str
) -> Path:
    """Copy the video packets of ``source`` in [start, end) seconds without re-encoding, as ``ffmpeg -c copy`` does.

    A ``start`` that is not on a key frame leaves an edit list in MP4 files.
    """
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        offset = round(start / stream.time_base)
        if start:
            old.seek(offset, stream=stream)
        for packet in old.demux(stream):
            if packet.dts is None:
                continue
            if packet.dts * stream.time_base >= end:
                break
            packet.pts -= offset
            packet.dts -= offset
            packet.stream = copy
            new.mux(packet)
    return Path(path)


def decode_all(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Every frame in presentation order, by decoding the whole file: what a reader is compared with.

    Returns:
        frames: uint8 (T, H, W, 3) RGB, turned as the rotation metadata says.
        times: float64 (T,) seconds, presentation times.
    """
    frames, times = [], []
    with av.open(str(path), metadata_errors="replace") as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            frames.append(np.rot90(image, round(frame.rotation / 90)))
            times.append(np.nan if frame.pts is None else float(frame.pts * frame.time_base))
    return np.stack(frames), np.array(times)


def write_frames(folder: Path, frames: np.ndarray, *, name: str = "img_{:05d}.jpg", first: int = 1) -> Path:
    """Frames as numbered pictures; the suffix of the name chooses the format."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start=first):
        Image.fromarray(frame).save(folder / name.format(number))
    return folder
