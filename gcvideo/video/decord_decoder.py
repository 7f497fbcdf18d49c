"""decord: decodes slices of MP4 files, the fastest way to read H.264.

It gives the same pixels as PyAV: libavcodec decodes and swscale converts in either. decord counts pictures where it
should look at their times: on files with open groups of pictures, edit lists or discarded packets it returns wrong
frames without a word, and it decodes everything between the wanted ones. Both end when it is given a tiny file, in
memory, with one key picture in front, no edit list, a constant frame rate, and just the samples of
``SampleTable.needed``, whose order was checked before. It does not tell of damage, so it never gets HEVC: there only a
decoder notices that a picture is lost, where H.264 numbers its pictures. Boxes are those of ISO/IEC 14496-12.
"""

import importlib.util
import struct
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from gcvideo.video.decode_plan import DecodeError
from gcvideo.video.mp4_tables import Mp4Track
from gcvideo.video.parameter_sets import Buffer
from gcvideo.video.tar_members import in_memory

_NO_FAULTS = 1e-9  # as a fraction of the video's pictures; decord takes 0 for "any number"
_UNITY_MATRIX = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
RATE = 30  # frames per second of the slice: any will do


def has_decord() -> bool:
    """Whether decord is installed."""
    return importlib.util.find_spec("decord") is not None


def decode_with_decord(track: Mp4Track, data: Mapping[int, Buffer], wanted: Sequence[int]) -> np.ndarray:
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


def write_slice(track: Mp4Track, data: Mapping[int, Buffer]) -> tuple[list[Buffer], dict[int, int]]:
    """Wrap samples as an MP4 file.

    Args:
        track: the video track.
        data: the bytes of each sample, in decoding order.

    Returns:
        the file in pieces; and the frame number of each sample, its place in presentation order.
    """
    samples, count = list(data), len(data)
    rank = np.empty(count, np.int64)
    rank[np.argsort(track.table.pts[samples], kind="stable")] = np.arange(count)
    composition = rank - np.arange(count)
    composition -= composition.min()
    header = _header(track, [len(piece) for piece in data.values()], composition)
    # The place of the data is the last field of the last table, in front of the head of mdat.
    header = header[:-12] + struct.pack(">I", len(header)) + header[-8:]
    return [header, *data.values()], dict(zip(samples, rank.tolist(), strict=True))


def _header(track: Mp4Track, sizes: list[int], composition: np.ndarray) -> bytes:
    """Everything before the media data: ftyp, moov, and the head of mdat. The place of the data is left open."""
    count = len(sizes)
    shifts = np.stack([np.ones(count), composition], 1)  # of one sample each
    samples = _box(
        b"stbl",
        _full_box(b"stsd", struct.pack(">I", 1), _box(track.sample_entry[:4], track.sample_entry[4:])),
        _full_box(b"stts", struct.pack(">III", 1, count, 1)),
        _full_box(b"ctts", struct.pack(">I", count), shifts.astype(">u4").tobytes()),
        # One sync sample: decord seeks to no other, and decodes in order from the first.
        _full_box(b"stss", struct.pack(">II", 1, 1)),
        _full_box(b"stsc", struct.pack(">IIII", 1, 1, count, 1)),
        _full_box(b"stsz", struct.pack(">II", 0, count), np.array(sizes, ">u4").tobytes()),
        _full_box(b"stco", struct.pack(">II", 1, 0)),
    )
    data_reference = _box(b"dinf", _full_box(b"dref", struct.pack(">I", 1), _full_box(b"url ", flags=1)))
    media = _box(
        b"mdia",
        _full_box(b"mdhd", struct.pack(">IIIIHH", 0, 0, RATE, count, 0x55C4, 0)),  # 0x55C4: undetermined language
        _full_box(b"hdlr", struct.pack(">I4s12xx", 0, b"vide")),
        _box(b"minf", _full_box(b"vmhd", bytes(8), flags=1), data_reference, samples),
    )
    size = track.info.width << 16, track.info.height << 16
    track_header = struct.pack(">5I16x36sII", 0, 0, 1, 0, count, _UNITY_MATRIX, *size)
    movie_header = struct.pack(">5IH10x36s24xI", 0, 0, RATE, count, 1 << 16, 1 << 8, _UNITY_MATRIX, 2)
    only_track = _box(b"trak", _full_box(b"tkhd", track_header, flags=3), media)
    movie = _box(b"moov", _full_box(b"mvhd", movie_header), only_track)
    return _box(b"ftyp", b"isom", bytes(4), b"isom") + movie + struct.pack(">I4s", 8 + sum(sizes), b"mdat")


def _box(kind: bytes, *body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, body)), kind) + b"".join(body)


def _full_box(kind: bytes, *body: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags), *body)
