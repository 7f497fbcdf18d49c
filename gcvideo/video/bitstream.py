"""What the first bytes of H.264 and HEVC pictures say, without decoding them.

Samples of MP4 and Matroska files are access units: NAL units, each behind its length (ISO/IEC 14496-15). Three
questions are answered here. May decoding start at this picture? Does any other picture refer to it? And, from the
sequence parameter set: how large are the frames, and can their order of output be foretold?

References: ISO/IEC 14496-10 (H.264) and ISO/IEC 23008-2 (HEVC), both by section number below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

Buffer = bytes | memoryview


class BitstreamError(ValueError):
    """A parameter set or configuration record that makes no sense."""


class Start(Enum):
    """Whether decoding may start at a picture."""

    NO = 0
    # A fresh decoder shows every picture from here on in presentation order; pictures decoded later but presented
    # earlier refer to what came before (open GOP). Jumping here in the middle of decoding upsets the output order.
    FRESH = 1
    # The decoder forgets everything before (IDR): pictures before it may be left out at any time.
    ANYWHERE = 2


@dataclass(frozen=True)
class StreamInfo:
    """What the configuration record (avcC, hvcC) and its sequence parameter set say.

    Args:
        codec: ``h264`` or ``hevc``.
        length_size: bytes of the length in front of each NAL unit.
        width: of the decoded frames, after cropping.
        height: of the decoded frames, after cropping.
        pixels: of the coded frames, which is what a decoder allocates.
        bit_depth: bits of a luma sample.
        progressive: no picture is a single field.
        reorder: pictures that may precede a picture in decoding order and follow it in output order; None where the
            stream does not say.
        temporal_layers: HEVC only; 0: unknown.
    """

    codec: str
    length_size: int
    width: int
    height: int
    pixels: int
    bit_depth: int
    progressive: bool
    reorder: int | None
    temporal_layers: int = 1


def parse_avc_config(record: Buffer) -> StreamInfo:
    """Read an AVCDecoderConfigurationRecord (ISO/IEC 14496-15, section 5.3.3.1)."""
    if len(record) < 8 or record[0] != 1 or record[5] & 31 == 0:
        raise BitstreamError("no sequence parameter set in avcC")
    size = int.from_bytes(record[6:8], "big")
    return _parse_avc_sps(_unescape(record[8 : 8 + size]), length_size=(record[4] & 3) + 1)


def parse_hevc_config(record: Buffer) -> StreamInfo:
    """Read an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, section 8.3.3.1)."""
    if len(record) < 23:
        raise BitstreamError("hvcC is too short")
    length_size, layers = (record[21] & 3) + 1, record[21] >> 3 & 7
    position = 23
    for _ in range(record[22]):
        if position + 3 > len(record):
            break
        unit_type, count = record[position] & 63, int.from_bytes(record[position + 1 : position + 3], "big")
        position += 3
        for _ in range(count):
            size = int.from_bytes(record[position : position + 2], "big")
            if position + 2 + size > len(record):
                raise BitstreamError("hvcC ends too early")
            if unit_type == _HEVC_SPS:
                unit = _unescape(record[position + 2 : position + 2 + size])
                return _parse_hevc_sps(unit, length_size=length_size, layers=layers)
            position += 2 + size
    raise BitstreamError("no sequence parameter set in hvcC")


def start_kind(sample: Buffer, info: StreamInfo) -> Start:
    """Whether decoding may start at this access unit.

    H.264: an IDR picture, or one with a recovery point message that promises right pictures from here on
    (recovery_frame_cnt 0, section D.2.8); intra refresh promises them only some frames later. HEVC: any IRAP picture,
    but only IDR and BLA pictures forget what came before (section 7.4.2.2).
    """
    recovers = False
    for unit in nal_units(sample, info.length_size):
        if info.codec == "h264":
            unit_type = unit[0] & 31
            if unit_type == _AVC_SEI:
                recovers = recovers or _recovers_at_once(_unescape(unit[1:64]))
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


def is_disposable(sample: Buffer, info: StreamInfo) -> bool:
    """Whether no other picture refers to this one.

    H.264: nal_ref_idc 0 (section 7.4.1). HEVC: a sub-layer non-reference picture of the highest temporal layer
    (section 7.4.2.2, names that end in _N). The first slice speaks for its picture. ``sample`` may be cut short.
    """
    for unit in nal_units(sample, info.length_size):
        if info.codec == "h264":
            if 1 <= unit[0] & 31 <= 5:
                return unit[0] & 0x60 == 0
        elif (unit_type := unit[0] >> 1 & 63) < 32:
            if len(unit) < 2 or unit_type >= 16:
                return False
            return unit_type % 2 == 0 and info.temporal_layers > 0 and unit[1] & 7 == info.temporal_layers
    return False


def nal_units(sample: Buffer, length_size: int) -> Iterator[Buffer]:
    """The NAL units of a sample; the last may be cut short where the sample is. None is empty."""
    position = 0
    while position + length_size < len(sample):
        size = int.from_bytes(sample[position : position + length_size], "big")
        position += length_size
        if size:
            yield sample[position : position + size]
        position += size


# NAL unit types: table 7-1 of both standards.
_AVC_SEI = 6
_HEVC_CRA = 21
_HEVC_SPS = 33
# Profiles whose parameter sets carry chroma format and scaling lists (H.264, section 7.3.2.1.1).
_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


class _Bits:
    """Reads bits and Exp-Golomb codes (section 9.1 of both standards)."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def u(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise BitstreamError("the parameter set ends too early")
        return self._value >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise BitstreamError("not an Exp-Golomb code")
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def _unescape(unit: Buffer) -> bytes:
    """Take out the emulation prevention bytes (section 7.3.1)."""
    data = bytes(unit)
    return data.replace(b"\0\0\3", b"\0\0") if b"\0\0\3" in data else data


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
            return message[position] & 0x80 != 0  # ue(v) 0 is the single bit 1
        position += size
    return False


