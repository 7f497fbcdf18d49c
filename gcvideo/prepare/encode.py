"""Encode H.264 in MP4: frames in memory, and videos with a layout that is fast to read clips from."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import yaml

from gcvideo.errors import VideoError
from gcvideo.files import replacing
from gcvideo.video import open_video
from gcvideo.video.mp4_tables import PREPARED
from gcvideo.video.pyav_decoder import orientation_of

# Name -> options of libx264.
PRESETS: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text("utf-8"))
CRF = "23"  # libx264's default quality


class Encoding(NamedTuple):
    """How to write videos.

    Attributes:
        preset: one of ``PRESETS``.
        short_side: in pixels; smaller videos keep their size.
        audio: keep the sound, as AAC.
    """

    preset: str = "clip"
    short_side: int = 256
    audio: bool = False


def encode_frames(frames: np.ndarray, *, fps: float, options: dict[str, str] | None = None) -> bytes:
    """Encode frames in memory.

    Args:
        frames: uint8 (T, H, W, 3) RGB. The last row or column of an odd size is left out, as 4:2:0 sampling needs.
        fps: frames per second.
        options: of libx264.

    Returns:
        the content of the MP4 file.
    """
    buffer = io.BytesIO()
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_video(source: str | Path, target: str | Path, encoding: Encoding) -> int:
    """Encode ``source`` as ``target``; returns the number of frames.

    Frames keep their times, counted from the first one; they are turned and mirrored as the metadata says. ``target``
    appears when it is complete.

    Raises:
        VideoError: the source cannot be opened, or not be decoded to its end.
    """
    with open_video(source) as video:
        expected, (height, width) = len(video), scaled_size(video.height, video.width, encoding.short_side)
    with replacing(target) as temporary:
        try:
            frames = _encode(f"file:{source}", f"file:{temporary}", encoding, height, width)
        except av.FFmpegError as error:
            raise VideoError(source, f"cannot be transcoded ({str(error).splitlines()[0]})") from error
        if frames != expected:
            raise VideoError(source, f"only {frames} of {expected} frames can be decoded")
    return frames


def _encode(source: str, target: str, encoding: Encoding, height: int, width: int) -> int:
    # The moov box in front: opening a file then takes one read.
    faststart, count, first, last = {"movflags": "+faststart"}, 0, 0, -1
    with (
        av.open(source, metadata_errors="replace") as old,
        av.open(target, "w", format="mp4", options=faststart) as new,
    ):
        new.metadata["comment"] = PREPARED.decode()
        track = old.streams.video[0]
        track.codec_context.thread_count = 1  # one worker process a core already
        options = {"crf": CRF, "threads": "1", **PRESETS[encoding.preset]}
        pictures = new.add_stream("libx264", rate=track.average_rate or 25, options=options)
        pictures.height, pictures.width, pictures.pix_fmt = height, width, "yuv420p"
        pictures.codec_context.time_base = track.time_base
        tracks: list[Any] = [track, *(old.streams.audio[:1] if encoding.audio else ())]
        sounds = [new.add_stream("aac", rate=audio.codec_context.sample_rate or 44_100) for audio in tracks[1:]]
        for packet in old.demux(tracks):
            for frame in packet.decode():
                if packet.stream is not track:
                    frame.pts = None  # counted again from the samples
                    new.mux(sounds[0].encode(frame))
                    continue
                first = first if count else frame.pts or 0
                # Without a time, or with one that does not rise, a frame comes one tick after its predecessor.
                last = last + 1 if frame.pts is None else max(last + 1, frame.pts - first)
                picture = _upright(frame).reformat(width, height, "yuv420p", interpolation="BICUBIC")
                picture.pts, picture.time_base = last, frame.time_base
                picture.pict_type = 0  # the encoder chooses key frames, not the source
                new.mux(pictures.encode(picture))
                count += 1
        for stream in (pictures, *sounds):
            new.mux(stream.encode(None))
    return count


def _upright(frame: Any) -> Any:
    """A frame turned and mirrored as its metadata says."""
    orientation = orientation_of(frame)
    if not any(orientation):
        return frame
    rgb = orientation.apply(frame.to_ndarray(format="rgb24"))
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of the same shape with the given short side, never larger than before.

    Both are even, as 4:2:0 sampling needs.
    """
    scale = min(1.0, short_side / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))
