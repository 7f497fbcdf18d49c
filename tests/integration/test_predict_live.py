"""``gcvideo predict URL``: live streams from servers on the loopback address."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gcvideo.cli import main
from gcvideo.errors import VideoError
from gcvideo.predict import predictor as predictor_module
from gcvideo.predict.inputs import find_sources
from gcvideo.predict.predictor import Predictor
from gcvideo.predict.timeline import Window
from gcvideo.report import pages
from gcvideo.video import FrameStream
from tests.servers import HttpServer, RtspServer
from tests.tiny import tiny_checkpoint
from tests.videos import moving_frames, write_video


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    frames = np.concatenate([moving_frames(25, seed=seed) for seed in range(3)])
    for name in ("a.mp4", "a.ts"):
        write_video(folder / name, frames, fps=25, gop=25, options={"bf": "0"})
    tiny_checkpoint(folder)
    return folder


@pytest.fixture
def camera(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RtspServer]:
    monkeypatch.setattr(FrameStream, "pauses", (0.05,))
    with RtspServer(place / "a.mp4", password="me:secret") as server:
        yield server


def url_of(camera: RtspServer) -> str:
    return camera.url.replace("//", "//me:secret@")


def test_names_of_streams_and_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["rtsp://host/1", "https://host/a.mp4", "udp://@:5000", "camera:1", "0", "-"]
    assert [find_sources(name)[0] for name in names] == [*names[:4], "camera:0", "-"]
    (tmp_path / "camera:1").write_text("a file of this name")
    assert find_sources("camera:1")[0].path == "camera:1"


def test_a_camera_may_be_named(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "camera:97", "--checkpoint", checkpoint]) == 2
    assert "warning: camera:97: there is no camera /dev/video97" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_gives_a_line_a_window(
    camera: RtspServer, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The server is killed and started again in between; no file and no line shows the password."""
    versions: list[tuple[int | None, str]] = []
    write = pages.write_prediction_page

    def record(path: Path, *args: Any, **options: Any) -> None:
        write(path, *args, **options)
        versions.append((options.get("refresh"), Path(path).read_text()))
        if len(versions) == 1:
            camera.stop()
            threading.Timer(0.2, camera.start).start()

    monkeypatch.setattr(pages, "write_prediction_page", record)
    files = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html"), "--csv", str(tmp_path / "a.csv")]
    command = ["predict", url_of(camera), "--checkpoint", checkpoint, "--top", "2", "--json-lines", "-"]
    assert main([*command, "--seconds", "2", *files]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) > 4
    name = f"rtsp://***@127.0.0.1:{camera.port}/camera"
    assert all(line["video"] == name and len(line["predictions"]) == 2 for line in lines)
    assert all(0 <= a["start"] < a["end"] and a["time"] <= b["time"] for a, b in pairwise(lines))
    assert {line["dropped"] for line in lines} == {0}
    assert "receiving again" in err
    assert "page: " in err, "what people read goes where people look"

    assert [refresh for refresh, _ in versions][:1] == [5]
    assert versions[-1][0] is None
    assert '<meta http-equiv="refresh" content="5">' in versions[0][1]
    assert "refresh" not in versions[-1][1]
    (entry,) = json.loads((tmp_path / "a.json").read_text())["videos"]
    assert entry["video"] == name
    assert entry["dropped"] == 0
    assert [(w["start"], w["end"]) for w in entry["windows"]] == [(line["start"], line["end"]) for line in lines]
    texts = [path.read_text() for path in tmp_path.iterdir()]
    assert len(texts) == 3
    assert "secret" not in "".join([out, err, *texts])


@pytest.mark.slow
def test_an_interrupt_ends_a_stream_cleanly(
    camera: RtspServer, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines").write_text('{"video": "of yesterday"}\n')

    def interrupt() -> None:
        if (tmp_path / "lines").read_text().count("\n") < 3:
            threading.Timer(0.1, interrupt).start()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    interrupt()
    files = ["--json-lines", str(tmp_path / "lines"), "--json", str(tmp_path / "a.json")]
    assert main(["predict", url_of(camera), "--checkpoint", checkpoint, *files]) == 0
    signal.signal(signal.SIGINT, before)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    (entry,) = json.loads((tmp_path / "a.json").read_text())["videos"]
    assert lines[0] == {"video": "of yesterday"}, "lines are appended"
    assert len(entry["windows"]) - (len(lines) - 1) in (0, 1), "the last window may come with the interrupt"
    assert " to 0:0" in capsys.readouterr().out


def test_a_file_by_http_is_read_like_the_file(
    place: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HttpServer(place) as server:
        for name in (str(place / "a.mp4"), f"{server.url}/a.mp4"):
            command = ["predict", name, "--timeline", "--json-lines", "-", "--checkpoint", checkpoint]
            assert main([*command, "--step", "0.5"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    local, remote = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    assert len(local) == 7
    for line, expected in zip(remote, local, strict=True):
        assert line["predictions"] == [
            {**prediction, "score": pytest.approx(prediction["score"], abs=1e-5)}
            for prediction in expected["predictions"]
        ]
        assert (line["start"], line["end"], line["dropped"]) == (expected["start"], expected["end"], 0)
    assert "time" not in local[0], "the time of day means something for live sources only"


@pytest.mark.slow
def test_a_live_timeline_keeps_its_newest_windows(
    place: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_module, "LIVE_WINDOWS", 5)
    said: list[Window] = []

    def note(window: Window, stream: FrameStream) -> bool:
        said.append(window)
        return len(said) == 12

    with HttpServer(place, rate=8 * (place / "a.ts").stat().st_size) as server:
        timeline = predictor.timeline(f"{server.url}/live/a.ts", live=True, on_window=note)
    assert [window.start for window in timeline.windows] == [window.start for window in said[-5:]]
    assert timeline.segments[0].start == timeline.windows[0].start > 0
    assert timeline.segments[-1].end == timeline.duration


def test_a_stream_is_no_clip(predictor: Predictor) -> None:
    with pytest.raises(VideoError, match=r"rtsp://\*\*\*@host/1: is a stream, which only a timeline reads") as caught:
        predictor.predict("rtsp://me:secret@host/1")
    assert "secret" not in str(caught.value)


def test_json_lines_need_a_place_that_can_be_written(
    place: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(place / "a.mp4"), "--checkpoint", checkpoint, "--json-lines", str(place)]
    assert main(command) == 2
    assert "--json-lines: " in capsys.readouterr().err
