"""The tables of an MP4 or MOV file: where each coded picture of the video track lies, and when it is shown.

Only the movie box is read, in about a millisecond; no decoder is involved. Boxes are those of ISO/IEC 14496-12 (the
section numbers in this file), codec configurations those of ISO/IEC 14496-15. Nothing that the file says is trusted:
every length is checked against what is there, and what does not fit raises ``Mp4Error``.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from gcvideo.video.bitstream import BitstreamError, Start, StreamInfo, parse_avc_config, parse_hevc_config, start_kind
from gcvideo.video.decode_plan import SampleTable

# A movie box of 64 MiB describes some days of video; more is damage.
MAX_MOVIE_BOX = 64 << 20
# First bytes of a key sample that are searched for its picture: parameter sets and messages come before it.
_HEAD = 4096
_FOREVER = 1 << 62
_CONFIG_BOXES = {b"avc1": b"avcC", b"avc3": b"avcC", b"hvc1": b"hvcC", b"hev1": b"hvcC"}


class Mp4Error(ValueError):
    """These tables are damaged, or of a kind that is not read here; a demuxer may know better."""


class Mp4DataError(ValueError):
    """No reader can help: the file has lost part of its data, or is encrypted."""


@dataclass(frozen=True, eq=False)
class Mp4Track:
    """The first video track of a file.

    Args:
        info: what the codec configuration says.
        sample_entry: body of the sample entry box, its type included, for writing another file with it.
        config: body of its avcC or hvcC box, a decoder's extradata.
        table: the samples.
        offset: int64 (S,), position of each sample in the file.
        size: int64 (S,), bytes of each sample.
        quarter_turns: rotation for display, counter-clockwise, 0 to 3.
    """

    info: StreamInfo
    sample_entry: bytes
    config: bytes
    table: SampleTable
    offset: np.ndarray
    size: np.ndarray
    quarter_turns: int


def looks_like_mp4(head: bytes) -> bool:
    """Whether a file that begins so may be an MP4 or MOV file."""
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


def read_track(file: int) -> Mp4Track:
    """Read the tables of the first video track.

    Args:
        file: an open file descriptor.

    Raises:
        Mp4Error: not MP4, fragmented, not H.264 or HEVC, several edits, or tables that contradict themselves.
        Mp4DataError: samples lie beyond the end of the file, or are encrypted.
    """
    try:
        file_size = os.fstat(file).st_size
        movie = _movie_box(file, file_size)
        for kind, box in movie.children():
            if kind == b"trak" and box.find(b"mdia", b"hdlr").data[8:12] == b"vide":
                return _read_video_track(file, file_size, movie, box)
    except (struct.error, IndexError, BitstreamError, OverflowError, ValueError) as error:
        if isinstance(error, (Mp4Error, Mp4DataError)):
            raise
        raise Mp4Error(f"damaged tables ({error})") from error
    raise Mp4Error("no video track")


class _Box:
    """A box's body."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def children(self, start: int = 0) -> Iterator[tuple[bytes, _Box]]:
        """Types and bodies of the boxes inside (section 4.2)."""
        position, end = start, len(self.data)
        while position + 8 <= end:
            size, kind = struct.unpack_from(">I4s", self.data, position)
            header = 8
            if size == 1:
                size, header = struct.unpack_from(">Q", self.data, position + 8)[0], 16
            elif size == 0:  # to the end
                size = end - position
            if size < header or position + size > end:
                raise Mp4Error(f"box {kind!r} is longer than what holds it")
            yield kind, _Box(self.data[position + header : position + size])
            position += size

    def find(self, *path: bytes) -> _Box:
        """The first box at a path of types."""
        box = self
        for kind in path:
            found = box.get(kind)
            if found is None:
                raise Mp4Error(f"no {kind.decode('latin-1')} box")
            box = found
        return box

    def get(self, kind: bytes) -> _Box | None:
        """The first box of a type inside this one."""
        return next((box for name, box in self.children() if name == kind), None)

    def unpack(self, layout: str, position: int) -> tuple[int, ...]:
        return struct.unpack_from(">" + layout, self.data, position)

    def table(self, dtype: str, columns: int = 1, *, start: int = 4) -> np.ndarray:
        """A count, at byte ``start``, and as many rows of big-endian integers; int64 (rows, columns)."""
        (count,) = self.unpack("I", start)
        step = np.dtype(dtype).itemsize * columns
        if count * step > len(self.data) - start - 4:
            raise Mp4Error("a table is longer than its box")
        return np.frombuffer(self.data, dtype, count * columns, start + 4).astype(np.int64).reshape(count, columns)


