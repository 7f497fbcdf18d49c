"""H.264 and HEVC decoder configurations: frame size, bit depth, order of output, parameter sets.

avcC and hvcC boxes are decoder configuration records of ISO/IEC 14496-15. They hold the sequence parameter set (SPS)
and picture parameter sets (PPS) of ISO/IEC 14496-10 (H.264) and ISO/IEC 23008-2 (HEVC), cited below by section.
"""

from dataclasses import dataclass
from typing import Any

Buffer = bytes | memoryview

# NAL unit types: table 7-1 of both standards.
AVC_SPS, HEVC_SPS, HEVC_PPS = 7, 33, 34
# Profiles whose parameter sets carry chroma format and scaling lists (H.264, section 7.3.2.1.1).
_HIGH_PROFILES = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
# matrix_coefficients that libswscale converts (H.264, table E-5); older versions take others for BT.601.
_MATRICES = {*range(8), 9}


class BitstreamError(ValueError):
    """Tables, parameter sets or slices make no sense, or are not followed here; a demuxer may read the file."""


@dataclass(frozen=True)
class StreamInfo:
    """What a configuration record and its parameter sets say.

    Args:
        codec: ``h264`` or ``hevc``.
        length_size: bytes of the length in front of each NAL unit.
        sets: the parameter sets, NAL units without trailing zero bytes.
        width: of the decoded frames, after cropping.
        height: of the decoded frames, after cropping.
        bit_depth: bits of a luma sample.
        reorder: pictures that may precede a picture in decoding order and follow it in output order; None where the
            stream does not say.
        order_bits: of the picture order count in a slice header; 0: pictures are output in decoding order.
        skipped_bits: of a slice header: of frame_num (H.264), in front of slice_type (HEVC).
        temporal_layers: HEVC only; 0: unknown.
    """

    codec: str
    length_size: int
    sets: frozenset[bytes]
    width: int
    height: int
    bit_depth: int
    reorder: int | None
    order_bits: int
    skipped_bits: int
    temporal_layers: int = 1


def parse_config(codec: str, record: Buffer) -> StreamInfo:
    """Read an avcC or hvcC record.

    Raises:
        BitstreamError: it tells of what slice headers are not read of: several sequence parameter sets, interlaced
            pictures, and what hardly any encoder writes.
        ValueError, LookupError: it is damaged, or of another codec.
    """
    return {"h264": _parse_avc_config, "hevc": _parse_hevc_config}[codec](record)


def _parse_avc_config(record: Buffer) -> StreamInfo:
    """AVCDecoderConfigurationRecord (ISO/IEC 14496-15, section 5.3.3.1)."""
    sequence_sets, position = _sized_units(record, 6, record[5] & 31)
    units = sequence_sets + _sized_units(record, position + 1, record[position])[0]  # with the picture parameter sets
    sequence_set = _only({unit for unit in units if unit[0] & 31 == AVC_SPS})
    return StreamInfo("h264", (record[4] & 3) + 1, frozenset(units), *_parse_avc_sps(unescape(sequence_set)))


def _parse_hevc_config(record: Buffer) -> StreamInfo:
    """HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, section 8.3.3.1)."""
    length_size, layers = (record[21] & 3) + 1, record[21] >> 3 & 7
    units, position = list[bytes](), 23
    for _ in range(record[22]):
        more, position = _sized_units(record, position + 3, record[position + 1] << 8 | record[position + 2])
        units += more
    base = {unit for unit in units if unit[0] & 1 == 0 and unit[1] >> 3 == 0}  # nuh_layer_id 0
    sequence_set = _only({unit for unit in base if unit[0] >> 1 == HEVC_SPS})
    extra_bits = _only({_hevc_extra_bits(unescape(unit)) for unit in base if unit[0] >> 1 == HEVC_PPS})
    sps = _parse_hevc_sps(unescape(sequence_set))
    return StreamInfo("hevc", length_size, frozenset(units), *sps, skipped_bits=extra_bits, temporal_layers=layers)


def unescape(unit: Buffer) -> bytes:
    """Remove the emulation prevention bytes (section 7.3.1)."""
    data = bytes(unit)
    return data.replace(b"\0\0\3", b"\0\0") if b"\0\0\3" in data else data


def _sized_units(record: Buffer, position: int, count: int) -> tuple[list[bytes], int]:
    """NAL units, each behind a length of 16 bits, without trailing zeros; and the position behind them."""
    units = []
    for _ in range(count):
        start, position = position + 2, position + 2 + int.from_bytes(record[position : position + 2], "big")
        units.append(bytes(record[start:position]).rstrip(b"\0"))
    return units, position


def _only(found: set[Any]) -> Any:
    if len(found) != 1:
        raise BitstreamError("several parameter sets" if found else "no parameter set")
    return found.pop()


