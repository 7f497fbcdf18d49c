"""A tiny MP4 file, in memory, that holds only the pictures that must be decoded.

decord counts pictures where it should look at their times: on files with open groups of pictures, edit lists or
discarded packets it returns wrong frames without a word, and it decodes everything between the wanted ones. Both
end when it is given a file with one key picture in front, no edit list, a constant frame rate, and just the samples
of ``SampleTable.needed``. Boxes are those of ISO/IEC 14496-12.
"""

import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from gcvideo.video.mp4_tables import Mp4Track

_UNITY_MATRIX = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
RATE = 30  # frames per second of the slice: any will do
_MOST_AT_ONCE = 1 << 30  # bytes; Linux reads less than 2 GiB by one call


def read_samples(file: int, track: Mp4Track, samples: Sequence[int]) -> dict[int, memoryview]:
    """The bytes of some samples; where little lies between them, by one call."""
    sizes, offsets = track.size[samples], track.offset[samples]
    first, total = int(offsets.min()), int(sizes.sum())
    extent = int((offsets + sizes).max()) - first
    places = list(zip(samples, offsets.tolist(), sizes.tolist(), strict=True))
    if extent <= min(2 * total, _MOST_AT_ONCE):
        block = memoryview(os.pread(file, extent, first))
        data = {sample: block[offset - first : offset - first + size] for sample, offset, size in places}
    else:
        data = {sample: memoryview(os.pread(file, size, offset)) for sample, offset, size in places}
    if sum(map(len, data.values())) < total:
        raise OSError("the file has become shorter while it was read")
    return data


def write_slice(track: Mp4Track, data: Mapping[int, bytes]) -> tuple[list[bytes], dict[int, int]]:
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


@contextmanager
def in_memory(pieces: Iterable[bytes]) -> Iterator[str]:
    """A path under which a decoder of this process can open the pieces as one file, for as long as the context lasts.

    decord dies by a segmentation fault on damaged input that it gets as a bytes object, so that it needs a path.
    """
    in_linux = hasattr(os, "memfd_create")
    with open(os.memfd_create("slice.mp4"), "wb") if in_linux else tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.writelines(pieces)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}" if in_linux else str(file.name)


def _header(track: Mp4Track, sizes: list[int], composition: np.ndarray) -> bytes:
    """Everything before the media data: ftyp, moov, and the head of mdat. The place of the data is left open."""
    count = len(sizes)
    samples = _box(
        b"stbl",
        _full_box(b"stsd", struct.pack(">I", 1), _box(track.sample_entry[:4], track.sample_entry[4:])),
        _full_box(b"stts", struct.pack(">III", 1, count, 1)),
        _full_box(
            b"ctts", struct.pack(">I", count), np.stack([np.ones(count), composition], 1).astype(">u4").tobytes()
        ),
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
    track_header = (
        struct.pack(">5I16x", 0, 0, 1, 0, count)
        + _UNITY_MATRIX
        + struct.pack(">II", track.info.width << 16, track.info.height << 16)
    )
    movie_header = struct.pack(">4IIH10x", 0, 0, RATE, count, 1 << 16, 1 << 8) + _UNITY_MATRIX + struct.pack(">24xI", 2)
    movie = _box(
        b"moov",
        _full_box(b"mvhd", movie_header),
        _box(b"trak", _full_box(b"tkhd", track_header, flags=3), media),
    )
    return _box(b"ftyp", b"isom", bytes(4), b"isom") + movie + struct.pack(">I4s", 8 + sum(sizes), b"mdat")


def _box(kind: bytes, *body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, body)), kind) + b"".join(body)


def _full_box(kind: bytes, *body: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags), *body)
