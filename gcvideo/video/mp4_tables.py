"""The tables of an MP4 or MOV file: where each coded picture of the video track lies, and when it is shown.

Only the movie box is read, in about a millisecond; no decoder is involved. Boxes are those of ISO/IEC 14496-12 (the
section numbers in this file), codec configurations those of ISO/IEC 14496-15. Nothing that the file says is trusted:
every length is checked against what is there, and what does not fit raises ``Mp4Error``.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from gcvideo.video.decode_plan import SampleTable
from gcvideo.video.parameter_sets import BitstreamError, StreamInfo, parse_config
from gcvideo.video.slice_headers import Start, by_old_x264, same_sets, start_kind

# A movie box of 64 MiB describes some days of video; more is damage.
MAX_MOVIE_BOX = 64 << 20
# First bytes of a key sample that are searched for its picture: parameter sets and messages come before it.
_HEAD = 4096
_FOREVER = 1 << 62
_CONFIG_BOXES = {b"avc1": b"avcC", b"avc3": b"avcC", b"hvc1": b"hvcC", b"hev1": b"hvcC"}
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_CODECS = {b"avcC": "h264", b"hvcC": "hevc"}


class Mp4Error(ValueError):
    """These tables are damaged, or of a kind that is not followed here; a demuxer may read the file."""


class Mp4DataError(ValueError):
    """No reader can help: the file has lost part of its data, is encrypted, or shows no picture."""


class Orientation(NamedTuple):
    """How decoded frames are turned for display: transposed or not, then flipped."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def from_matrix(cls, matrix: Sequence[int]) -> Orientation:
        """Read a display matrix (section 8.3.2) as FFmpeg's tools do: one that cannot be inverted turns nothing.

        Args:
            matrix: a, b, u, c, d, v, x, y, w. A pixel at (p, q) is shown at (ap + cq, bp + dq).

        Raises:
            ValueError: it turns by an angle that is no multiple of 90 degrees.
        """
        a, b, _, c, d = matrix[:5]
        if a * d == b * c:
            return cls()
        angle = math.degrees(math.atan2(b, a))
        transpose = abs(b) > abs(a)
        if abs(angle - 90 * round(angle / 90)) > 1 or (abs(c) > abs(d)) != transpose:
            raise ValueError(f"its display matrix turns frames by {angle:.0f} degrees; only multiples of 90 are read")
        return cls(True, b < 0, c < 0) if transpose else cls(False, d < 0, a < 0)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Turn images (..., H, W, C); returns (..., H, W, C) or (..., W, H, C), without a copy."""
        images = images.swapaxes(-3, -2) if self.transpose else images
        return images[..., :: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1, :]


@dataclass(frozen=True, eq=False)
class Mp4Track:
    """The first video track of a file.

    Args:
        info: what the codec configuration says.
        sample_entry: body of the sample entry box, its type included, for writing another file with it.
        config: body of its avcC or hvcC box, a decoder's extradata.
        table: the samples.
        fps: average frames per second; 25 for a single one.
        offset: int64 (S,), position of each sample in the file.
        size: int64 (S,), bytes of each sample.
        orientation: for display.
    """

    info: StreamInfo
    sample_entry: bytes
    config: bytes
    table: SampleTable
    fps: float
    offset: np.ndarray
    size: np.ndarray
    orientation: Orientation


def read_tables(path: str) -> Mp4Track | str:
    """The first video track of an MP4 or MOV file; or why the tables of the file cannot be followed.

    Raises:
        Mp4DataError: no decoder can help.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(file, 16, 0)
        if not head:
            raise Mp4DataError("is empty")
        if head[4:8] not in _FIRST_BOXES:
            return "not an MP4 file"
        return read_track(file)
    except Mp4Error as error:
        return str(error)
    finally:
        os.close(file)


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
    if fragmented:
        raise Mp4Error("no movie box before the first fragment")
    raise Mp4DataError("has no movie box: a recording or download that was cut short")


