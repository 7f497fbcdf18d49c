"""H.264 and HEVC coded pictures, without decoding them: output order, starts of decoding, what may be left out.

Samples of MP4 and Matroska files are access units: NAL units, each behind its length (ISO/IEC 14496-15). Their slice
headers say in which order a decoder outputs the pictures (picture order count, POC), which is what the times of the
container must agree with. Sections below are those of ISO/IEC 14496-10 (H.264) and ISO/IEC 23008-2 (HEVC).
"""

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from gcvideo.video.parameter_sets import Buffer, StreamInfo, unescape

_AVC_SLICES, _AVC_IDR, _AVC_SEI, _AVC_SETS = (1, 5), 5, 6, (7, 8, 13)
_HEVC_SLICES, _HEVC_IDR, _HEVC_CRA, _HEVC_SEI, _HEVC_SETS = range(32), (19, 20), 21, 39, (32, 33, 34)
_HEVC_ENDS = (36, 37)  # of a sequence or of the stream: leading pictures behind them are not output
_FILM_GRAIN, _DISPLAY_ORIENTATION = 19, 47  # SEI payload types (section D.1)
_SLICE_HEAD = 20  # bytes of a slice that hold its picture order count
_MESSAGES_HEAD = 4096  # bytes of an SEI unit that are searched for messages
# x264 before core 34 predicted direct blocks of B pictures otherwise than the standard, and libavcodec follows it.
_OLD_X264 = re.compile(rb"x264 - core 0*([12]?\d|3[0-3])\D")
_NEXT_PERIOD = 1 << 40  # more than any picture order count


class Start(Enum):
    """Whether decoding may start at a picture."""

    NO = 0
    # A fresh decoder shows every picture from here on in presentation order; pictures decoded later but presented
    # earlier refer to what came before (open GOP). Jumping here in the middle of decoding upsets the output order.
    FRESH = 1
    # The decoder forgets everything before (IDR): pictures before it may be left out at any time.
    ANYWHERE = 2


class Picture(NamedTuple):
    """What one sample holds.

    Args:
        pictures: coded pictures that begin in it; 1 in a sound file. The other fields are those of the first one.
        change: what in it changes how pictures are decoded, output or shown, so that they must be decoded from the
            beginning of the file; empty where nothing does.
        start: whether decoding may start here. In H.264 at an IDR picture (older versions of FFmpeg leave out pictures
            right after others); in HEVC at any IRAP picture, but only IDR and BLA pictures forget what came before
            (section 7.4.2.2).
        disposable: no other picture refers to it: nal_ref_idc 0 in H.264 (section 7.4.1); in HEVC a sub-layer
            non-reference picture of the highest temporal layer (section 7.4.2.2, names that end in _N).
        anchor: the order of later pictures is coded relative to this one.
        order: low bits of the picture order count.
        number: frame_num of H.264, one more than that of the anchor before; else 0.
    """

    pictures: int
    change: str = ""
    start: Start = Start.NO
    disposable: bool = False
    anchor: bool = False
    order: int = 0
    number: int = 0


def read_picture(sample: Buffer, info: StreamInfo) -> Picture:
    """Read the slice headers of a sample, which may be cut short."""
    avc = info.codec == "h264"
    slices, sets, sei = (_AVC_SLICES, _AVC_SETS, _AVC_SEI) if avc else (_HEVC_SLICES, _HEVC_SETS, _HEVC_SEI)
    size = info.length_size
    head = bytes(sample[: size + _SLICE_HEAD])
    single = avc and len(head) > size + 1 and int.from_bytes(head[:size], "big") == len(sample) - size
    if single and head[size] & 31 in _AVC_SLICES and head[size + 1] & 128:  # the fast way for most pictures
        return _avc_picture(unescape(head[size:]), info, 1, "")
    first: Buffer = b""
    pictures, change = 0, ""
    for unit in nal_units(sample, size):
        kind = unit[0] & 31 if avc else unit[0] >> 1 & 63
        if kind in slices:
            # first_mb_in_slice is 0, first_slice_segment_in_pic_flag is 1; other layers of HEVC are not decoded
            if len(unit) > 3 and (unit[1] if avc else 0 if unit[0] & 1 or unit[1] >> 3 else unit[2]) & 128:
                first = first or unit[:_SLICE_HEAD]
                pictures += 1
        elif kind in sets:
            if bytes(unit).rstrip(b"\0") not in info.sets:
                change = "the parameter sets of the stream change"
        elif kind == sei:
            content = unescape(unit[1 if avc else 2 : _MESSAGES_HEAD])
            if not {_FILM_GRAIN, _DISPLAY_ORIENTATION}.isdisjoint(_messages(content)):
                change = "messages in the stream turn pictures or add grain"
            elif avc and _OLD_X264.search(content):
                change = "by an old x264, whose version decoders must have read"
        elif not avc and kind in _HEVC_ENDS:
            change = "a sequence ends within the stream"
    if not first:
        return Picture(0, change)
    return (_avc_picture if avc else _hevc_picture)(unescape(first), info, pictures, change)


