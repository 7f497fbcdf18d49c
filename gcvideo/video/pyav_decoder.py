"""PyAV: decodes slices of MP4 files, and reads every other file through a demuxer.

Others are Matroska, WebM, AVI, MPEG-TS, fragmented MP4, codecs other than H.264 and HEVC, and MP4 files whose own
tables cannot be followed. Where times and slice headers agree, the same plan is followed as for MP4: from the right
key picture, only what is needed, each frame known by its time. Elsewhere (AVI stores no presentation times, MPEG-TS
none of the whole; streams were joined, or copied with wrong times) the frames are counted by decoding from the
beginning. That is slow, and right.
"""

import contextlib
import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from gcvideo.video.decode_plan import DecodeError, Orientation, SampleTable
from gcvideo.video.mp4_tables import Mp4Track
from gcvideo.video.parameter_sets import StreamInfo, parse_config
from gcvideo.video.slice_headers import Picture, Start, read_picture, why_not_in_order

# The largest coded frame that is decoded: a little over 8K UHD. decord ends the process where memory runs out.
MAX_PIXELS = 1 << 25
# unaligned: crop on the left to the pixel, as the stream says.
_OPTIONS = {"flags": "unaligned", "max_pixels": str(MAX_PIXELS)}
# strict: wait for as many pictures as the standard says before showing one, where the stream does not tell.
_STRICT_OPTIONS = {**_OPTIONS, "strict": "1"}
# Containers that store the presentation time of each picture, and those that store not even a rate to be relied on.
_TIMED_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
_UNTIMED_CONTAINERS = {"avi", "h264", "hevc"}
# Codecs with one frame a packet, whose key pictures (as the container marks them) owe nothing to earlier pictures.
_TIMED_CODECS = {"vp9", "av1", "libdav1d", "libvpx-vp9"}


class DamageError(DecodeError):
    """The decoder produced a frame, and says that it is damaged."""


