"""H.264 and HEVC decoder configurations: frame size, bit depth, order of output, parameter sets.

avcC and hvcC boxes are decoder configuration records of ISO/IEC 14496-15. They hold the sequence parameter set (SPS)
and picture parameter sets (PPS) of ISO/IEC 14496-10 (H.264) and ISO/IEC 23008-2 (HEVC), cited below by section.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

Buffer = bytes | memoryview

# NAL unit types: table 7-1 of both standards.
AVC_SPS, HEVC_SPS, HEVC_PPS = 7, 33, 34
# Profiles whose parameter sets carry chroma format and scaling lists (H.264, section 7.3.2.1.1).
_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}


class BitstreamError(ValueError):
    """A parameter set or configuration record that makes no sense, or that the slice parser does not know."""


@dataclass(frozen=True)
class StreamInfo:
    """What a configuration record and its parameter sets say.

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
        chroma: chroma_format_idc: 0 grey, 1 4:2:0, 2 4:2:2, 3 4:4:4.
        skipped_bits: of a slice header: of frame_num (H.264), in front of slice_type (HEVC).
        order_bits: of the picture order count in a slice header; 0: pictures are output in decoding order.
        temporal_layers: HEVC only; 0: unknown.
        sets: the parameter sets, NAL units without trailing zero bytes.
    """

    codec: str
    length_size: int
    width: int
    height: int
    pixels: int
    bit_depth: int
    progressive: bool
    reorder: int | None
    chroma: int = 1
    skipped_bits: int = 4
    order_bits: int = 4
    temporal_layers: int = 1
    sets: frozenset[bytes] = frozenset()


def parse_config(codec: str, record: Buffer) -> StreamInfo:
    """Read an avcC or hvcC record.

    Raises:
        BitstreamError: it is damaged, holds several sequence parameter sets, or uses what no known encoder writes.
    """
    parse = {"h264": parse_avc_config, "hevc": parse_hevc_config}.get(codec)
    if parse is None:
        raise BitstreamError(f"codec {codec}")
    try:
        return parse(record)
    except IndexError as error:
        raise BitstreamError("a configuration record that ends too early") from error


def parse_avc_config(record: Buffer) -> StreamInfo:
    """Read an AVCDecoderConfigurationRecord (ISO/IEC 14496-15, section 5.3.3.1)."""
    if len(record) < 8 or record[0] != 1 or record[5] & 31 == 0:
        raise BitstreamError("no sequence parameter set in avcC")
    position, units = 5, []
    for mask in (31, 255):  # sequence parameter sets, then picture parameter sets
        count, position = record[position] & mask if position < len(record) else 0, position + 1
        for _ in range(count):
            unit, position = _sized_unit(record, position)
            units.append(unit)
    sequence_sets = {unit for unit in units if unit[0] & 31 == AVC_SPS}
    if len(sequence_sets) != 1:
        raise BitstreamError("several sequence parameter sets" if sequence_sets else "no sequence parameter set")
    info = _parse_avc_sps(unescape(sequence_sets.pop()), length_size=(record[4] & 3) + 1)
    return replace(info, sets=frozenset(units))


def parse_hevc_config(record: Buffer) -> StreamInfo:
    """Read an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, section 8.3.3.1)."""
    if len(record) < 23:
        raise BitstreamError("hvcC is too short")
    length_size, layers = (record[21] & 3) + 1, record[21] >> 3 & 7
    units = []
    position = 23
    for _ in range(record[22]):
        if position + 3 > len(record):
            break
        count, position = int.from_bytes(record[position + 1 : position + 3], "big"), position + 3
        for _ in range(count):
            unit, position = _sized_unit(record, position)
            units.append(unit)
    base = {unit for unit in units if len(unit) > 2 and unit[0] & 1 == 0 and unit[1] >> 3 == 0}  # nuh_layer_id 0
    sequence_sets = {unit for unit in base if unit[0] >> 1 == HEVC_SPS}
    extra_bits = {_hevc_extra_bits(unescape(unit)) for unit in base if unit[0] >> 1 == HEVC_PPS}
    if len(sequence_sets) != 1 or len(extra_bits) != 1:
        raise BitstreamError("not one sequence parameter set in hvcC")
    info = _parse_hevc_sps(unescape(sequence_sets.pop()), length_size=length_size, layers=layers)
    return replace(info, skipped_bits=extra_bits.pop(), sets=frozenset(units))


def unescape(unit: Buffer) -> bytes:
    """Remove the emulation prevention bytes (section 7.3.1)."""
    data = bytes(unit)
    return data.replace(b"\0\0\3", b"\0\0") if b"\0\0\3" in data else data


def _sized_unit(record: Buffer, position: int) -> tuple[bytes, int]:
    """The NAL unit behind a length of 16 bits, without trailing zeros; and the position behind it."""
    end = position + 2 + int.from_bytes(record[position : position + 2], "big")
    if end > len(record) or end < position + 3:
        raise BitstreamError("a configuration record that ends too early")
    return bytes(record[position + 2 : end]).rstrip(b"\0") or b"\0", end


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

    def several(self, count: int) -> Iterator[int]:
        return (self.ue() for _ in range(count))


def _parse_avc_sps(unit: bytes, *, length_size: int) -> StreamInfo:
    """Section 7.3.2.1.1 as far as the frame size, then Annex E for the order of output."""
    bits = _Bits(unit[1:])
    profile = bits.u(8)
    bits.u(16)  # constraint flags, level
    bits.ue()  # id
    chroma, depth = 1, 8
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        if chroma == 3 and bits.u(1):
            raise BitstreamError("colour planes coded one by one")
        depth = 8 + bits.ue()
        bits.ue()  # chroma depth
        bits.u(1)
        if bits.u(1):
            _skip_scaling_lists(bits, 12 if chroma == 3 else 8)
    frame_number_bits = 4 + bits.ue()
    order_type = bits.ue()
    if order_type not in (0, 2):
        raise BitstreamError(f"pictures in order of type {order_type}")
    order_bits = 4 + bits.ue() if order_type == 0 else 0
    bits.ue()  # max_num_ref_frames
    if bits.u(1):
        raise BitstreamError("gaps in the frame numbers")  # decoders fill them in, each in its own way
    columns, rows = bits.ue() + 1, bits.ue() + 1
    frame_only = bits.u(1)
    rows *= 2 - frame_only
    if not frame_only:
        bits.u(1)
    bits.u(1)
    left, right, top, bottom = bits.several(4) if bits.u(1) else (0, 0, 0, 0)
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
        chroma=chroma,
        skipped_bits=frame_number_bits,
        order_bits=order_bits,
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
    *_, reorder = bits.several(5)
    return reorder


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
    if chroma == 3 and bits.u(1):
        raise BitstreamError("colour planes coded one by one")
    width, height = bits.ue(), bits.ue()
    pixels = width * height
    if bits.u(1):  # conformance window (equations 7-3 and 7-4)
        left, right, top, bottom = bits.several(4)
        width -= (2 if chroma in (1, 2) else 1) * (left + right)
        height -= (2 if chroma == 1 else 1) * (top + bottom)
    depth = 8 + bits.ue()
    bits.ue()  # chroma depth
    order_bits = 4 + bits.ue()
    every_layer = bits.u(1)
    for _ in range(sub_layers + 1 if every_layer else 1):
        _, reorder, _ = bits.several(3)
    return StreamInfo(
        "hevc",
        length_size,
        width=width,
        height=height,
        pixels=pixels,
        bit_depth=depth,
        progressive=True,  # fields are pictures of their own here (section D.3.3)
        reorder=reorder,
        chroma=chroma,
        order_bits=order_bits,
        temporal_layers=layers,
    )


def _hevc_extra_bits(unit: bytes) -> int:
    """num_extra_slice_header_bits of a picture parameter set (section 7.3.2.3.1)."""
    bits = _Bits(unit[2:])
    bits.ue(), bits.ue(), bits.u(1)  # ids, dependent_slice_segments_enabled_flag
    if bits.u(1):
        raise BitstreamError("pictures that are not output")  # output_flag_present_flag
    return bits.u(3)
