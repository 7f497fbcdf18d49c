"""The frames of a long video, a camera, a network stream or a pipe, one after the other, in bounded memory.

For frames by index, in files that can be sought, see ``gcvideo.video.reader``.
"""

import contextlib
import http.client
import math
import os
import re
import shutil
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from gcvideo.console import warn
from gcvideo.errors import VideoError
from gcvideo.video.pyav_decoder import declared_fps, orientation_of

URL = re.compile(r"(rtsps?|https?|rtmps?|udp)://")
_PROTOCOLS = "rtsp,rtsps,rtp,http,https,httpproxy,rtmp,rtmps,udp,tcp,tls,crypto,data"  # no local files
_PLAYLISTS = {"hls", "dash"}  # they come a segment at a time
_CREDENTIALS = re.compile(
    r"(?<=://)[^/\s]*@|(?<=[?&])([^=&\s]*(?:pass|pwd|user|usr|login|token|key|auth|secret|sig)[^=&\s]*)=[^&\s]*", re.I
)
_THREAD = threading.local()
_ERRORS = (OSError, ValueError, av.FFmpegError)
_WAITING_BYTES = 256 << 20  # at most so much memory for frames that wait to be taken


def without_credentials(url: str) -> str:
    """A URL as it may be shown: "rtsp://***@host/path?token=***"."""
    return _CREDENTIALS.sub(lambda found: f"{found[1]}=***" if found[1] else "***@", url)


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """A decoded frame: number, seconds since the first frame, and PyAV's frame or uint8 (H, W, 3) RGB."""

    index: int
    time: float
    picture: Any

    def rgb(self) -> np.ndarray:
        """uint8 (H, W, 3), as displayed: rotation metadata applied."""
        if isinstance(self.picture, np.ndarray):
            return self.picture
        if not hasattr(_THREAD, "reformatter"):  # a new one for each frame makes memory grow by tens of MB
            _THREAD.reformatter = VideoReformatter()
        # With threads of its own, it would hold up a process that another thread forks, for ever.
        pixels = _THREAD.reformatter.reformat(self.picture, format="rgb24", threads=1).to_ndarray()
        return orientation_of(self.picture).apply(pixels)