class _Bits:
    """Reads bits and Exp-Golomb codes (section 9.1 of both standards)."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def u(self, count: int) -> int:
        self._left -= count  # where it falls below 0, Python refuses to shift
        return self._value >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def several(self, count: int) -> list[int]:
        return [self.ue() for _ in range(count)]

    def optional(self, count: int) -> int:
        """Bits that are there if the flag in front of them is set; else 0."""
        return self.u(count) if self.u(1) else 0


def _parse_avc_sps(unit: bytes) -> tuple[int, int, int, int | None, int, int]:
    """Section 7.3.2.1.1 as far as the frame size, then Annex E; returns what ``StreamInfo`` takes."""
    bits = _Bits(unit[1:])
    profile = bits.u(8)
    bits.u(16)  # constraint flags, level
    bits.ue()  # id
    chroma, depth = 1, 8
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        if chroma == 3:  # a decoder must know of x264 before core 151, whose 8x8 transform was not the standard's
            raise BitstreamError("4:4:4")
        depth = 8 + bits.ue()
        bits.ue()  # chroma depth
        bits.u(1)
        if bits.u(1):
            raise BitstreamError("scaling lists")
    number_bits = 4 + bits.ue()
    order_type = bits.ue()
    if order_type not in (0, 2):
        raise BitstreamError(f"pictures in order of type {order_type}")
    order_bits = 4 + bits.ue() if order_type == 0 else 0
    bits.ue()  # max_num_ref_frames
    if bits.u(1):
        raise BitstreamError("gaps in the frame numbers")  # decoders fill them in, each in its own way
    width, height = 16 * bits.ue() + 16, 16 * bits.ue() + 16
    if not bits.u(1):
        raise BitstreamError("interlaced")  # a frame may be two samples, one a field
    bits.u(1)
    if bits.u(1):  # cropping (table 6-1 and equations 7-19 to 7-22)
        left, right, top, bottom = bits.several(4)
        if left:
            raise BitstreamError("cropped on the left")  # which older versions of FFmpeg round
        width -= (2 if chroma in (1, 2) else 1) * right
        height -= (2 if chroma == 1 else 1) * (top + bottom)
    reorder = _avc_reorder(bits) if bits.u(1) else None
    if profile == 66 or order_type == 2:  # Baseline has no B pictures; type 2 is output in decoding order (8.2.1.3)
        reorder = 0
    return width, height, depth, reorder, order_bits, number_bits


def _avc_reorder(bits: _Bits) -> int | None:
    """max_num_reorder_frames of the video usability information (section E.1.1), None where it is not given."""
    if bits.optional(8) == 255:  # aspect_ratio_idc: extended
        bits.u(32)
    bits.optional(1)  # overscan
    if bits.u(1):  # video signal type
        bits.u(4)
        if (matrix := bits.optional(24) & 255) not in _MATRICES:
            raise BitstreamError(f"colours by matrix {matrix}")
    if bits.u(1):  # chroma location
        bits.several(2)
    bits.optional(65)  # timing
    has_hrd = False
    for _ in range(2):  # NAL and VCL parameters of the hypothetical reference decoder (section E.1.2)
        if bits.u(1):
            has_hrd = True
            count = bits.ue() + 1
            bits.u(8)
            for _ in range(min(count, 32)):
                bits.several(2)
                bits.u(1)
            bits.u(20)
    bits.u(2 if has_hrd else 1)  # low_delay_hrd_flag, pic_struct_present_flag
    if not bits.u(1):  # bitstream_restriction_flag
        return None
    bits.u(1)
    return bits.several(5)[-1]


def _parse_hevc_sps(unit: bytes) -> tuple[int, int, int, int, int]:
    """Section 7.3.2.2.1 as far as the order of output; returns what ``StreamInfo`` takes."""
    bits = _Bits(unit[2:])
    bits.u(4)
    sub_layers = bits.u(3)
    bits.u(1)
    bits.u(96)  # profile, tier and level (section 7.3.3)
    present = [(bits.u(1), bits.u(1)) for _ in range(sub_layers)]
    bits.u(2 * (8 - sub_layers) if sub_layers else 0)
    for profile, level in present:
        bits.u(88 * profile + 8 * level)
    bits.ue()  # id
    chroma = bits.ue()
    if chroma == 3 and bits.u(1):
        raise BitstreamError("colour planes coded one by one")
    width, height = bits.ue(), bits.ue()
    if bits.u(1):  # conformance window (equations 7-3 and 7-4)
        left, right, top, bottom = bits.several(4)
        width -= (2 if chroma in (1, 2) else 1) * (left + right)
        height -= (2 if chroma == 1 else 1) * (top + bottom)
    depth = 8 + bits.ue()
    bits.ue()  # chroma depth
    order_bits = 4 + bits.ue()
    layers = sub_layers + 1 if bits.u(1) else 1
    reorder = bits.several(3 * layers)[-2]  # of the highest layer; the buffer before it and the latency behind it
    return width, height, depth, reorder, order_bits


def _hevc_extra_bits(unit: bytes) -> int:
    """num_extra_slice_header_bits of a picture parameter set (section 7.3.2.3.1)."""
    bits = _Bits(unit[2:])
    bits.several(2)  # ids
    bits.u(1)  # dependent_slice_segments_enabled_flag
    if bits.u(1):
        raise BitstreamError("pictures that are not output")  # output_flag_present_flag
    return bits.u(3)