def _parse_avc_sps(unit: bytes, *, length_size: int) -> StreamInfo:
    """Section 7.3.2.1.1 as far as the frame size, then Annex E for the order of output."""
    bits = _Bits(unit[1:])
    profile = bits.u(8)
    bits.u(16)  # constraint flags, level
    bits.ue()  # id
    chroma, depth = 1, 8
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        separate_planes = bits.u(1) if chroma == 3 else 0
        depth = 8 + bits.ue()
        bits.ue()  # chroma depth
        bits.u(1)
        if bits.u(1):
            _skip_scaling_lists(bits, 12 if chroma == 3 else 8)
        chroma = 0 if separate_planes else chroma
    bits.ue()  # log2_max_frame_num
    order_type = bits.ue()
    if order_type == 0:
        bits.ue()
    elif order_type == 1:
        bits.u(1), bits.se(), bits.se()
        for _ in range(min(bits.ue(), 256)):
            bits.se()
    bits.ue()  # max_num_ref_frames
    bits.u(1)
    columns, rows = bits.ue() + 1, bits.ue() + 1
    frame_only = bits.u(1)
    rows *= 2 - frame_only
    if not frame_only:
        bits.u(1)
    bits.u(1)
    left = right = top = bottom = 0
    if bits.u(1):
        left, right, top, bottom = (bits.ue() for _ in range(4))
    unit_x = 1 if chroma in (0, 3) else 2  # table 6-1 and equations 7-19 to 7-22
    unit_y = (2 if chroma == 1 else 1) * (2 - frame_only)
    reorder = _avc_reorder(bits) if bits.u(1) else None
    if profile == 66 or order_type == 2:  # Baseline has no B pictures; type 2 is output in decoding order (8.2.1.3)
        reorder = 0
    return StreamInfo(
        "h264",
        length_size,
        width=16 * columns - unit_x * (left + right),
        height=16 * rows - unit_y * (top + bottom),
        pixels=256 * columns * rows,
        bit_depth=depth,
        progressive=bool(frame_only),
        reorder=reorder,
    )


def _skip_scaling_lists(bits: _Bits, count: int) -> None:
    """Section 7.3.2.1.1.1."""
    for index in range(count):
        if not bits.u(1):
            continue
        last = following = 8
        for _ in range(16 if index < 6 else 64):
            if following:
                following = (last + bits.se()) % 256
            last = following or last


def _avc_reorder(bits: _Bits) -> int | None:
    """max_num_reorder_frames of the video usability information (section E.1.1), None where it is not given."""
    if bits.u(1) and bits.u(8) == 255:  # aspect_ratio_idc: extended
        bits.u(32)
    if bits.u(1):  # overscan
        bits.u(1)
    if bits.u(1):  # video signal type
        bits.u(4)
        if bits.u(1):
            bits.u(24)
    if bits.u(1):  # chroma location
        bits.ue(), bits.ue()
    if bits.u(1):  # timing
        bits.u(65)
    has_hrd = False
    for _ in range(2):  # NAL and VCL parameters of the hypothetical reference decoder (section E.1.2)
        if bits.u(1):
            has_hrd = True
            count = bits.ue() + 1
            bits.u(8)
            for _ in range(min(count, 32)):
                bits.ue(), bits.ue(), bits.u(1)
            bits.u(20)
    if has_hrd:
        bits.u(1)
    bits.u(1)  # pic_struct_present_flag
    if not bits.u(1):  # bitstream_restriction_flag
        return None
    bits.u(1)
    for _ in range(4):
        bits.ue()
    return bits.ue()


def _parse_hevc_sps(unit: bytes, *, length_size: int, layers: int) -> StreamInfo:
    """Section 7.3.2.2.1 as far as the order of output."""
    bits = _Bits(unit[2:])
    bits.u(4)
    sub_layers = bits.u(3)
    bits.u(1)
    bits.u(96)  # profile, tier and level (section 7.3.3)
    present = [(bits.u(1), bits.u(1)) for _ in range(sub_layers)]
    if sub_layers:
        bits.u(2 * (8 - sub_layers))
    for profile, level in present:
        bits.u(88 * profile + 8 * level)
    bits.ue()  # id
    chroma = bits.ue()
    if chroma == 3:
        bits.u(1)
    width, height = bits.ue(), bits.ue()
    pixels = width * height
    if bits.u(1):  # conformance window (equations 7-3 and 7-4)
        left, right, top, bottom = (bits.ue() for _ in range(4))
        width -= (2 if chroma in (1, 2) else 1) * (left + right)
        height -= (2 if chroma == 1 else 1) * (top + bottom)
    depth = 8 + bits.ue()
    bits.ue()  # chroma depth
    bits.ue()  # log2_max_pic_order_cnt_lsb
    every_layer = bits.u(1)
    for _ in range(sub_layers + 1 if every_layer else 1):
        _, reorder, _ = bits.ue(), bits.ue(), bits.ue()
    return StreamInfo(
        "hevc",
        length_size,
        width=width,
        height=height,
        pixels=pixels,
        bit_depth=depth,
        progressive=True,  # fields are pictures of their own here (section D.3.3)
        reorder=reorder,
        temporal_layers=layers,
    )