class FrameStream(contextlib.AbstractContextManager["FrameStream"]):
    """Frames of a source in presentation order; a context manager.

    Live sources are cameras, and URLs whose length the server does not tell. A thread decodes them; frames that nobody
    takes before newer ones come are dropped and counted, so that the rest is never late. A live source that breaks off,
    or gives no picture for ``timeout`` seconds, is opened again, after growing pauses, for ever. The number of a frame
    is not the one before plus 1 where frames were dropped or the connection was lost.

    Args:
        source: a file, ``camera:N`` for the camera /dev/videoN, a URL, or an open binary file such as
            ``sys.stdin.buffer``.
        name: of an open file, for messages.

    Attributes:
        pauses: seconds before each attempt to connect again; the last one is repeated.
        timeout: seconds without a picture after which a connection counts as lost.
        name: of the source, without credentials.
        live: whether frames come as they are made.
        fps: average frames per second, as the source declares it; 25 where it declares none.
        expected: number of frames that the source is thought to have; None where that is not known.
        dropped: frames of a live source that came too fast, so far.
        problem: why the stream ended before its time, known once it has; None where all went well.

    Raises:
        VideoError: the source cannot be opened or has no video.
    """

    pauses: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
    timeout = 10.0
    dropped = 0
    live = False
    problem: str | None = None

    def __init__(self, source: str | IO[bytes], *, name: str = "standard input") -> None:
        self.name = without_credentials(source) if isinstance(source, str) else name
        self._source = source
        self._open()
        length = self._container.duration or 0  # in microseconds
        self.fps = declared_fps(self._container, self._stream)
        self.expected = self._stream.frames or round(length * 1e-6 * self.fps) or None
        if isinstance(source, str) and (source.startswith("camera:") or URL.match(source)):
            self._playlist = self._container.format.name in _PLAYLISTS
            whole = source.startswith("http") and not self._playlist and self._container.size > 0  # its length is known
            self.live = not self.expected and not whole
            self.fps = self.fps if self.fps <= 1000 else 25.0  # some declare the ticks of their clock

    def _open(self) -> None:
        place, options = _what_to_open(self._source, self.timeout)
        try:
            self._container: Any = av.open(place, metadata_errors="replace", **options)
        except _ERRORS as error:
            raise VideoError(self.name, self._why(error)) from None
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(self.name, "has no video track")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.options = {"flags": "unaligned"}

    def __iter__(self) -> Iterator[StreamFrame]:
        """The frames; times never go back.

        Raises:
            VideoError: not one frame can be decoded. A problem after that ends the stream and is kept in ``problem``.
        """
        if self.live:
            yield from self._newest()
            return
        first, last = None, -1 / self.fps
        try:
            for index, picture in enumerate(self._container.decode(self._stream)):
                if first is None:
                    StreamFrame(0, 0.0, picture).rgb()  # raises here what it would raise later
                moment = last + 1 / self.fps if picture.time is None else float(picture.time)
                first = moment if first is None else first
                last = max(moment - first, last)
                yield StreamFrame(index, max(last, 0.0), picture)
        except _ERRORS as error:
            self.problem = f"cannot be decoded after {max(last, 0):.1f} s ({self._why(error)})"
        if first is None and isinstance(self._source, str) and self._source.startswith("http"):
            self._download(self._source)
            yield from self
        elif first is None:
            raise VideoError(self.name, self.problem or "holds no frame")

    def _download(self, url: str) -> None:
        """Read a file whose server gives no parts of it from a copy: MP4 with its index at the end needs that."""
        self._container.close()
        self._source, self.problem = tempfile.TemporaryFile(), None  # noqa: SIM115  # goes with this object
        try:
            with urllib.request.urlopen(url, timeout=self.timeout) as reply:
                shutil.copyfileobj(reply, self._source)
        except (OSError, http.client.InvalidURL) as error:  # the latter where it holds a password
            raise VideoError(self.name, f"{self._why(error)}; download it first") from None
        self._source.seek(0)
        self._open()

    def _newest(self) -> Iterator[StreamFrame]:
        """The frames of a live source, as the thread that decodes them puts them down."""
        context = self._stream.codec_context
        seconds = 12 if self._playlist else 3
        most = min(math.ceil(seconds * self.fps), _WAITING_BYTES // max(1, 2 * context.width * context.height))
        self._waiting: deque[StreamFrame] = deque(maxlen=max(2, most))
        self._news, self._closing = threading.Condition(), threading.Event()
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()
        while True:
            with self._news:
                while not self._waiting:
                    if not self._receiver.is_alive():
                        raise VideoError(self.name, "cannot be received; the error is above")
                    self._news.wait(1.0)
                frames = list(self._waiting)  # all at once: they follow each other without a gap
                self._waiting.clear()
            yield from frames

    def _receive(self) -> None:
        began, lost, index, last, attempts = time.monotonic(), 0.0, 0, 0.0, 0
        while not self._closing.is_set():
            reason, offset = "it ended", None
            try:
                for picture in self._pictures():
                    now = time.monotonic() - began
                    moment = now
                    if picture.time is not None:
                        moment = float(picture.time) + (offset or 0.0)
                        # A new connection; or the sender's clock was set, or began again.
                        if offset is None or moment < last - 1 or abs(moment - now) > 30:
                            offset, moment = now - float(picture.time), now
                    last = max(last, moment)
                    with self._news:
                        self.dropped += len(self._waiting) == self._waiting.maxlen
                        self._waiting.append(StreamFrame(index, last, picture))
                        self._news.notify()
                    if attempts:
                        warn(f"{self.name}: receiving again after {now - lost:.1f} s")
                    index, attempts, lost = index + 1, 0, now
                    if self._closing.is_set():
                        break
            except _ERRORS as error:
                reason = self._why(error)
            self._container.close()
            index += 1  # a gap
            if not attempts and not self._closing.is_set():
                warn(f"{self.name}: connection lost ({reason}); connecting again")
            while not self._closing.wait(self.pauses[min(attempts, len(self.pauses) - 1)]):
                attempts += 1
                with contextlib.suppress(VideoError):
                    self._open()
                    break

    def _pictures(self) -> Iterator[Any]:
        """The pictures of one connection, without those that cannot be decoded."""
        self._stream.thread_type = "SLICE"  # threads for whole frames would keep some back
        last, quiet, first = time.monotonic(), 0.0, True
        for packet in self._container.demux():
            quiet, pictures = time.monotonic() - last, []
            if packet.stream.index == self._stream.index:
                # What cannot be decoded: it began between key pictures, or a part was lost on its way.
                with contextlib.suppress(av.InvalidDataError):
                    pictures = packet.decode()
            for picture in pictures:
                if first:
                    StreamFrame(0, 0.0, picture).rgb()  # raises here what it would raise later
                    first = False
                yield picture
                last = time.monotonic()
            if quiet > self.timeout:
                break
        if quiet > 0.9 * self.timeout:  # RTSP ends without an error
            raise TimeoutError(f"no picture for {self.timeout:g} s")

    def _why(self, error: Exception) -> str:
        if isinstance(error, av.ExitError):
            return f"nothing came for {self.timeout:g} s"
        text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
        if not isinstance(self._source, str) and not self._source.seekable():
            text += "; a pipe must carry MPEG-TS, Matroska or MP4 with its index in front, which are read front to back"
        return text

    def close(self) -> None:
        """Let go of the source."""
        if not hasattr(self, "_receiver"):
            self._container.close()
        elif threading.current_thread() is not self._receiver:
            self._closing.set()  # and the thread closes the source
            self._receiver.join(2.0)

    def __exit__(self, *_: object) -> None:
        self.close()


def _what_to_open(source: str | IO[bytes], timeout: float) -> tuple[Any, dict[str, Any]]:
    if not isinstance(source, str):
        return source, {}
    if source.startswith("camera:"):
        device = f"/dev/video{source.partition(':')[2]}"
        if not os.path.exists(device):
            raise VideoError(source, f"there is no camera {device}")
        return device, {"format": "v4l2"}
    if URL.match(source):
        # A file that breaks off is read on from there where the server can do that.
        options = {"protocol_whitelist": _PROTOCOLS, "rtsp_flags": "prefer_tcp", "reconnect": "1"}
        return source, {"timeout": (timeout, timeout), "options": options}
    return f"file:{os.path.abspath(source)}", {}  # a name with a colon in it is no protocol
