"""torchcodec, a decoder that is used only where it is asked for by name, and only in its exact mode.

It decodes with the FFmpeg libraries of the machine. H.264 in MP4 reaches it as it reaches decord, as a slice of the
samples that are needed; Matroska, WebM, VP9 and AV1 reach it whole. HEVC does not: torchcodec, like decord, does not
tell that a picture is lost. Asked for a frame that its decoder leaves out,
as after a seek, torchcodec gives the next one without a word; so the time of every frame is compared with the
container's.
"""

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gcvideo.errors import VideoError
from gcvideo.video.decode_plan import Orientation
from gcvideo.video.mp4_slice import RATE, in_memory, write_slice
from gcvideo.video.mp4_tables import Mp4Track
from gcvideo.video.pyav_decoder import HEVC_REASON, DecodeError, LibavVideo

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


def decode_with_torchcodec(track: Mp4Track, data: Mapping[int, memoryview], wanted: Sequence[int]) -> np.ndarray:
    """Decode samples with torchcodec; arguments and result as in ``decode_with_decord``."""
    pieces, frame_of = write_slice(track, data)
    frames = np.array([frame_of[sample] for sample in wanted])
    with in_memory(pieces) as path:
        return _exact_frames(path, frames, frames / RATE, count=len(data))


class TorchcodecVideo(LibavVideo):
    """A video that libavformat reads, decoded by torchcodec where that gives the frames that PyAV would give.

    Raises:
        VideoError: times in the container do not tell the frames apart, a sample has more than 8 bits, or frames are
            turned for display.
    """

    backend = "torchcodec"

    def decode(self, wanted: np.ndarray) -> np.ndarray:
        """As in ``LibavVideo``."""
        times = self.times[wanted] - self.times[0]
        return _exact_frames(self._path, wanted, times, count=len(self.times))

    def _count_frames(self) -> None:
        raise self._refusal("its times do not tell its frames apart")

    def _describe(self, frame: Any) -> None:
        super()._describe(frame)
        if self._stream.codec_context.name == "hevc":
            raise self._refusal(HEVC_REASON)
        if frame.format.components[0].bits > 8:
            raise self._refusal("more than 8 bits a sample")  # other rounding than PyAV's
        if self.orientation != Orientation():
            raise self._refusal("turned for display")

    def _refusal(self, reason: str) -> VideoError:
        return VideoError(self._path, f"torchcodec cannot be trusted with it ({reason}); use backend pyav or auto")


def _exact_frames(path: str, frames: np.ndarray, times: np.ndarray, *, count: int) -> np.ndarray:
    """Frames of a file by index.

    Args:
        path: the file.
        frames: rising.
        times: presentation times that they must have, in seconds after the first frame.
        count: number of frames that the file must have.

    Returns:
        uint8 (T, H, W, 3) RGB.
    """
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(
        f"file:{path}",  # a name with a colon in it is no protocol
        dimension_order="NHWC",
        num_ffmpeg_threads=1,
        device="cpu",
        seek_mode="exact",
    )
    if len(decoder) != count:
        raise DecodeError(f"torchcodec counts {len(decoder)} pictures of {count}")
    batch = decoder.get_frames_at(frames.tolist())
    if (np.abs(batch.pts_seconds.numpy() - decoder.metadata.begin_stream_seconds - times) > _SAME_TIME).any():
        raise DecodeError("torchcodec gives other pictures than those asked for")
    return np.asarray(batch.data.numpy())
