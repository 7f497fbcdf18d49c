"""``Predictor.predict`` and ``timeline`` take videos of any kind: the same frames give the same result."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gcvideo
from gcvideo.errors import VideoError
from gcvideo.predict.predictor import Prediction, Predictor
from gcvideo.predict.timeline import Timeline
from gcvideo.video import open_video
from tests.tiny import tiny_checkpoint
from tests.videos import moving_frames, write_video


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name, seed in (("a.mp4", 0), ("b.mkv", 1)):  # decord reads the first, PyAV the second
        write_video(folder / name, moving_frames(30, 50, 70, seed=seed), fps=20)
    return folder


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return gcvideo.load(tiny_checkpoint(tmp_path_factory.mktemp("run")), device="cpu")


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A network whose clips are cut by time."""
    folder = tmp_path_factory.mktemp("rated")
    return gcvideo.load(tiny_checkpoint(folder, data={"target_fps": 30.0}), device="cpu")


def closed_file() -> io.BytesIO:
    file = io.BytesIO(b"video")
    file.close()
    return file


def decoded(path: Path) -> np.ndarray:
    with open_video(path) as video:
        return video.frames(range(len(video)))


def reused(frames: np.ndarray) -> Iterator[np.ndarray]:
    """A camera loop that gives every frame in the same piece of memory."""
    buffer = np.empty_like(frames[0])
    for frame in frames:
        buffer[:] = frame
        yield buffer


FORMS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "text": (str, False),
    "bytes": (Path.read_bytes, False),
    "bytearray": (lambda path: bytearray(path.read_bytes()), False),
    "file": (lambda path: path.open("rb"), False),
    "bytes in memory": (lambda path: io.BytesIO(path.read_bytes()), False),
    "array": (decoded, True),
    "array in another order": (lambda path: np.asfortranarray(decoded(path)), True),
    "read-only array": (lambda path: np.frombuffer(decoded(path).tobytes(), np.uint8).reshape(30, 50, 70, 3), True),
    "tensor": (lambda path: torch.from_numpy(decoded(path)), True),
    "iterator": (lambda path: iter(decoded(path)), True),
    "camera loop": (lambda path: reused(decoded(path)), True),
    "tensors": (lambda path: iter(torch.from_numpy(decoded(path))), True),
    "pictures": (lambda path: map(Image.fromarray, decoded(path)), True),
}


@pytest.fixture(scope="module")
def expected(rated: Predictor, place: Path) -> tuple[list[Prediction], Timeline]:
    return rated.predict(place / "a.mp4", top=4), rated.timeline(place / "a.mp4", step=0.3)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_frames_give_the_same_result(
    rated: Predictor, place: Path, expected: tuple[list[Prediction], Timeline], form: str
) -> None:
    make, needs_fps = FORMS[form]
    options: Any = {"fps": 20} if needs_fps else {}
    assert rated.predict(make(place / "a.mp4"), top=4, **options) == expected[0]
    same(rated.timeline(make(place / "a.mp4"), step=0.3, **options), expected[1])


def same(found: Timeline, expected: Timeline) -> None:
    assert len(expected.windows) > 3
    for window, wanted in zip(found.windows, expected.windows, strict=True):
        np.testing.assert_array_equal(window.scores, wanted.scores)
        assert window[:2] == pytest.approx(wanted[:2], abs=1e-3)
    assert [segment.label for segment in found.segments] == [segment.label for segment in expected.segments]
    assert found.duration == pytest.approx(expected.duration, abs=1e-3)


def test_a_file_is_read_from_its_beginning_each_time(predictor: Predictor, place: Path) -> None:
    with (place / "a.mp4").open("rb") as file:
        assert predictor.predict(file) == predictor.predict(file) == predictor.predict(place / "a.mp4")
        assert len(predictor.timeline(file).windows) == len(predictor.timeline(file).windows)


def test_files_that_cannot_be_sought(predictor: Predictor, place: Path) -> None:
    class Response:
        """As of ``urllib.request.urlopen``."""

        def __init__(self, content: bytes) -> None:
            self.read = io.BytesIO(content).read

    assert predictor.predict(Response((place / "a.mp4").read_bytes())) == predictor.predict(place / "a.mp4")
    packed = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress((place / "a.mp4").read_bytes())))
    assert predictor.predict(packed) == predictor.predict(place / "a.mp4")


def test_a_list_of_all_kinds_gives_a_list(predictor: Predictor, place: Path) -> None:
    a, b = place / "a.mp4", place / "b.mkv"
    assert predictor.predict(decoded(b)) == predictor.predict(b), "clips are cut by counting: no rate is needed"
    expected = [predictor.predict(a), predictor.predict(b)]
    assert expected[0] != expected[1]
    mixed = [a, b.read_bytes(), decoded(a), b.open("rb"), iter(decoded(a)), str(b)]
    assert predictor.predict(mixed, fps=20) == expected * 3
    assert predictor.predict((a, b)) == expected
    assert predictor.predict([a]) == expected[:1]
    assert predictor.predict([]) == []
    first, second = predictor.timeline([a, b.read_bytes()], step=0.3)
    same(first, predictor.timeline(a, step=0.3))
    same(second, predictor.timeline(b, step=0.3))