def _movie_box(file: int, file_size: int) -> _Box:
    """Find and read the moov box without reading the media data."""
    position = 0
    fragmented = False
    for _ in range(4096):  # a fragmented file may have thousands of boxes: it is refused anyway
        head = os.pread(file, 16, position)
        if len(head) < 8:
            break
        size, kind = struct.unpack_from(">I4s", head)
        header = 8
        if size == 1 and len(head) == 16:
            size, header = struct.unpack_from(">Q", head, 8)[0], 16
        elif size == 0:
            size = file_size - position
        if size < header:
            break
        if kind == b"moov":
            if size > MAX_MOVIE_BOX or position + size > file_size:
                raise Mp4Error("the movie box is longer than the file")
            return _Box(memoryview(os.pread(file, size - header, position + header)))
        fragmented = fragmented or kind == b"moof"
        position += size
    raise Mp4Error("no movie box before the first fragment" if fragmented else "no movie box")


def _read_video_track(file: int, file_size: int, movie: _Box, track: _Box) -> Mp4Track:
    if movie.get(b"mvex") is not None:
        raise Mp4Error("fragmented")  # section 8.8: more samples follow outside the movie box
    media = track.find(b"mdia")
    stbl = media.find(b"minf", b"stbl")
    entry, config, info = _sample_entry(stbl.find(b"stsd"))
    time_scale = _time_scale(media.find(b"mdhd"))
    size = _sample_sizes(stbl.find(b"stsz"), file_size)
    pts = _presentation_times(stbl, len(size))
    offset = _sample_offsets(stbl, size)
    if (offset + size > file_size).any():
        missing = int((offset + size > file_size).sum())
        raise Mp4DataError(f"cut short: {missing} of {len(size)} pictures lie beyond its end")
    order = np.argsort(pts, kind="stable")
    if (np.diff(pts[order]) == 0).any():
        raise Mp4Error("two pictures are shown at the same time")
    edit = _edit(track, movie, time_scale)
    if edit is not None:
        order = order[(pts[order] >= edit.start) & (pts[order] < edit.end)]
        if not len(order):
            raise Mp4Error("the edit list shows no picture")
        pts = pts - pts[order[0]] + edit.delay  # the first picture shown opens the presentation, as in libavformat
    starts = _starts(file, stbl, offset, size, info)
    table = SampleTable(pts, order, starts, Fraction(1, time_scale))
    return Mp4Track(info, entry, config, table, offset, size, _quarter_turns(track.find(b"tkhd")))


def _sample_entry(stsd: _Box) -> tuple[bytes, bytes, StreamInfo]:
    """The only sample entry, its decoder configuration, and what that says (section 8.5.2)."""
    if stsd.unpack("I", 4) != (1,):
        raise Mp4Error("several sample descriptions")
    kind, entry = next(stsd.children(8), (b"", _Box(memoryview(b""))))
    if kind == b"encv":
        raise Mp4DataError("is encrypted")
    if kind not in _CONFIG_BOXES:
        raise Mp4Error(f"codec {kind.decode('latin-1')}")
    # 78 bytes of VisualSampleEntry (section 12.1.3) come before the boxes inside.
    configs = [box for name, box in entry.children(78) if name == _CONFIG_BOXES[kind]]
    if len(configs) != 1:
        raise Mp4Error("no decoder configuration")
    config = bytes(configs[0].data)
    info = (parse_avc_config if kind.startswith(b"avc") else parse_hevc_config)(config)
    return kind + bytes(entry.data), config, info


def _time_scale(header: _Box) -> int:
    """Units per second of an mdhd (section 8.4.2) or mvhd (section 8.2.2) box."""
    (scale,) = header.unpack("I", 20 if header.data[0] == 1 else 12)
    if not scale:
        raise Mp4Error("a time scale of 0")
    return scale


def _sample_sizes(stsz: _Box, file_size: int) -> np.ndarray:
    """Section 8.7.3.2: one size for all, or a table."""
    same, count = stsz.unpack("II", 4)
    if not count:
        raise Mp4Error("no samples")
    if same * count > file_size:
        raise Mp4DataError(f"cut short: {count} pictures of {same} bytes are more than the file")
    return np.full(count, same, np.int64) if same else stsz.table(">u4", start=8)[:, 0]


def _presentation_times(stbl: _Box, count: int) -> np.ndarray:
    """Decoding times (section 8.6.1.2) plus composition offsets (section 8.6.1.3), in media time units."""
    durations = stbl.find(b"stts").table(">u4", 2)
    steps = _run_lengths(durations[:, 1], durations[:, 0], count)
    pts = np.cumsum(steps) - steps
    offsets = stbl.get(b"ctts")
    if offsets is not None:
        # Signed in version 1; writers of version 0 mean it signed too.
        table = np.concatenate([offsets.table(">u4", 2)[:, :1], offsets.table(">i4", 2)[:, 1:]], axis=1)
        pts = pts + _run_lengths(table[:, 1], table[:, 0], count)
    return pts


