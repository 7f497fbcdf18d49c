"""Network streams: killed, silent and slow servers, and what is shown of their addresses."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from gcvideo.video import FrameStream, VideoError, open_video
from gcvideo.video.stream import without_credentials
from tests.servers import HttpServer, RtspServer, Server
from tests.videos import moving_frames, write_video


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    for name in ("a.mp4", "a.ts"):
        options = {"bf": "0"}
        write_video(folder / name, moving_frames(50), fps=50, gop=25, options=options)
    return folder


@pytest.fixture
def open_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[Server, str]]]:
    """Start a server; and the address of what it sends for ever."""
    monkeypatch.setattr(FrameStream, "pauses", (0.02, 0.05))
    monkeypatch.setattr(FrameStream, "timeout", 0.5)
    with ExitStack() as running:

        def start(kind: str) -> tuple[Server, str]:
            if kind == "rtsp":
                camera = running.enter_context(RtspServer(place / "a.mp4", password="me:secret"))
                return camera, camera.url.replace("//", "//me:secret@")
            rate = (place / "a.ts").stat().st_size if kind == "http" else 1e9
            server = running.enter_context(HttpServer(place, rate=rate))
            return server, f"{server.url.replace('//', '//me:secret@')}/live/a.ts?token=secret"

        yield start


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rtsp", "http"])
def test_a_stream_survives_its_server(
    open_at: Callable[[str], tuple[Server, str]], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server, url = open_at(kind)
    with FrameStream(url) as stream:
        assert stream.live
        assert stream.expected is None
        assert stream.fps == pytest.approx(50, abs=1)
        frames = iter(stream)
        first = list(islice(frames, 20))
        server.stop()
        threading.Timer(0.3, server.start).start()
        second = list(islice(frames, 60))
        server.silent.set()  # nothing more comes, and nobody says so
        threading.Timer(0.8, server.stop).start()
        threading.Timer(0.9, server.start).start()
        third = list(islice(frames, 60))
    seen = [*first, *second, *third]
    jumps = np.diff([frame.index for frame in seen])
    assert (jumps > 1).sum() == 2, "a gap for each connection that was lost, and none elsewhere"
    assert (jumps > 0).all()
    times = np.array([frame.time for frame in seen])
    assert (np.diff(times) >= 0).all()
    assert np.sort(np.diff(times))[-2:] == pytest.approx([0.6, 1.0], abs=0.5), "the time that was lost is counted"
    said = capsys.readouterr().err
    assert said.count("connection lost") == said.count("receiving again") == 2
    assert "0.5 s" in said, "the silence was noticed"
    assert "secret" not in said + stream.name
    receiver = stream._receiver
    receiver.join(5)
    assert not receiver.is_alive()


@pytest.mark.slow
def test_frames_are_dropped_rather_than_late(open_at: Callable[[str], tuple[Server, str]]) -> None:
    _, url = open_at("flood")
    with FrameStream(url) as stream:
        frames = iter(stream)
        seen = []
        for frame in islice(frames, 1000):
            if frame.index % 100 == 0:
                time.sleep(0.02)  # the network is busy
            seen.append(frame.index)
        waiting = stream._waiting.maxlen
        dropped, newest = stream.dropped, seen[-1]
    jumps = np.diff(seen)
    assert (jumps > 0).all()
    assert 0 < (jumps - 1).sum() <= dropped
    assert newest + 1 <= len(seen) + dropped, "every frame was seen or counted"
    assert waiting is not None
    runs = np.diff(np.flatnonzero(np.concatenate([[True], jumps > 1])))
    assert (runs[1:] >= waiting).all(), "runs of frames are long enough for windows"


@pytest.mark.slow
def test_memory_stays_flat(open_at: Callable[[str], tuple[Server, str]]) -> None:
    """Each converter of PyAV's own starts threads, whose memory adds up while another thread decodes."""
    _, url = open_at("flood")
    with FrameStream(url) as stream:
        sizes = []
        for count, frame in enumerate(islice(stream, 2400)):
            frame.rgb()
            if count % 800 == 799:
                sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)
    assert sizes[-1] - sizes[0] < 60, f"{sizes} MB; with converters of PyAV's own it was 290 MB"


def test_a_process_forked_by_another_thread_ends(place: Path) -> None:
    """As a loader's, while frames are converted; it would wait for threads of a converter, which it does not have."""
    with FrameStream(str(place / "a.mp4")) as stream:
        frame = next(iter(stream))
    frame.rgb()
    child: list[int] = []
    thread = threading.Thread(target=lambda: child.append(os.fork() or os._exit(0)))
    thread.start()
    thread.join()
    for _ in range(500):
        if os.waitpid(child[0], os.WNOHANG)[0]:
            return
        time.sleep(0.01)
    os.kill(child[0], signal.SIGKILL)
    os.waitpid(child[0], 0)
    pytest.fail("the process hangs")


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_a_file_by_http_ends_at_its_end(place: Path, name: str) -> None:
    with HttpServer(place) as server, FrameStream(f"{server.url}/{name}") as stream, open_video(place / name) as file:
        assert not stream.live
        pictures = np.stack([frame.rgb() for frame in stream])
        assert stream.problem is None
        np.testing.assert_array_equal(pictures, file.frames(range(50)))


def test_what_cannot_be_opened_at_first_is_an_error(place: Path) -> None:
    with HttpServer(place) as server, pytest.raises(VideoError, match="404 Not Found"):
        FrameStream(f"{server.url}/absent.mp4")
    with RtspServer(place / "a.mp4", password="me:secret") as camera, pytest.raises(VideoError) as caught:
        FrameStream(camera.url.replace("//", "//me:wrong@"))
    assert str(caught.value) == f"rtsp://***@127.0.0.1:{camera.port}/camera: Server returned 401 Unauthorized " + (
        "(authorization failed)"
    )


def test_a_stream_reaches_no_local_files(place: Path) -> None:
    (place / "evil.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{place}/a.ts\n#EXT-X-ENDLIST\n")
    with HttpServer(place) as server, pytest.raises(VideoError), FrameStream(f"{server.url}/evil.m3u8") as stream:
        list(stream)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://me:secret@host:554/live?channel=1", "rtsp://***@host:554/live?channel=1"),
        ("rtsp://me@host/1", "rtsp://***@host/1"),
        ("http://me:p@ss:w@host/a@b.mp4", "http://***@host/a@b.mp4"),
        ("http://host/a@b.mp4", "http://host/a@b.mp4"),
        ("http://host/v?user=me&Password=x&size=2", "http://host/v?user=***&Password=***&size=2"),
        ("https://host/v?size=2&access_token=abc", "https://host/v?size=2&access_token=***"),
        ("folder/a@b.mp4", "folder/a@b.mp4"),
    ],
)
def test_credentials_are_not_shown(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
