"""Servers on the loopback address that serve a video again and again, as a camera does; they can be killed.

``RtspServer`` speaks RTSP 1.0 with RTP interleaved in the same TCP connection (RFC 2326, sections 10 and 10.12) and
sends H.264 (RFC 6184: single pictures, and fragments FU-A). ``HttpServer`` sends MPEG-TS without a length, or files.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import itertools
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

MOST = 1200  # bytes of an RTP packet's content


class Server:
    """A threading server on a free port of 127.0.0.1, which ``stop`` kills with all its connections.

    ``silent`` keeps the connections open and sends nothing more. ``start`` starts it again on the same port.
    """

    def __init__(self, handler: type[socketserver.BaseRequestHandler], **options: Any) -> None:
        self.handler, self.options, self.port = handler, options, 0
        self.silent = threading.Event()
        self.requests: list[str] = []
        self.start()

    def start(self) -> None:
        class Listener(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads, block_on_close = True, True, False

        self.silent.clear()
        self.connections: list[socket.socket] = []
        self.listener = Listener(("127.0.0.1", self.port), functools.partial(self.handler, self))  # type: ignore[arg-type]
        self.port = self.listener.server_address[1]
        self.thread = threading.Thread(target=self.listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.listener.shutdown()
        self.listener.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.thread.join()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class RtspServer(Server):
    """Serves the H.264 of a file at ``rtsp://127.0.0.1:PORT/...`` at the file's own rate.

    Args:
        path: no reordered pictures; the first one is a key picture.
        password: asked for by basic authentication, as ``user:password``.
    """

    def __init__(self, path: Path, *, password: str | None = None) -> None:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            self.rate = float(stream.average_rate or 25)
            annex_b = av.BitStreamFilterContext("h264_mp4toannexb", stream)
            packets = [bytes(p) for packet in file.demux(stream) if packet.size for p in annex_b.filter(packet)]
        self.pictures = [list(_units(packet)) for packet in packets]
        self.sets = [unit for unit in self.pictures[0] if unit[0] & 31 in (7, 8)]
        self.password = password
        super().__init__(_Rtsp)

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/camera"


class _Rtsp(socketserver.StreamRequestHandler):
    def __init__(self, server: RtspServer, *args: Any) -> None:
        self.camera = server
        super().__init__(*args)

    def handle(self) -> None:
        self.camera.connections.append(self.connection)
        playing = threading.Event()
        with contextlib.suppress(OSError):
            while request := self._request():
                method, url, headers = request
                self.camera.requests.append(method)
                reply = [f"CSeq: {headers.get('cseq', 0)}", "Session: 1"]
                body, status = "", "200 OK"
                wanted = self.camera.password and "Basic " + base64.b64encode(self.camera.password.encode()).decode()
                if wanted and method != "OPTIONS" and headers.get("authorization") != wanted:
                    status, method = "401 Unauthorized", ""
                    reply.append('WWW-Authenticate: Basic realm="camera"')
                if method == "OPTIONS":
                    reply.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER")
                elif method == "DESCRIBE":
                    sets = ",".join(base64.b64encode(unit).decode() for unit in self.camera.sets)
                    body = (
                        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                        f"a=rtpmap:96 H264/90000\r\na=framerate:{self.camera.rate:g}\r\n"
                        f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\na=control:video\r\n"
                    )
                    reply += ["Content-Type: application/sdp", f"Content-Base: {url}/", f"Content-Length: {len(body)}"]
                elif method == "SETUP":
                    if "TCP" not in headers.get("transport", ""):
                        status = "461 Unsupported Transport"
                    reply.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
                self.wfile.write(("\r\n".join([f"RTSP/1.0 {status}", *reply]) + "\r\n\r\n" + body).encode())
                if method == "PLAY" and not playing.is_set():
                    playing.set()
                    threading.Thread(target=self._play, daemon=True).start()
                if method == "TEARDOWN":
                    break

    def _request(self) -> tuple[str, str, dict[str, str]] | None:
        while (first := self.rfile.read(1)) == b"$":  # what the receiver reports of its reception
            self.rfile.read(struct.unpack(">xH", self.rfile.read(3))[0])
        line = (first + self.rfile.readline()).decode().split()
        headers = {}
        while text := self.rfile.readline().decode().strip():
            key, _, value = text.partition(":")
            headers[key.lower()] = value.strip()
        return (line[0], line[1], headers) if len(line) > 1 else None

    def _play(self) -> None:
        number = itertools.count()
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for index, picture in enumerate(itertools.cycle(self.camera.pictures)):
                time.sleep(max(0.0, began + index / self.camera.rate - time.monotonic()))
                if self.camera.silent.is_set():
                    return
                pieces = [piece for unit in picture for piece in _payloads(unit)]
                for place, piece in enumerate(pieces):
                    last = 0x80 * (place == len(pieces) - 1)
                    stamp = int(index * 90000 / self.camera.rate) & 0xFFFFFFFF
                    packet = struct.pack(">BBHII", 0x80, last | 96, next(number) & 0xFFFF, stamp, 1) + piece
                    self.connection.sendall(struct.pack(">BBH", 0x24, 0, len(packet)) + packet)


def _units(annex_b: bytes) -> Iterator[bytes]:
    """The NAL units between start codes."""
    return (unit.rstrip(b"\0") for unit in annex_b.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:])


def _payloads(unit: bytes) -> Iterator[bytes]:
    """A NAL unit as it is, or in fragments."""
    if len(unit) <= MOST:
        yield unit
        return
    body = unit[1:]
    for start in range(0, len(body), MOST):
        ends = 0x80 * (start == 0) | 0x40 * (start + MOST >= len(body))
        yield bytes([unit[0] & 0xE0 | 28, ends | unit[0] & 31]) + body[start : start + MOST]


class HttpServer(Server):
    """Serves a folder: ``NAME`` as a file with its length; ``live/NAME``, MPEG-TS, endless, ``rate`` bytes a second."""

    def __init__(self, folder: Path, *, rate: float = 20e3) -> None:
        self.folder, self.rate = folder, rate
        super().__init__(_Http)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Http(http.server.SimpleHTTPRequestHandler):
    def __init__(self, server: HttpServer, *args: Any) -> None:
        self.camera = server
        super().__init__(*args, directory=str(server.folder))

    def do_GET(self) -> None:
        self.camera.connections.append(self.connection)
        self.camera.requests.append(self.path)
        with contextlib.suppress(OSError):
            if not self.path.startswith("/live/"):
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            content = (self.camera.folder / self.path.removeprefix("/live/").partition("?")[0]).read_bytes()
            for start in itertools.cycle(range(0, len(content), 188 * 7)):
                if self.camera.silent.is_set():
                    threading.Event().wait(60)
                piece = content[start : start + 188 * 7]
                self.wfile.write(piece)
                time.sleep(len(piece) / self.camera.rate)

    def log_message(self, *_: object) -> None:
        """Nothing."""
