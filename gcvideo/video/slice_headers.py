"""H.264 and HEVC coded pictures, without decoding them: output order, starts of decoding, what may be left out.

Samples of MP4 and Matroska files are access units: NAL units, each behind its length (ISO/IEC 14496-15). Their slice
headers say in which order a decoder outputs the pictures (picture order count, POC), which is what the times of the
container must agree with. Sections below are those of ISO/IEC 14496-10 (H.264) and ISO/IEC 23008-2 (HEVC).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from gcvideo.video.parameter_sets import Buffer, StreamInfo, unescape

_AVC_SEI, _HEVC_IDR, _HEVC_CRA = 6, (19, 20), 21
_AVC_SETS, _HEVC_SETS = (7, 8, 13), (32, 33, 34)
_SLICE_HEAD = 24  # bytes of a slice that hold its picture order count
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
        pictures: coded pictures that begin in it; 1 in a sound file.
        order: low bits of the picture order count.
        number: frame_num of H.264, one more than that of the anchor before; else 0.
        forgets: the decoder forgets everything before, and counts the order from 0 again.
        anchor: the order of later pictures is coded relative to this one.
        disposable: no other picture refers to it.
        same_sets: every parameter set in it is one of the configuration record's.
    """

    pictures: int
    order: int
    number: int
    forgets: bool
    anchor: bool
    disposable: bool
    same_sets: bool


def read_picture(sample: Buffer, info: StreamInfo) -> Picture:
    """Read the slice headers of a sample.

    Disposable pictures are those of nal_ref_idc 0 in H.264 (section 7.4.1), and in HEVC the sub-layer non-reference
    pictures of the highest temporal layer (section 7.4.2.2, names that end in _N).
    """
    count, first, avc, same_sets = 0, b"", info.codec == "h264", True
    for unit in nal_units(sample, info.length_size):
        kind = unit[0] & 31 if avc else unit[0] >> 1 & 63
        if kind in (1, 5) if avc else kind < 32:
            # first_mb_in_slice is 0, first_slice_segment_in_pic_flag is 1; other layers of HEVC are not decoded
            begins = len(unit) > 3 and (unit[1] if avc else unit[2] if unit[1] >> 3 == 0 == unit[0] & 1 else 0) & 128
            if begins:
                count, first = count + 1, first or unescape(unit[:_SLICE_HEAD])
        elif _holds_set(unit, info):
            same_sets = same_sets and bytes(unit).rstrip(b"\0") in info.sets
    if not first:
        return Picture(0, 0, 0, False, False, False, same_sets)
    if avc:
        return _avc_picture(first, info, count, same_sets)
    return _hevc_picture(first, info, count, same_sets)


def _avc_picture(unit: bytes, info: StreamInfo, count: int, same_sets: bool) -> Picture:
    """Section 7.3.3."""
    idr, reference = unit[0] & 31 == 5, unit[0] & 0x60 != 0
    number, order = _read_codes(unit[1:], 0, 3, info.skipped_bits, int(idr), info.order_bits)
    return Picture(count, order, number, idr, reference, not reference, same_sets)


def _hevc_picture(unit: bytes, info: StreamInfo, count: int, same_sets: bool) -> Picture:
    """Section 7.3.6.1."""
    kind, layer = unit[0] >> 1 & 63, unit[1] & 7
    intra = 16 <= kind <= 23  # then no_output_of_prior_pics_flag follows the first flag
    order_bits = 0 if kind in _HEVC_IDR else info.order_bits
    _, order = _read_codes(unit[2:], 1 + intra, 1, info.skipped_bits, 1, order_bits)
    unreferenced = kind < 16 and kind % 2 == 0
    anchor = layer == 1 and not unreferenced and not 6 <= kind <= 9  # prevTid0Pic of section 8.3.1
    return Picture(count, order, 0, 16 <= kind <= 20, anchor, unreferenced and layer == info.temporal_layers, same_sets)


def _read_codes(data: bytes, position: int, codes: int, size: int, more: int, more_size: int) -> tuple[int, int]:
    """From a bit on, pass Exp-Golomb codes, read ``size`` bits, pass ``more`` codes, read ``more_size`` bits."""
    bits = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}1"  # of damaged data, codes end at the last bit
    values = []
    for passed, read in ((codes, size), (more, more_size)):
        for _ in range(passed):
            position = 2 * bits.index("1", min(position, len(bits) - 1)) - position + 1
        values.append(int(bits[position : position + read] or "0", 2))
        position += read
    return values[0], values[1]


