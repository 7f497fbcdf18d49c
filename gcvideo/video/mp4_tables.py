"""The tables of an MP4 or MOV file: where each coded picture of the video track lies, and when it is shown.

Only the movie box is read, in about a millisecond; no decoder is involved. Boxes are those of ISO/IEC 14496-12 (the
section numbers in this file), codec configurations those of ISO/IEC 14496-15. Nothing that the file says is trusted:
every length is checked against what is there, here or where the bytes are unpacked, and a file that does not fit is not
followed.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gcvideo.video.decode_plan import DecodeError, Orientation, SampleTable
from gcvideo.video.parameter_sets import BitstreamError, Buffer, StreamInfo, parse_config
from gcvideo.video.slice_headers import Start, read_picture

# First bytes of a key sample that are searched for its picture: parameter sets and messages come before it.
_HEAD = 4096
_MOST_AT_ONCE = 1 << 30  # bytes; Linux reads less than 2 GiB by one call
# Comment in the files that gcvideo prepare transcode writes.
PREPARED = b"gcvideo prepare transcode"
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_AVC, _HEVC = ("h264", b"avcC"), ("hevc", b"hvcC")
_CODECS = {b"avc1": _AVC, b"avc3": _AVC, b"hvc1": _HEVC, b"hev1": _HEVC}  # and the box of the decoder configuration
Boxes = dict[bytes, memoryview]


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
        prepared: whether ``gcvideo prepare transcode`` wrote it.
    """

    info: StreamInfo
    sample_entry: bytes
    config: bytes
    table: SampleTable
    fps: float
    offset: np.ndarray
    size: np.ndarray
    orientation: Orientation
    prepared: bool = False


def read_tables(path: str) -> Mp4Track | str:
    """The first video track of an MP4 or MOV file; or why the tables of the file cannot be followed.

    They cannot where the file is not MP4, fragmented, not H.264 or HEVC, of several edits, or contradicts itself.

    Raises:
        DecodeError: no decoder can help: samples lie beyond the end of the file, or are encrypted.
    """
    with open(path, "rb", buffering=0) as opened:
        file, file_size = opened.fileno(), os.fstat(opened.fileno()).st_size
        try:
            movie = _movie_box(file, file_size)
            for kind, body in _boxes(movie):
                if kind == b"trak":
                    media = _inside((track := _inside(body))[b"mdia"])
                    if media[b"hdlr"][8:12] == b"vide":
                        return _read_video_track(file, file_size, _inside(movie), track, media)
            return "no video track"
        except DecodeError:
            raise
        except BitstreamError as error:
            return str(error)
        except KeyError as error:
            return f"no {error.args[0].decode('latin-1')} box"
        except (struct.error, IndexError, ArithmeticError, ValueError) as error:
            return f"damaged tables ({error})"


def read_samples(file: int, track: Mp4Track, samples: Sequence[int]) -> dict[int, memoryview]:
    """The bytes of some samples; where little lies between them, by one call."""
    sizes, offsets = track.size[samples], track.offset[samples]
    first, total = int(offsets.min()), int(sizes.sum())
    extent = int((offsets + sizes).max()) - first
    places = list(zip(samples, offsets.tolist(), sizes.tolist(), strict=True))
    if extent <= min(2 * total, _MOST_AT_ONCE):
        block = memoryview(os.pread(file, extent, first))
        if len(block) == extent:  # else what lies between the samples may not be readable
            return {sample: block[offset - first : offset - first + size] for sample, offset, size in places}
    data = {sample: memoryview(os.pread(file, size, offset)) for sample, offset, size in places}
    if sum(map(len, data.values())) < total:
        raise OSError("the file has become shorter while it was read")
    return data


def _boxes(data: memoryview, start: int = 0) -> Iterator[tuple[bytes, memoryview]]:
    """Types and bodies of the boxes in a body, from a byte on (section 4.2)."""
    position, end = start, len(data)
    while position + 8 <= end:
        kind, header, size = _box_head(data[position : position + 16], end - position)
        if position + size > end:
            raise BitstreamError(f"box {kind!r} is longer than what holds it")
        yield kind, data[position + header : position + size]
        position += size


def _inside(data: memoryview, start: int = 0) -> Boxes:
    """The first box of each type in a body, from a byte on."""
    return dict(reversed([*_boxes(data, start)]))


def _table(data: memoryview, dtype: str, columns: int = 1, *, start: int = 4) -> np.ndarray:
    """A count, at byte ``start``, and as many rows of big-endian integers; int64 (rows, columns)."""
    (count,) = struct.unpack_from(">I", data, start)
    return np.frombuffer(data, dtype, count * columns, start + 4).astype(np.int64).reshape(count, columns)