def _read_video_track(file: int, file_size: int, movie: _Box, track: _Box) -> Mp4Track:
    media = track.find(b"mdia")
    stbl = media.find(b"minf", b"stbl")
    entry, config, info = _sample_entry(stbl.find(b"stsd"))
    if movie.get(b"mvex") is not None:
        raise Mp4Error("fragmented")  # section 8.8: more samples follow outside the movie box
    time_scale = _time_scale(media.find(b"mdhd"))
    size = _sample_sizes(stbl.find(b"stsz"), file_size)
    pts = _presentation_times(stbl, len(size))
    offset = _sample_offsets(stbl, size)
    marked = _sync_samples(stbl, len(size))
    if (offset + size > file_size).any():
        missing = int((offset + size > file_size).sum())
        raise Mp4DataError(f"cut short: {missing} of {len(size)} pictures lie beyond its end")
    if (size == 0).any():
        raise Mp4Error("a sample is empty")
    order = np.argsort(pts, kind="stable")
    if (np.diff(pts[order]) == 0).any():
        raise Mp4Error("two pictures are shown at the same time")
    edit = _edit(track, movie, time_scale)
    if edit is not None:
        order = order[(pts[order] >= edit.start) & (pts[order] < edit.end)]
        if not len(order):
            raise Mp4Error("the edit list shows no picture")
        pts = pts - pts[order[0]] + edit.delay  # the first picture shown opens the presentation, as in libavformat
    span = int(pts[order[-1]] - pts[order[0]])
    fps = (len(order) - 1) * time_scale / span if span else 25.0
    table = SampleTable(pts, order, _starts(file, marked, offset, size, info), Fraction(1, time_scale))
    if not info.progressive:
        raise Mp4Error("interlaced")  # a frame may be two samples, one a field
    if info.reorder is not None and table.reorder > info.reorder:
        raise Mp4Error("pictures are reordered more than the stream allows")
    if not table.starts_in_order:
        raise Mp4Error("pictures before a key picture are shown after it")
    return Mp4Track(info, entry, config, table, fps, offset, size, _orientation(movie, track))


def _sample_entry(stsd: _Box) -> tuple[bytes, bytes, StreamInfo]:
    """The only sample entry, its decoder configuration, and what that says (section 8.5.2)."""
    entries = list(stsd.children(8))
    if b"encv" in dict(entries):
        raise Mp4DataError("is encrypted")
    if stsd.unpack("I", 4) != (1,) or len(entries) != 1:
        raise Mp4Error("several sample descriptions" if len(entries) > 1 else "no sample description")
    kind, entry = entries[0]
    if kind not in _CONFIG_BOXES:
        raise Mp4Error(f"codec {kind.decode('latin-1')}")
    # 78 bytes of VisualSampleEntry (section 12.1.3) come before the boxes inside.
    configs = [box for name, box in entry.children(78) if name == _CONFIG_BOXES[kind]]
    if len(configs) != 1:
        raise Mp4Error("no decoder configuration")
    config = bytes(configs[0].data)
    return kind + bytes(entry.data), config, parse_config(_CODECS[_CONFIG_BOXES[kind]], config)


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
            raise Mp4DataError("shows no picture: its edit list has only an empty edit")
    if count == 0:
        return _Edit(-_FOREVER, _FOREVER, 0)
    duration, media_time, rate, _ = rows[0]
    if count != 1 or media_time < 0 or rate != 1:
        raise Mp4Error("an edit list of several parts")
    return _Edit(media_time, media_time + _rescale(duration, time_scale, movie_scale), delay)


def _rescale(value: int, to_scale: int, from_scale: int) -> int:
    """Between time scales, to the nearest unit, halves up (as libavutil's av_rescale does)."""
    return (value * to_scale + from_scale // 2) // from_scale


def _sync_samples(stbl: _Box, count: int) -> np.ndarray:
    """int64, the samples marked as key pictures (section 8.6.2), rising; all where no table says which."""
    listed = stbl.get(b"stss")
    marked = listed.table(">u4")[:, 0] - 1 if listed is not None else np.arange(count)
    if len(marked) and (marked[0] < 0 or marked[-1] >= count or (np.diff(marked) <= 0).any()):
        raise Mp4Error("the table of key pictures makes no sense")
    return marked


def _starts(file: int, marked: np.ndarray, offset: np.ndarray, size: np.ndarray, info: StreamInfo) -> dict[int, Start]:
    """Samples at which decoding may start: those marked as key pictures whose slices agree."""
    starts: dict[int, Start] = {}
    for sample in marked.tolist():
        head = os.pread(file, min(_HEAD, int(size[sample])), int(offset[sample]))
        kind = start_kind(head, info)
        if kind is not Start.NO:
            starts[sample] = kind
        if sample == 0 and by_old_x264(head, info):
            raise Mp4Error("4:4:4 by an old x264")
        if not same_sets(head, info):
            raise Mp4Error("the parameter sets of the stream change")
    if starts.get(0) is not Start.ANYWHERE:
        raise Mp4Error("does not begin with a key picture")
    return starts


def _orientation(movie: _Box, track: _Box) -> Orientation:
    """Of the track's display matrix followed by the movie's (sections 8.3.2 and 8.2.2)."""
    matrices = []
    for header, place in ((track.find(b"tkhd"), 40), (movie.find(b"mvhd"), 36)):
        a, b, _, c, d = header.unpack("5i", place + 12 * (header.data[0] == 1))
        matrices.append(np.array([[a, b], [c, d]], float))
    (a, b), (c, d) = matrices[0] @ matrices[1]
    try:
        return Orientation.from_matrix([a, b, 0, c, d])
    except ValueError as error:
        raise Mp4DataError(str(error)) from None