def why_not_in_order(pictures: Sequence[Picture], pts: np.ndarray, info: StreamInfo) -> str | None:
    """Why a decoder may output consecutive pictures otherwise than their times say; None where they agree.

    Args:
        pictures: in decoding order, from a start of decoding on. Pictures may be left out before one that forgets.
        pts: int64 (len(pictures),), the times that the container gives.
    """
    if not all(picture.same_sets for picture in pictures):
        return "the parameter sets of the stream change"
    if any(picture.pictures != 1 for picture in pictures):
        return "a sample holds no picture or several"
    period = before = number = 0  # of the anchor before, its order as a whole count
    half, numbers = 1 << max(info.order_bits - 1, 0), 1 << info.skipped_bits
    orders = []
    for place, picture in enumerate(pictures):
        if picture.forgets or not place:
            period, before, number = period + _NEXT_PERIOD, picture.order, picture.number - 1
        if info.codec == "h264" and (picture.number - number) % numbers != 1:
            return "pictures are lost"
        # the count with these low bits that is nearest to the anchor's (H.264, section 8.2.1.1; HEVC, section 8.3.1)
        order = before + half - (before + half - picture.order) % (2 * half) if info.order_bits else place
        orders.append(period + order)
        if picture.anchor:
            before, number = order, picture.number
    by_order = np.argsort(orders, kind="stable")
    if (np.diff(np.array(orders)[by_order]) <= 0).any() or (np.diff(pts[by_order]) <= 0).any():
        return "its times contradict the order of its pictures"
    return None


def start_kind(sample: Buffer, info: StreamInfo) -> Start:
    """Whether decoding may start at this access unit.

    H.264: an IDR picture, or one with a recovery point message that promises exact pictures from here on
    (recovery_frame_cnt 0 and exact_match_flag 1, section D.2.8); intra refresh promises them only some frames later.
    HEVC: any IRAP picture, but only IDR and BLA pictures forget what came before (section 7.4.2.2).
    """
    recovers = False
    for unit in nal_units(sample, info.length_size):
        if info.codec == "h264":
            unit_type = unit[0] & 31
            if unit_type == _AVC_SEI:
                recovers = recovers or _recovers_at_once(unescape(unit[1:64]))
            elif 1 <= unit_type <= 5:
                if unit_type == 5:
                    return Start.ANYWHERE
                return Start.FRESH if recovers else Start.NO
        else:
            unit_type = unit[0] >> 1 & 63
            if unit_type < 32:
                if 16 <= unit_type <= 20:  # BLA and IDR
                    return Start.ANYWHERE
                return Start.FRESH if unit_type == _HEVC_CRA else Start.NO
    return Start.NO


def same_sets(sample: Buffer, info: StreamInfo) -> bool:
    """Whether every parameter set in a sample is one of the configuration record's. The sample may be cut short."""
    for unit in nal_units(sample, info.length_size):
        if _holds_set(unit, info) and bytes(unit).rstrip(b"\0") not in info.sets:
            return False
    return True


def _holds_set(unit: Buffer, info: StreamInfo) -> bool:
    return unit[0] & 31 in _AVC_SETS if info.codec == "h264" else unit[0] >> 1 & 63 in _HEVC_SETS


def by_old_x264(first_sample: Buffer, info: StreamInfo) -> bool:
    """Whether a decoder must have seen the first picture's message to decode any other.

    x264 before core 151 predicts 4:4:4 with an 8x8 transform otherwise than the standard; libavcodec follows it where
    it has read the version from the message of the first picture.
    """
    core = re.search(rb"x264 - core (\d+)", first_sample) if info.chroma == 3 and info.codec == "h264" else None
    return core is not None and int(core[1]) < 151


def nal_units(sample: Buffer, length_size: int) -> Iterator[Buffer]:
    """The NAL units of a sample; the last may be cut short where the sample is. None is empty."""
    position = 0
    while position + length_size < len(sample):
        size = int.from_bytes(sample[position : position + length_size], "big")
        position += length_size
        if size:
            yield sample[position : position + size]
        position += size


def _recovers_at_once(message: bytes) -> bool:
    """Whether an SEI unit has a recovery point message with recovery_frame_cnt 0 (sections 7.3.2.3 and D.1.8)."""
    position = 0
    while position + 2 < len(message):
        kind = size = 0
        while position < len(message) and message[position] == 0xFF:
            kind, position = kind + 255, position + 1
        kind, position = kind + message[position] if position < len(message) else -1, position + 1
        while position < len(message) and message[position] == 0xFF:
            size, position = size + 255, position + 1
        if position + 1 >= len(message):
            return False
        size, position = size + message[position], position + 1
        if kind == 6:
            return message[position] & 0xC0 == 0xC0  # ue(v) 0 is the single bit 1; then exact_match_flag
        position += size
    return False