def _box_head(head: Buffer, left: int) -> tuple[bytes, int, int]:
    """Type, bytes of the head, and bytes of the whole box, of which at most ``left`` are there (section 4.2)."""
    size, kind = struct.unpack_from(">I4s", head)
    header = 8
    if size == 1:
        size, header = struct.unpack_from(">Q", head, 8)[0], 16
    elif size == 0:  # to the end
        size = left
    if size < header:
        raise BitstreamError(f"box {kind!r} is shorter than its head")
    return kind, header, size


def _movie_box(file: int, file_size: int) -> memoryview:
    """Find and read the moov box without reading the media data."""
    position = 0
    if not file_size:
        raise DecodeError("is empty")
    for _ in range(4096):  # a fragmented file may have thousands of boxes: it is refused anyway
        head = os.pread(file, 16, position)
        if not position and head[4:8] not in _FIRST_BOXES:
            raise BitstreamError("not an MP4 file")
        if len(head) < 8:
            break
        kind, header, size = _box_head(head, file_size - position)
        if kind in (b"moof", b"meta"):  # a fragment, or a still picture
            raise BitstreamError("no movie box in front")
        if kind == b"moov":
            if position + size > file_size:
                raise BitstreamError("the movie box is longer than the file")
            return memoryview(os.pread(file, size - header, position + header))
        position += size
    raise DecodeError("has no movie box: a recording or download that was cut short")


def _read_video_track(file: int, file_size: int, movie: Boxes, track: Boxes, media: Boxes) -> Mp4Track:
    stbl = _inside(_inside(media[b"minf"])[b"stbl"])
    entry, config, info = _sample_entry(stbl[b"stsd"])
    if b"mvex" in movie:
        raise BitstreamError("fragmented")  # section 8.8: more samples follow outside the movie box
    time_scale = _time_scale(media[b"mdhd"])
    same, count = struct.unpack_from(">II", stbl[b"stsz"], 4)  # section 8.7.3.2: one size for all, or a table
    if same * count > file_size:
        raise DecodeError(f"cut short: {count} pictures of {same} bytes are more than the file")
    size = np.full(count, same, np.int64) if same else _table(stbl[b"stsz"], ">u4", start=8)[:, 0]
    pts = _presentation_times(stbl, len(size))
    offset = _sample_offsets(stbl, size)
    if (offset + size > file_size).any():
        missing = int((offset + size > file_size).sum())
        raise DecodeError(f"cut short: {missing} of {len(size)} pictures lie beyond its end")
    if (size == 0).any():
        raise BitstreamError("a sample is empty")
    order = np.argsort(pts, kind="stable")
    if (np.diff(pts[order]) == 0).any():
        raise BitstreamError("two pictures are shown at the same time")
    edit = _edit(track, movie, time_scale)
    if edit is not None:
        start, end, delay = edit
        order = order[(pts[order] >= start) & (pts[order] < end)]
        if not len(order):
            raise BitstreamError("the edit list shows no picture")
        pts = pts - pts[order[0]] + delay  # the first picture shown opens the presentation, as in libavformat
    span = int(pts[order[-1]] - pts[order[0]])
    fps = (len(order) - 1) * time_scale / span if span else 25.0
    table = SampleTable(pts, order, _starts(file, stbl, offset, size, info), Fraction(1, time_scale))
    if info.reorder is not None and table.reorder > info.reorder:
        raise BitstreamError("pictures are reordered more than the stream allows")
    if not table.starts_in_order:
        raise BitstreamError("pictures before a key picture are shown after it")
    prepared = PREPARED in bytes(movie.get(b"udta", b""))
    return Mp4Track(info, entry, config, table, fps, offset, size, _orientation(movie, track), prepared)


def _sample_entry(stsd: memoryview) -> tuple[bytes, bytes, StreamInfo]:
    """The only sample entry, its decoder configuration, and what that says (section 8.5.2)."""
    entries = list(_boxes(stsd, 8))
    if b"encv" in dict(entries):
        raise DecodeError("is encrypted")
    if struct.unpack_from(">I", stsd, 4) != (1,) or len(entries) != 1:
        raise BitstreamError("several sample descriptions" if len(entries) > 1 else "no sample description")
    kind, entry = entries[0]
    if kind not in _CODECS:
        raise BitstreamError(f"codec {kind.decode('latin-1')}")
    codec, config_box = _CODECS[kind]
    # 78 bytes of VisualSampleEntry (section 12.1.3) come before the boxes inside.
    config = _inside(entry, 78).get(config_box)
    if config is None:
        raise BitstreamError("no decoder configuration")
    info = parse_config(codec, config)
    if struct.unpack_from(">HH", entry, 24) != (info.width, info.height):
        raise BitstreamError("another frame size than the stream's")
    return kind + bytes(entry), bytes(config), info


def _time_scale(header: memoryview) -> int:
    """Units per second of an mdhd (section 8.4.2) or mvhd (section 8.2.2) box."""
    return int.from_bytes(header[20:24] if header[0] == 1 else header[12:16], "big")


