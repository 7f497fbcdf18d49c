"""decord: decodes slices of MP4 files, the fastest way to read H.264.

It gives the same pixels as PyAV: libavcodec decodes and swscale converts in either. It counts pictures where PyAV
knows them by their times, so it gets only slices whose pictures were checked before. It does not tell of damage, so it
never gets HEVC: there only a decoder notices that a picture is lost, where H.264 numbers its pictures.
"""

import importlib.util
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from gcvideo.video.mp4_slice import in_memory, write_slice
from gcvideo.video.mp4_tables import Mp4Track
from gcvideo.video.pyav_decoder import DecodeError

_NO_FAULTS = 1e-9  # as a fraction of the video's pictures; decord takes 0 for "any number"


def has_decord() -> bool:
    """Whether decord is installed."""
    return importlib.util.find_spec("decord") is not None


def decode_with_decord(track: Mp4Track, data: Mapping[int, bytes], wanted: Sequence[int]) -> np.ndarray:
    """Decode samples with decord.

    Args:
        track: the video track.
        data: the bytes of each sample that is to be decoded, in decoding order.
        wanted: the samples whose frames are asked for.

    Returns:
        uint8 (len(wanted), H, W, 3) RGB, before rotation.
    """
    import decord

    # What goes wrong is raised, with the file's name; libav's own messages have none and would fill the log.
    decord.logging.set_level(decord.logging.QUIET)
    pieces, frame_of = write_slice(track, data)
    with in_memory(pieces) as path:
        # fault_tol: any picture that decord would fill in from its neighbour is an error.
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1, fault_tol=_NO_FAULTS)
        if len(reader) != len(data):
            raise DecodeError(f"decord counts {len(reader)} pictures of {len(data)}")
        batch = reader.get_batch([frame_of[sample] for sample in wanted])
        del reader  # a live one continues to decode in the background
    # A torch tensor already where pytorchvideo set decord's process-wide bridge.
    frames = batch if isinstance(batch, torch.Tensor) else from_dlpack(batch.to_dlpack())
    return np.asarray(frames.numpy())