def _avc_picture(unit: bytes, info: StreamInfo, pictures: int, change: str) -> Picture:
    """Section 7.3.3."""
    idr, reference = unit[0] & 31 == _AVC_IDR, unit[0] & 0x60 != 0
    start = Start.ANYWHERE if idr else Start.NO
    number, order = _read_codes(unit, 9, 2, info.skipped_bits, int(idr), info.order_bits)
    return Picture(pictures, change, start, not reference, reference, order, number)


def _hevc_picture(unit: bytes, info: StreamInfo, pictures: int, change: str) -> Picture:
    """Section 7.3.6.1."""
    kind, layer = unit[0] >> 1 & 63, unit[1] & 7
    start = Start.ANYWHERE if 16 <= kind <= 20 else Start.FRESH if kind == _HEVC_CRA else Start.NO
    order_bits = 0 if kind in _HEVC_IDR else info.order_bits
    flags = 2 if 16 <= kind <= 23 else 1  # no_output_of_prior_pics_flag of IRAP pictures
    _, order = _read_codes(unit, 16 + flags, 1, info.skipped_bits, 1, order_bits)
    unreferenced = kind < 16 and kind % 2 == 0
    anchor = layer == 1 and not unreferenced and not 6 <= kind <= 9  # prevTid0Pic of section 8.3.1
    disposable = unreferenced and layer == info.temporal_layers
    if start is Start.ANYWHERE and unit[2] & 0x40:  # no_output_of_prior_pics_flag
        change = "pictures are not output"
    return Picture(pictures, change, start, disposable, anchor, order)


def _read_codes(data: bytes, position: int, codes: int, size: int, more: int, more_size: int) -> tuple[int, int]:
    """From a bit on, pass Exp-Golomb codes, read ``size`` bits, pass ``more`` codes, read ``more_size`` bits."""
    value, left = int.from_bytes(data, "big"), 8 * len(data) - position
    try:
        for _ in range(codes):  # zeros, a one, and as many bits as zeros
            left = 2 * (value & (1 << left) - 1).bit_length() - left - 1
        left -= size
        number = value >> left & (1 << size) - 1
        for _ in range(more):
            left = 2 * (value & (1 << left) - 1).bit_length() - left - 1
        return number, value >> left - more_size & (1 << more_size) - 1
    except ValueError:  # a shift by less than nothing: the slice is too short
        return 0, 0


def why_not_in_order(pictures: Sequence[Picture], pts: np.ndarray, info: StreamInfo) -> str | None:
    """Why a decoder may output consecutive pictures otherwise than their times say; None where they agree.

    Args:
        pictures: in decoding order, from a start of decoding on. Pictures may be left out before one that forgets.
        pts: int64 (len(pictures),), the times that the container gives.
    """
    period = before = number = 0  # of the anchor before, its order as a whole count
    half, numbers, avc = (1 << info.order_bits) // 2, 1 << info.skipped_bits, info.codec == "h264"
    orders = []
    for place, (count, change, start, _, anchor, low_bits, frame_number) in enumerate(pictures):
        if change:
            return change
        if count != 1:
            return "a sample holds no picture or several"
        if start is Start.ANYWHERE or not place:
            period, before, number = period + _NEXT_PERIOD, low_bits, frame_number - 1
        if avc and (frame_number - number) % numbers != 1:
            return "pictures are lost"
        # the count with these low bits that is nearest to the anchor's (H.264, section 8.2.1.1; HEVC, section 8.3.1)
        order = before + half - (before + half - low_bits) % (2 * half) if half else place
        orders.append(period + order)
        if anchor:
            before, number = order, frame_number
    by_order = np.argsort(orders, kind="stable")
    if (np.diff(np.array(orders)[by_order]) <= 0).any() or (np.diff(pts[by_order]) <= 0).any():
        return "its times contradict the order of its pictures"
    return None


def nal_units(sample: Buffer, length_size: int) -> Iterator[Buffer]:
    """The NAL units of a sample; the last may be cut short where the sample is. None is empty."""
    position = 0
    while position + length_size < len(sample):
        size = int.from_bytes(sample[position : position + length_size], "big")
        position += length_size
        if size:
            yield sample[position : position + size]
        position += size


def _messages(unit: bytes) -> Iterator[int]:
    """Payload type of each message of an SEI unit, without its head (H.264, section 7.3.2.3.1)."""
    position = 0
    while position + 2 < len(unit):
        values = [0, 0]  # payload type and size: bytes of 255 and one that is less
        for index in (0, 1):
            byte = 255
            while byte == 255 and position < len(unit):
                byte, position = unit[position], position + 1
                values[index] += byte
        yield values[0]
        position += values[1]