def _run_lengths(values: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """Spell out a run-length table, which must cover exactly ``count`` samples."""
    if int(lengths.sum()) != count:
        raise Mp4Error("a table of times does not cover the samples")
    return np.repeat(values, lengths)


def _sample_offsets(stbl: _Box, size: np.ndarray) -> np.ndarray:
    """Chunk offsets (section 8.7.5) spread over the samples of each chunk (section 8.7.4)."""
    wide = stbl.get(b"co64")
    chunks = (wide.table(">u8") if wide is not None else stbl.find(b"stco").table(">u4"))[:, 0]
    runs = stbl.find(b"stsc").table(">u4", 3)  # first chunk (from 1), samples per chunk, sample description
    first = runs[:, 0]
    if not len(chunks) or not len(runs) or first[0] != 1 or (np.diff(first) <= 0).any() or first[-1] > len(chunks):
        raise Mp4Error("chunk tables contradict each other")
    if (chunks < 0).any() or (runs[:, 2] != 1).any():
        raise Mp4Error("chunk tables make no sense")
    per_chunk = np.repeat(runs[:, 1], np.diff(np.append(first, len(chunks) + 1)))
    if int(per_chunk.sum()) != len(size):
        raise Mp4Error("chunks do not cover the samples")
    end_of_sample = np.cumsum(size)
    first_sample = np.cumsum(per_chunk) - per_chunk
    before_sample = end_of_sample - size
    before_chunk = before_sample[np.minimum(first_sample, len(size) - 1)]
    return before_sample + np.repeat(chunks - before_chunk, per_chunk)


class _Edit(NamedTuple):
    """Media times ``start`` to ``end`` are shown, beginning at presentation time ``delay``."""

    start: int
    end: int
    delay: int


def _edit(track: _Box, movie: _Box, time_scale: int) -> _Edit | None:
    """The only part of the media that is shown (section 8.6.6); None where there is no edit list."""
    edits = track.get(b"edts")
    listed = edits.get(b"elst") if edits is not None else None
    if listed is None:
        return None
    (count,) = listed.unpack("I", 4)
    layout = ">Qqhh" if listed.data[0] == 1 else ">Iihh"
    if count * struct.calcsize(layout) > len(listed.data) - 8:
        raise Mp4Error("the edit list is longer than its box")
    rows = [struct.unpack_from(layout, listed.data, 8 + i * struct.calcsize(layout)) for i in range(min(count, 3))]
    movie_scale = _time_scale(movie.find(b"mvhd"))
    delay = 0
    if rows and rows[0][1] == -1:  # an empty edit: the track starts late
        delay = _rescale(rows.pop(0)[0], time_scale, movie_scale)
        count -= 1
    if count == 0:
        return _Edit(-_FOREVER, _FOREVER, delay)
    duration, media_time, rate, _ = rows[0]
    if count != 1 or media_time < 0 or rate != 1:
        raise Mp4Error("an edit list of several parts")
    return _Edit(media_time, media_time + _rescale(duration, time_scale, movie_scale), delay)


def _rescale(value: int, to_scale: int, from_scale: int) -> int:
    """Between time scales, to the nearest unit, halves up (as libavutil's av_rescale does)."""
    return (value * to_scale + from_scale // 2) // from_scale


def _starts(file: int, stbl: _Box, offset: np.ndarray, size: np.ndarray, info: StreamInfo) -> dict[int, Start]:
    """Samples at which decoding may start: those marked as sync samples (section 8.6.2) whose pictures agree."""
    listed = stbl.get(b"stss")
    marked = listed.table(">u4")[:, 0] - 1 if listed is not None else np.arange(len(size))
    if len(marked) and (marked[0] < 0 or marked[-1] >= len(size) or (np.diff(marked) <= 0).any()):
        raise Mp4Error("the table of key pictures makes no sense")
    starts: dict[int, Start] = {}
    for sample in marked.tolist():
        head = os.pread(file, min(_HEAD, int(size[sample])), int(offset[sample]))
        kind = start_kind(head, info)
        if kind is not Start.NO:
            starts[sample] = kind
    if starts.get(0) is not Start.ANYWHERE:
        raise Mp4Error("does not begin with a key picture")
    return starts


def _quarter_turns(tkhd: _Box) -> int:
    """Rotation of the display matrix (section 8.3.2), counter-clockwise, to the nearest quarter."""
    matrix = tkhd.unpack("9i", 52 if tkhd.data[0] == 1 else 40)
    a, b = matrix[0], matrix[1]
    return round(-math.degrees(math.atan2(b, a)) / 90) % 4