def decode_with_pyav(
    track: Mp4Track, data: Mapping[int, Any], wanted: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode samples with libavcodec through PyAV; arguments as in ``decode_with_decord``, result of ``collect``."""
    codec: Any = av.CodecContext.create(track.info.codec, "r")
    codec.extradata = track.config
    codec.thread_count = 1
    codec.options = _STRICT_OPTIONS

    def frames() -> Iterator[Any]:
        for sample, piece in data.items():
            packet = av.Packet(piece)
            packet.pts = sample
            yield from codec.decode(packet)
        yield from codec.decode(None)

    return collect(((frame.pts, frame) for frame in frames()), wanted, size=(track.info.height, track.info.width))


def collect(
    frames: Iterable[tuple[int, Any]],
    wanted: Sequence[int],
    *,
    size: tuple[int, int],
    orientation: Orientation | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Convert the frames whose names are wanted, one after the other.

    Args:
        frames: names and PyAV frames: those that the wanted ones need, and no more.
        wanted: names.
        size: height and width that every wanted frame must have.
        orientation: how every wanted frame must be turned for display; None where frames do not tell.

    Yields:
        place in ``wanted``, and uint8 (H, W, 3) RGB.

    Raises:
        DecodeError: a wanted frame never came, or came in another size or turned otherwise.
        DamageError: a frame is damaged, wanted or not: others may refer to it.
    """
    height, width = size
    place = {name: index for index, name in enumerate(wanted)}
    converter = VideoReformatter()  # it keeps its tables from frame to frame
    for name, frame in frames:
        if frame.is_corrupt:
            raise DamageError("a picture is damaged")
        index = place.pop(name, None)
        if index is None:
            continue
        if (frame.height, frame.width) != size:
            raise DecodeError(f"the frame size changes from {size} to {(frame.height, frame.width)}")
        if orientation is not None and orientation_of(frame) != orientation:
            raise DecodeError("pictures are turned in different ways")
        # With threads of its own, each clip would pay for starting them.
        plane = converter.reformat(frame, format="rgb24", interpolation="BILINEAR", threads=1).planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        yield index, rows[:, : 3 * width].reshape(height, width, 3)
    if place:
        raise DecodeError(f"{len(place)} of {len(wanted)} pictures cannot be decoded")


def orientation_of(frame: Any) -> Orientation:
    """How PyAV's frame is turned for display."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV knows not all kinds of data beside a frame, such as the Exif data of a JPEG
        if frame.rotation:
            raise DecodeError("its display matrix cannot be read") from None
        data = None
    return Orientation.from_matrix(np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2]) if data else Orientation()


def declared_fps(container: Any, stream: Any) -> float:
    """Average frames per second as the container tells, or where it tells none (H.264 in AVI) the stream; else 25."""
    untimed = set(container.format.name.split(",")) & _UNTIMED_CONTAINERS
    rates = (stream.guessed_rate, stream.average_rate) if untimed else (stream.average_rate, stream.guessed_rate)
    return float(rates[0] or rates[1] or 25)


class LibavVideo:
    """A video track read through libavformat by PyAV.

    Args:
        path: the file.
        count: count frames from the beginning, even where the container tells their times.

    Attributes:
        times: float64 (F,), presentation time of each frame in seconds.
        fps: average frames per second.
        height: of the decoded frames, before rotation.
        width: of the decoded frames, before rotation.
        orientation: for display.
        keyframes: int64 (K,), frames at which decoding may start.
    """

    backend = "pyav"
    _container: Any = None
    _stream: Any = None

    def __init__(self, path: str, *, count: bool = False) -> None:
        self._path = path
        self._open()
        self.fps = declared_fps(self._container, self._stream)
        self._table = None if count else self._read_table()
        if self._table is not None:
            self._time_of = {int(pts): sample for sample, pts in enumerate(self._table.pts)}
            first = next(self._decode_needed([0]), None)
            if first is None:
                raise DecodeError("the first picture cannot be decoded")
            self.height, self.width, self.orientation = first.height, first.width, orientation_of(first)
            self.times, self.keyframes = self._table.seconds, self._table.keyframes
        else:
            self._count_frames()
        steps = np.diff(self.times) * self.fps  # the mean alone would mistake one lost picture for another rate
        if steps.any() and (abs(np.median(steps) - 1) > 0.01 or abs(steps.mean() - 1) > 0.1):
            self.fps /= float(steps.mean())
        self.codec = str(self._stream.codec_context.codec.canonical_name)

    def decode(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Places in ``wanted``, which rises, and frames; uint8 (H, W, 3)."""
        frames: Iterable[tuple[int, Any]]
        if self._table is None:
            names, start = wanted.tolist(), self.keyframes[self.keyframes <= wanted[0]].max(initial=0)
            frames = itertools.islice(enumerate(self._decode_from_start()), int(start), int(wanted[-1]) + 1)
        else:
            names = self._table.pts[self._table.order[wanted]].tolist()
            frames = ((frame.pts, frame) for frame in self._decode_needed(wanted.tolist()))
        return collect(frames, names, size=(self.height, self.width), orientation=self.orientation)

    def close(self) -> None:
        """Close the file, and free the decoder with its pictures."""
        if self._container:
            self._container.close()
        self._container = self._stream = None
        gc.collect(1)  # PyAV's containers and streams refer to one another: else they stay for many openings

    def _open(self) -> None:
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
        context.options = _STRICT_OPTIONS if context.name == "h264" else _OPTIONS
        if context.width * context.height > MAX_PIXELS:
            raise DecodeError(f"frames of {context.width} x {context.height} are larger than {MAX_PIXELS} pixels")

    def _read_table(self) -> SampleTable | None:
        """The samples, by reading through the file without decoding; None where frames must be counted."""
        codec, names = self._stream.codec_context, set(self._container.format.name.split(","))
        info: StreamInfo | None = None  # of other codecs and of byte streams there is none
        with contextlib.suppress(ValueError, LookupError):
            info = parse_config(codec.name, codec.extradata or b"")
        if not names & _TIMED_CONTAINERS or (info is None and codec.name not in _TIMED_CODECS):
            return None
        times, shown = list[int](), list[bool]()
        starts: dict[int, Start] = {}
        pictures: list[Picture] = []
        for packet in self._container.demux(self._stream):
            if packet.pts is None and packet.size == 0:
                break  # the end
            if packet.pts is None or packet.size == 0 or packet.is_corrupt or packet.has_sidedata("new_extradata"):
                return None
            picture = read_picture(memoryview(packet), info) if info else Picture(1, start=Start.ANYWHERE)
            if packet.is_keyframe and picture.start is not Start.NO:
                starts[len(times)] = picture.start
            pictures.append(picture)
            times.append(packet.pts)
            shown.append(not packet.is_discard)
        pts = np.array(times, np.int64)
        order = np.argsort(pts, kind="stable")
        order = order[np.array(shown, bool)[order]]
        if len(np.unique(pts)) < len(pts) or not len(order) or starts.get(0) is not Start.ANYWHERE:
            return None
        self._disposable = [picture.disposable for picture in pictures]
        table = SampleTable(pts, order, starts, Fraction(self._stream.time_base))
        sound = table.starts_in_order and table.reorder <= (info.reorder or 0 if info else 0)
        return None if not sound or (info and why_not_in_order(pictures, pts, info)) else table

    def _decode_needed(self, frames: list[int]) -> Iterator[Any]:
        """Decode what these frames need; more frames than these come out."""
        assert self._table is not None
        needed = self._table.needed(frames, self._disposable.__getitem__)
        remaining = set(needed)
        for sample, packet in self._packets_from(needed[0]):  # which may open the file again
            if sample in remaining:
                yield from self._stream.codec_context.decode(packet)
                remaining.remove(sample)
            if not remaining:
                break
        if remaining:
            raise DecodeError("the container gives other times on a second reading")
        yield from self._stream.codec_context.decode(None)

    def _packets_from(self, sample: int) -> Iterator[tuple[int, Any]]:
        """Samples and their packets, from this one on or from one before."""
        assert self._table is not None
        packets, first = self._numbered_packets(), None
        with contextlib.suppress(av.FFmpegError):  # not every file can be sought in
            self._container.seek(int(self._table.pts[sample]), stream=self._stream)
            first = next(packets, None)
        if first is None or first[0] > sample:  # too far
            self._open()
            packets = self._numbered_packets()
            first = next(packets)
        return itertools.chain([first], packets)

    def _numbered_packets(self) -> Iterator[tuple[int, Any]]:
        """Packets from here on, and which samples they are; one of an unknown time comes behind all samples."""
        unknown, packets = len(self._time_of), self._container.demux(self._stream)
        return ((self._time_of.get(packet.pts, unknown), packet) for packet in packets if packet.size)

    def _decode_from_start(self) -> Iterator[Any]:
        """Every frame, in the order of output.

        What cannot be decoded at the beginning (a recording begins between key pictures) or at the end (it was cut
        short) is left out. In between it is an error: the frames behind it cannot be counted.
        """
        self._open()
        begun, failure = False, None
        for packet in self._container.demux(self._stream):
            if not packet.size:  # would end the decoder
                continue
            try:
                frames = self._stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                failure = error if begun else None
                continue
            if failure:
                raise failure
            begun = True
            yield from frames
        yield from self._stream.codec_context.decode(None)

    def _count_frames(self) -> None:
        """Decode everything once to learn how many frames there are and when they are shown."""
        seen: list[tuple[int | None, bool, bool]] = []
        for frame in self._decode_from_start():
            if not seen:
                self.height, self.width, self.orientation = frame.height, frame.width, orientation_of(frame)
            seen.append((frame.pts, bool(frame.key_frame), frame.is_corrupt))
        while seen and seen[-1][2]:  # the last picture of a file that was cut short is damaged
            seen.pop()
        if not seen:
            raise DecodeError("shows no picture that can be decoded")
        self.keyframes = np.flatnonzero([key for _, key, _ in seen])
        known = np.array([pts for pts, _, _ in seen if pts is not None]) * float(self._stream.time_base)
        self.times = np.sort(known)
        # Times that do not rise but have the rate (AVI gives them in decoding order) are right, in the wrong order.
        # Others that do not rise, as in joined recordings, tell no more than when the first frame is shown.
        rising, even = (np.diff(known) > 0).all(), (abs(np.diff(self.times) * self.fps - 1) < 0.25).all()
        if len(known) < len(seen) or not (rising or even):
            self.times = self.times[:1].sum() + np.arange(len(seen)) / self.fps
