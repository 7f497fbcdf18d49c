"""The two decoders, behind one kind of function: coded pictures in, the wanted ones of them out as RGB.

Both give the same pixels: libavcodec decodes and swscale converts in either. Where frames are scaled down they
interpolate bilinearly (swscale's SWS_BILINEAR, which averages over the area where it shrinks).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gcvideo.video.mp4 import Mp4Track
from gcvideo.video.mp4_slice import in_memory, write_slice

# The largest coded frame that is decoded: a little over 8K UHD. decord ends the process where memory runs out.
MAX_PIXELS = 1 << 25
# frames() gives at most so many bytes at a time.
MAX_BYTES = 4 << 30
_NO_FAULTS = 1e-9  # as a fraction of the video's pictures; decord takes 0 for "any number"


class DecodeError(Exception):
    """The decoder could not produce a wanted frame."""


class DamageError(DecodeError):
    """The decoder produced a frame, and says that it is damaged."""


def decode_with_decord(
    track: Mp4Track, samples: Sequence[int], data: Sequence[memoryview], wanted: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Decode samples with decord.

    Args:
        track: the video track.
        samples: what to decode, in decoding order.
        data: its bytes.
        wanted: the samples whose frames are asked for.
        size: height and width of the frames, before rotation.

    Returns:
        uint8 (len(wanted), H, W, 3) RGB.
    """
    import decord

    # What goes wrong is raised, with the file's name; libav's own messages have none and would fill the log.
    decord.logging.set_level(decord.logging.QUIET)
    pieces, rank = write_slice(track, samples, data)
    frame_of = dict(zip(samples, rank.tolist(), strict=True))
    full_size = size == (track.info.height, track.info.width)
    height, width = (-1, -1) if full_size else size
    with in_memory(pieces) as path:
        # fault_tol: any picture that decord would fill in from its neighbour is an error.
        reader = decord.VideoReader(
            path, ctx=decord.cpu(0), width=width, height=height, num_threads=1, fault_tol=_NO_FAULTS
        )
        if len(reader) != len(samples):
            raise DecodeError(f"decord counts {len(reader)} pictures of {len(samples)}")
        batch = reader.get_batch([frame_of[sample] for sample in wanted])
        del reader  # a live one goes on decoding in the background
    return _shared(batch)


def _shared(batch: Any) -> np.ndarray:
    """decord's array as numpy's, without a copy."""
    if not hasattr(batch, "handle"):
        return np.asarray(batch)  # a torch tensor: pytorchvideo sets decord's process-wide bridge
    # Not through numpy's from_dlpack, which makes what decord hands over read-only.
    memory = (ctypes.c_uint8 * math.prod(batch.shape)).from_address(batch.handle.contents.data)
    memory.owner = batch  # the memory lives as long as decord's array
    return np.frombuffer(memory, np.uint8).reshape(batch.shape)


def decode_with_pyav(
    track: Mp4Track, samples: Sequence[int], data: Sequence[memoryview], wanted: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Decode samples with libavcodec through PyAV; arguments and result as in ``decode_with_decord``."""
    import av

    codec: Any = av.CodecContext.create(track.info.codec, "r")
    codec.extradata = track.config
    codec.thread_count = 1
    # strict: wait for as many pictures as the standard says before showing one, where the stream does not tell.
    codec.options = {"strict": "1", "max_pixels": str(MAX_PIXELS)}

    def frames() -> Iterator[tuple[int, Any]]:
        for sample, piece in zip(samples, data, strict=True):
            packet = av.Packet(bytes(piece))
            packet.pts = sample
            yield from ((frame.pts, frame) for frame in codec.decode(packet))
        yield from ((frame.pts, frame) for frame in codec.decode(None))

    return collect(frames(), wanted, size, coded_size=(track.info.height, track.info.width))


def collect(
    frames: Iterable[tuple[int, Any]], wanted: Sequence[int], size: tuple[int, int], *, coded_size: tuple[int, int]
) -> np.ndarray:
    """Convert the frames whose names are wanted.

    Args:
        frames: names and PyAV frames: those that the wanted ones need, and no more.
        wanted: names.
        size: height and width to convert to.
        coded_size: height and width that every frame must have.

    Returns:
        uint8 (len(wanted), H, W, 3) RGB.

    Raises:
        DecodeError: a wanted frame never came, or came in another size.
        DamageError: a frame is damaged, wanted or not: others may refer to it.
    """
    from av.video.reformatter import VideoReformatter

    height, width = size
    place = {name: index for index, name in enumerate(wanted)}
    images = np.empty((len(wanted), height, width, 3), np.uint8)
    reformatter = VideoReformatter()  # keeps its tables from frame to frame
    for name, frame in frames:
        if frame.is_corrupt:
            raise DamageError("a picture is damaged")
        index = place.pop(name, None)
        if index is None:
            continue
        if (frame.height, frame.width) != coded_size:
            raise DecodeError(f"the frame size changes from {coded_size} to {(frame.height, frame.width)}")
        rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation="BILINEAR")
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        images[index] = rows[:, : 3 * width].reshape(height, width, 3)
    if place:
        raise DecodeError(f"{len(place)} of {len(wanted)} pictures cannot be decoded")
    return images
