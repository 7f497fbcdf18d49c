"""Videos that only a demuxer can read: Matroska, WebM, AVI, MPEG-TS, fragmented MP4, and codecs other than H.264/HEVC.

Where the container's times can be trusted the same plan is followed as for MP4: from the right key picture, only what
is needed, each frame known by its time. Elsewhere (AVI stores no presentation times; MPEG-TS none of the whole) the
frames are counted by decoding from the beginning. That is slow, and right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from gcvideo.video.bitstream import (
    BitstreamError,
    Start,
    StreamInfo,
    is_disposable,
    parse_avc_config,
    parse_hevc_config,
    start_kind,
)
from gcvideo.video.decode_plan import SampleTable
from gcvideo.video.decord_decoder import MAX_PIXELS, DecodeError, collect

# Containers that store the presentation time of each picture.
_TIMED_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
# Codecs with one frame a packet, whose key pictures (as the container marks them) owe nothing to earlier pictures.
_TIMED_CODECS = {"vp9", "av1", "libdav1d", "libvpx-vp9"}


class LibavVideo:
    """A video track read through libavformat by PyAV.

    Attributes:
        seconds: float64 (F,), presentation time of each frame.
        fps: average frames per second.
        height: of the decoded frames, before rotation.
        width: of the decoded frames, before rotation.
        quarter_turns: rotation for display, counter-clockwise.
        keyframes: int64 (K,), frames at which decoding may start.
    """

    backend = "pyav"

    def __init__(self, path: str) -> None:
        self._path = path
        self._container: Any = None
        self._open()
        self._table = self._read_table()
        if self._table is not None:
            self._time_of = {int(pts): sample for sample, pts in enumerate(self._table.pts)}
            first = next(iter(self._decode_needed([0])), None)
            if first is None:
                raise DecodeError("the first picture cannot be decoded")
            self._describe(first)
            self.seconds = self._table.seconds
            rate = self._table.fps
            starts = self._table.starts
            self.keyframes = np.flatnonzero(np.isin(self._table.order, list(starts)))
        else:
            rate = self._count_frames()
        self.fps = rate or float(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.codec = str(self._stream.codec_context.codec.canonical_name)

    def __len__(self) -> int:
        return len(self.seconds)

    def decode(self, wanted: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Frames by index, rising; uint8 (len(wanted), H, W, 3)."""
        if self._table is None:
            start = self.keyframes[self.keyframes <= wanted[0]].max(initial=0)
            frames = itertools.islice(enumerate(self._decode_from_start()), int(start), int(wanted[-1]) + 1)
            return collect(frames, wanted.tolist(), size, coded_size=(self.height, self.width))
        times = self._table.pts[self._table.order[wanted]].tolist()
        needed = ((frame.pts, frame) for frame in self._decode_needed(wanted.tolist()))
        return collect(needed, times, size, coded_size=(self.height, self.width))

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        import av

        self.close()
        # A playlist must not reach out to the network; a title in another alphabet must not matter.
        options = {"protocol_whitelist": "file"}
        self._container = av.open(f"file:{self._path}", metadata_errors="replace", options=options)
        pictures = av.stream.Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & pictures]
        if not streams:
            raise DecodeError("has no video track")
        self._stream = streams[0]
        context = self._stream.codec_context
        if context is None:
            raise DecodeError("is in an unknown codec")
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        if context.width * context.height > MAX_PIXELS:
            raise DecodeError(f"frames of {context.width} x {context.height} are larger than {MAX_PIXELS} pixels")

    def _read_table(self) -> SampleTable | None:
        """The samples, by reading through the file without decoding; None where times cannot be trusted."""
        container_names = set(self._container.format.name.split(","))
        codec = self._stream.codec_context
        info = _stream_info(codec)
        if not container_names & _TIMED_CONTAINERS or (info is None and codec.name not in _TIMED_CODECS):
            return None
        times: list[int] = []
        shown: list[bool] = []
        starts: dict[int, Start] = {}
        self._disposable: list[bool] = []
        for packet in self._container.demux(self._stream):
            if packet.size == 0:
                continue
            if packet.pts is None:
                return None
            sample = memoryview(packet)
            if packet.is_keyframe:
                kind = start_kind(sample, info) if info else Start.ANYWHERE
                if kind is not Start.NO:
                    starts[len(times)] = kind
            self._disposable.append(info is not None and is_disposable(sample, info))
            times.append(packet.pts)
            shown.append(not packet.is_discard)
        pts = np.array(times, np.int64)
        order = np.argsort(pts, kind="stable")
        order = order[np.array(shown, bool)[order]]
        if len(np.unique(pts)) < len(pts) or not len(order) or starts.get(0) is not Start.ANYWHERE:
            return None
        table = SampleTable(pts, order, starts, Fraction(self._stream.time_base))
        return None if info is not None and table.reorder > (info.reorder or 0) else table

    def _decode_needed(self, frames: list[int]) -> Iterator[Any]:
        """Decode what these frames need; more frames than these come out."""
        assert self._table is not None
        needed = self._table.needed(frames, self._disposable.__getitem__)
        remaining = set(needed)
        for sample, packet in self._packets_from(needed[0]):  # which may open the file anew
            if sample in remaining:
                yield from self._stream.codec_context.decode(packet)
                remaining.remove(sample)
            if not remaining:
                break
        yield from self._stream.codec_context.decode(None)

    def _packets_from(self, sample: int) -> Iterator[tuple[int, Any]]:
        """Samples and their packets, from this one on or from one before."""
        assert self._table is not None
        packets = self._seek(sample)
        packet = next(packets, None)
        if packet is None or self._time_of.get(packet.pts, len(self._time_of)) > sample:  # too far
            self._open()
            packets = self._container.demux(self._stream)
            packet = next(packets, None)
        while packet is not None:
            if packet.size:
                if packet.pts not in self._time_of:
                    raise DecodeError("the container gives other times on a second reading")
                yield self._time_of[packet.pts], packet
            packet = next(packets, None)

    def _seek(self, sample: int) -> Iterator[Any]:
        """Packets from some place near a sample; none where the container cannot seek."""
        import av

        assert self._table is not None
        try:
            self._container.seek(int(self._table.pts[sample]), stream=self._stream)
        except av.FFmpegError:
            return iter(())
        packets: Iterator[Any] = self._container.demux(self._stream)
        return packets

    def _decode_from_start(self) -> Iterator[Any]:
        self._open()
        yield from self._container.decode(self._stream)

    def _count_frames(self) -> float:
        """Decode everything once to learn how many frames there are; returns the average frame rate."""
        times: list[int | None] = []
        keys = []
        frame = None
        for frame in self._decode_from_start():
            if not times:
                self._describe(frame)
            if frame.key_frame:
                keys.append(len(times))
            times.append(frame.pts)
        if not times:
            raise DecodeError("holds no picture that can be decoded")
        self.keyframes = np.array(keys, np.int64)
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        known = [pts for pts in times if pts is not None]
        if len(known) == len(times) and len(set(known)) == len(known):
            # Times that do not rise (AVI gives them in decoding order) are still the right ones, in the wrong order.
            self.seconds = np.sort(np.array(known)) * float(self._stream.time_base)
        else:
            self.seconds = np.arange(len(times)) / rate
        return rate

    def _describe(self, frame: Any) -> None:
        self.height, self.width = frame.height, frame.width
        self.quarter_turns = round(frame.rotation / 90) % 4


def _stream_info(codec: Any) -> StreamInfo | None:
    """What avcC or hvcC says; None for other codecs and for byte streams, which have no such record."""
    parse = {"h264": parse_avc_config, "hevc": parse_hevc_config}.get(codec.name)
    if parse is None or not codec.extradata:
        return None
    try:
        info = parse(codec.extradata)
    except (BitstreamError, IndexError):
        return None
    return info if info.progressive and info.reorder is not None else None