def _presentation_times(stbl: Boxes, count: int) -> np.ndarray:
    """Decoding times (section 8.6.1.2) plus composition offsets (section 8.6.1.3), in media time units."""
    durations = _table(stbl[b"stts"], ">u4", 2)
    if (durations[:, 1] >= 1 << 31).any():
        raise BitstreamError("times that run backwards")
    # Signed in version 1; writers of version 0 mean it signed too.
    shifts = _table(stbl[b"ctts"], ">i4", 2) if b"ctts" in stbl else np.array([[count, 0]])
    if int(durations[:, 0].sum()) != count or int(shifts[:, 0].sum()) != count:
        raise BitstreamError("a table of times does not cover the samples")
    steps = np.repeat(durations[:, 1], durations[:, 0])
    return np.cumsum(steps) - steps + np.repeat(shifts[:, 1], shifts[:, 0])


def _sample_offsets(stbl: Boxes, size: np.ndarray) -> np.ndarray:
    """Chunk offsets (section 8.7.5) spread over the samples of each chunk (section 8.7.4)."""
    chunks = (_table(stbl[b"co64"], ">u8") if b"co64" in stbl else _table(stbl[b"stco"], ">u4"))[:, 0]
    runs = _table(stbl[b"stsc"], ">u4", 3)  # first chunk (from 1), samples per chunk, sample description
    first = runs[:, 0]
    if not len(chunks) or not len(runs) or first[0] != 1 or (np.diff(first) <= 0).any() or first[-1] > len(chunks):
        raise BitstreamError("chunk tables contradict each other")
    if (chunks < 0).any() or (runs[:, 2] != 1).any():
        raise BitstreamError("chunk tables make no sense")
    per_chunk = np.repeat(runs[:, 1], np.diff(np.append(first, len(chunks) + 1)))
    if int(per_chunk.sum()) != len(size):
        raise BitstreamError("chunks do not cover the samples")
    first_sample = np.cumsum(per_chunk) - per_chunk
    before_sample = np.cumsum(size) - size
    before_chunk = before_sample[np.minimum(first_sample, len(size) - 1)]
    return before_sample + np.repeat(chunks - before_chunk, per_chunk)


def _edit(track: Boxes, movie: Boxes, time_scale: int) -> tuple[int, int, int] | None:
    """The only part of the media that is shown (section 8.6.6); None where there is no edit list.

    Returns:
        media times from which on and before which pictures are shown, and the presentation time of the first one.
    """
    listed = _inside(track[b"edts"]).get(b"elst") if b"edts" in track else None
    if listed is None:
        return None
    (count,) = struct.unpack_from(">I", listed, 4)
    layout = ">Qqhh" if listed[0] == 1 else ">Iihh"
    rows = [struct.unpack_from(layout, listed, 8 + i * struct.calcsize(layout)) for i in range(min(count, 3))]
    movie_scale = _time_scale(movie[b"mvhd"])

    def rescaled(duration: int) -> int:  # to the nearest unit, halves up, as libavutil's av_rescale does
        return (duration * time_scale + movie_scale // 2) // movie_scale

    delay = 0
    if rows and rows[0][1] == -1:  # an empty edit: the track starts late
        delay = rescaled(rows.pop(0)[0])
        if not rows:
            raise DecodeError("shows no picture: its edit list has only an empty edit")
    if not rows:
        return None
    duration, media_time, rate, _ = rows[0]
    if len(rows) != 1 or media_time < 0 or rate != 1:
        raise BitstreamError("an edit list of several parts")
    return media_time, media_time + rescaled(duration), delay


def _starts(file: int, stbl: Boxes, offset: np.ndarray, size: np.ndarray, info: StreamInfo) -> dict[int, Start]:
    """Samples at which decoding may start: those marked as key pictures (section 8.6.2) whose slices agree."""
    marked = _table(stbl[b"stss"], ">u4")[:, 0] - 1 if b"stss" in stbl else np.arange(len(size))
    if len(marked) and (marked[0] < 0 or marked[-1] >= len(size) or (np.diff(marked) <= 0).any()):
        raise BitstreamError("the table of key pictures makes no sense")
    starts: dict[int, Start] = {}
    for sample in marked.tolist():
        head = os.pread(file, min(_HEAD, int(size[sample])), int(offset[sample]))
        picture = read_picture(head, info)
        if picture.start is not Start.NO:
            starts[sample] = picture.start
        if picture.change:
            raise BitstreamError(picture.change)
    if starts.get(0) is not Start.ANYWHERE:
        raise BitstreamError("does not begin with a key picture")
    return starts


def _orientation(movie: Boxes, track: Boxes) -> Orientation:
    """Of the track's display matrix followed by the movie's (sections 8.3.2 and 8.2.2)."""
    headers = (track[b"tkhd"], 40), (movie[b"mvhd"], 36)
    of_track, of_movie = (struct.unpack_from(">9i", header, at + 12 * (header[0] == 1)) for header, at in headers)
    return Orientation.from_matrix(np.reshape(of_track, (3, 3))[:2, :2] @ np.reshape(of_movie, (3, 3))[:2, :2])
