"""Write one video anew, as H.264 in MP4 laid out for reading clips."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from gcvideo.errors import VideoError


@dataclass(frozen=True)
class Preset:
    """Settings of libx264 and what they are good for."""

    about: str
    options: dict[str, str]


# A clip of 8 frames with a stride of 8 wants one picture in eight. Pictures that no other refers to need not be decoded
# unless they are wanted; so presets differ in how many there are, and in how far the next key frame is.
PRESETS = {
    "clip": Preset(
        "long runs of B-frames that nothing refers to: little to decode, few bytes",
        {"g": "96", "bf": "7", "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0"},
    ),
    "fast": Preset(
        "longer runs, more key frames, no loop filter and no arithmetic coding: least to decode, more bytes",
        {
            "preset": "slower",  # pays for a part of the bytes
            "g": "48",
            "bf": "11",
            "tune": "fastdecode",
            "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0:ref=4",
        },
    ),
    "gop16": Preset(
        "a key frame every 16 pictures, no B-frames, fast to decode", {"g": "16", "bf": "0", "tune": "fastdecode"}
    ),
    "intra": Preset("key frames only: any frame at the cost of one, many bytes", {"g": "1", "tune": "fastdecode"}),
    "default": Preset("libx264 as it comes: a key frame every 250 pictures", {"g": "250"}),
}
CRF = "23"  # libx264's default quality
# Codecs of sound that go into MP4 untouched; others become AAC.
_MP4_SOUND = frozenset(("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"))


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How to write videos."""

    preset: str = "clip"
    short_side: int = 256  # pixels; smaller videos keep their size
    audio: bool = False


def encode_video(source: str | Path, target: str | Path, encoding: Encoding) -> int:
    """Write ``source`` anew as ``target``; returns the number of frames.

    Frames keep their times, counted from the first one; they are turned as the metadata says. ``target`` appears when
    it is complete.

    Raises:
        VideoError: the source cannot be decoded to its end.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    try:
        frames = _encode(str(source), str(temporary), encoding)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except av.FFmpegError as error:
        raise VideoError(source, f"cannot be transcoded ({str(error).splitlines()[0]})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return frames


def _encode(source: str, target: str, encoding: Encoding) -> int:
    # The moov box in front: opening a file then takes one read.
    options = {"movflags": "+faststart"}
    with (
        av.open(f"file:{source}", metadata_errors="replace") as old,
        av.open(f"file:{target}", "w", format="mp4", options=options) as new,
    ):
        if not old.streams.video:
            raise VideoError(source, "has no video track")
        pictures = _Pictures(new, old.streams.video[0], encoding)
        sound = _Sound(new, old.streams.audio[0]) if encoding.audio and old.streams.audio else None
        waiting: deque[Any] = deque()
        for packet in old.demux([pictures.source, *([sound.source] if sound else [])]):
            if sound and packet.stream is sound.source:
                waiting.append(packet)
            else:
                for frame in packet.decode():
                    pictures.take(frame)
            while sound and waiting and pictures.count:  # the file begins once the size of its pictures is known
                sound.take(waiting.popleft())
        pictures.finish()
        if sound:
            sound.finish()
    if not pictures.count:
        raise VideoError(source, "has no frame that can be decoded")
    return pictures.count


class _Pictures:
    """The video track: turned, scaled and encoded frame by frame."""

    def __init__(self, container: Any, source: Any, encoding: Encoding) -> None:
        self.source = source
        self.count = 0
        self._container = container
        self._short_side = encoding.short_side
        source.codec_context.thread_count = 1  # one worker process a core already
        options = {"crf": CRF, "threads": "1", **PRESETS[encoding.preset].options}
        self._stream = container.add_stream("libx264", rate=source.average_rate or 25, options=options)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = source.time_base
        self._graph: Any = None
        self._last = -1

    def take(self, frame: Any) -> None:
        if self._graph is None:
            self._first = frame.pts or 0
            self._graph = self._filters(frame)
        self._graph.push(frame)
        for filtered in self._filtered():
            # Without a time, or with one that does not rise, a frame comes one tick after its predecessor.
            time = self._last + 1 if filtered.pts is None else filtered.pts - self._first
            filtered.pts = self._last = max(time, self._last + 1)
            filtered.pict_type = 0  # the encoder chooses key frames, not the source
            self._container.mux(self._stream.encode(filtered))
            self.count += 1

    def finish(self) -> None:
        if self._graph is not None:
            self._container.mux(self._stream.encode(None))

    def _filters(self, frame: Any) -> Any:
        graph = av.filter.Graph()
        chain = [graph.add_buffer(template=self.source)]
        turns = round(frame.rotation / 90) % 4  # counter-clockwise
        if turns == 2:
            chain += [graph.add("hflip"), graph.add("vflip")]
        elif turns:
            chain.append(graph.add("transpose", "cclock" if turns == 1 else "clock"))
        height, width = (frame.height, frame.width) if turns % 2 == 0 else (frame.width, frame.height)
        height, width = scaled_size(height, width, self._short_side)
        chain.append(graph.add("scale", f"{width}:{height}:flags=bicubic"))
        chain.append(graph.add("format", "yuv420p"))
        chain.append(graph.add("buffersink"))
        graph.link_nodes(*chain).configure()
        self._stream.width, self._stream.height = width, height
        return graph

    def _filtered(self) -> Iterator[Any]:
        while True:
            try:
                yield self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return


class _Sound:
    """The sound track: copied where MP4 can hold it, else encoded as AAC."""

    def __init__(self, container: Any, source: Any) -> None:
        self.source = source
        self._container = container
        self._copied = source.codec_context.name in _MP4_SOUND
        if self._copied:
            self._stream = container.add_stream_from_template(source)
        else:
            self._stream = container.add_stream("aac", rate=source.codec_context.sample_rate or 44_100)

    def take(self, packet: Any) -> None:
        if packet.dts is None:  # the packet that flushes a decoder
            return
        if self._copied:
            packet.stream = self._stream
            self._container.mux(packet)
            return
        for frame in packet.decode():
            frame.pts = None  # counted anew from the samples
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        if not self._copied:
            self._container.mux(self._stream.encode(None))


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of the same shape with the given short side, never larger than before.

    Both are even, as 4:2:0 sampling needs.
    """
    scale = min(1.0, short_side / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))
