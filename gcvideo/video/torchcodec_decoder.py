"""torchcodec, a decoder that is used only where it is asked for by name, and only in its exact mode.

It decodes with the FFmpeg libraries of the machine, and gets what decord gets: slices of MP4 files, H.264, with the
samples that are needed. HEVC does not reach it, because torchcodec, like decord, does not tell that a picture is lost.
Asked for a frame that its decoder leaves out, as after a seek, torchcodec gives the next one without a word; so the
time of every frame is compared with the slice's.
"""

import functools
import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np

from gcvideo.video.mp4_slice import RATE, in_memory, write_slice
from gcvideo.video.mp4_tables import Mp4Track
from gcvideo.video.pyav_decoder import DecodeError

_SAME_TIME = 1e-6  # seconds


@functools.cache
def why_no_torchcodec() -> str | None:
    """Why torchcodec cannot be used here, and what to do; None where it can."""
    if importlib.util.find_spec("torchcodec") is None:
        return "torchcodec is not installed: pip install 'gcvideo[torchcodec]'"
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(bytes(1))  # fails in either case: for want of a video, or of libraries
    except Exception as error:
        if "load libtorchcodec" in str(error):
            return "torchcodec finds no FFmpeg libraries to load; install FFmpeg, in a version that it supports"
    return None


def decode_with_torchcodec(track: Mp4Track, data: Mapping[int, bytes], wanted: Sequence[int]) -> np.ndarray:
    """Decode samples with torchcodec; arguments and result as in ``decode_with_decord``."""
    from torchcodec.decoders import VideoDecoder

    pieces, frame_of = write_slice(track, data)
    frames = np.array([frame_of[sample] for sample in wanted])
    options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "device": "cpu", "seek_mode": "exact"}
    with in_memory(pieces) as path:
        decoder = VideoDecoder(f"file:{path}", **options)  # a name with a colon in it is no protocol
        if len(decoder) != len(data):
            raise DecodeError(f"torchcodec counts {len(decoder)} pictures of {len(data)}")
        batch = decoder.get_frames_at(frames.tolist())
        times = batch.pts_seconds.numpy() - decoder.metadata.begin_stream_seconds
    if (np.abs(times - frames / RATE) > _SAME_TIME).any():
        raise DecodeError("torchcodec gives other pictures than those asked for")
    return np.asarray(batch.data.numpy())