FRAMES = moving_frames(12)
WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: FRAMES[0], r"the array: frame 0 is uint8 of shape \(64, 3\); frames are \(H, W, 3\), RGB, uint8"),
    (lambda: FRAMES.transpose(0, 3, 1, 2), r"of shape \(3, 48, 64\)"),
    (lambda: torch.from_numpy(FRAMES).permute(3, 0, 1, 2), r"of shape \(12, 48, 64\)"),
    (lambda: FRAMES[..., 0], r"of shape \(48, 64\)"),
    (lambda: np.concatenate([FRAMES, FRAMES[..., :1]], 3), r"of shape \(48, 64, 4\)"),
    (lambda: FRAMES[None], r"of shape \(12, 48, 64, 3\); .*; several videos make a list"),
    (lambda: FRAMES[:0], "the array: holds no frame"),
    (lambda: FRAMES / 255, "frame 0 is float64 .* uint8 from 0 to 255"),
    (lambda: torch.from_numpy(FRAMES).half(), "frame 0 is float16"),
    (lambda: torch.from_numpy(FRAMES).bfloat16(), "frame 0 is bfloat16"),
    (lambda: FRAMES.astype(np.int64), "frame 0 is int64"),
    (lambda: iter([]), "the iterator of frames: holds no frame"),
    (lambda: iter([FRAMES[0], FRAMES[1, :40]]), r"frame 1 is uint8 of shape \(40, 64, 3\); .* all of one size"),
    (lambda: iter(list(FRAMES / 255)), "frame 0 is float64"),
    (lambda: iter(["a.mp4", "b.mp4"]), r"frame 0 is <U5 of shape \(\)"),
    (lambda: iter([FRAMES]), r"frame 0 is uint8 of shape \(12, 48, 64, 3\)"),
    (lambda: b"", "bytes: "),
    (lambda: b"this is no video", "bytes: "),
    (lambda: io.BytesIO(b"\0" * 5000), "the open file: "),
    (lambda: io.StringIO("text"), "open as text; open it with"),
    (closed_file, "the open file: is closed, .*open it with"),
    (lambda: 7, "int: is no video: give a path"),
    (lambda: None, "NoneType: is no video"),
    (lambda: {"video": FRAMES}, "dict: is no video"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_inputs_are_named_in_one_line(predictor: Predictor, make: Callable[[], Any], message: str) -> None:
    for call in (predictor.predict, predictor.timeline):
        video: Any = make()
        options: Any = {"fps": 20} if isinstance(video, np.ndarray | torch.Tensor | type(iter([]))) else {}
        with pytest.raises(VideoError, match=message) as caught:
            call(video, **options)
        assert "\n" not in str(caught.value)


def test_a_wrong_video_of_a_list_is_told_by_its_place(predictor: Predictor, place: Path) -> None:
    with pytest.raises(VideoError, match=r"the array \(number 2 of 2\): frame 0 is float64"):
        predictor.predict([place / "a.mp4", FRAMES / 255], fps=20)


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf"), "25", (25,)])
def test_a_wrong_rate_is_refused(predictor: Predictor, fps: Any) -> None:
    for call in (predictor.predict, predictor.timeline):
        with pytest.raises(VideoError, match="fps must be a number of frames per second above 0"):
            call(FRAMES, fps=fps)


def test_a_rate_is_asked_for_where_it_matters_and_only_there(
    predictor: Predictor, rated: Predictor, place: Path
) -> None:
    for call in (rated.predict, predictor.timeline):
        with pytest.raises(VideoError, match="has no frame rate of its own: give fps="):
            call(FRAMES)
    for call in (predictor.predict, predictor.timeline):
        with pytest.raises(VideoError, match=r"a\.mp4: tells its own frame rate"):
            call(place / "a.mp4", fps=20)
    slow, fast = rated.predict(FRAMES, fps=10), rated.predict(FRAMES, fps=60)
    assert slow != fast


def test_an_endless_iterator_is_no_clip_but_makes_a_timeline(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def camera() -> Iterator[np.ndarray]:
        while True:
            yield from FRAMES

    monkeypatch.setattr("gcvideo.predict.inputs.MAX_BYTES", 1 << 20)
    with pytest.raises(VideoError, match="of frames; timelines take any length"):
        predictor.predict(camera())
    ended = predictor.timeline(camera(), fps=25, on_window=lambda window, stream: window.end > 3)
    assert 3 < ended.duration < 4


def test_whole_frames_of_arrays_of_several_sizes(predictor: Predictor) -> None:
    test = replace(predictor.config.test, whole_frame=True)
    sizes = [moving_frames(10, 48, 64), moving_frames(10, 64, 48)]
    assert predictor.predict(sizes, test=test) == [predictor.predict(frames, test=test) for frames in sizes]
