"""The sliding window and the timeline made of its answers."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.crops import resize_short_side
from gcvideo.data.dataset import VideoViews, make_views
from gcvideo.data.sampling import uniform_clips
from gcvideo.errors import VideoError
from gcvideo.predict.timeline import Segment, SlidingWindows, Window, make_timeline
from gcvideo.video import FrameStream, StreamFrame, open_video
from tests.videos import moving_frames, write_video

DATA = DataConfig(frames=4, stride=3, crop=32, short_side=(32, 32))
TEST = TestConfig(crops=1, crop=32, short_side=36)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("stream") / "a:b %03d.mp4", moving_frames(40), fps=20)


def test_windows_show_the_frames_of_a_training_clip(video: Path) -> None:
    with open_video(video) as reader:
        everything = resize_short_side(reader.frames(range(40)), 36).numpy()  # (3, 40, H, W)
    with FrameStream(str(video)) as stream:
        windows = list(SlidingWindows(stream, fps=stream.fps, step=0.25, data=DATA, test=TEST))
    clip = uniform_clips(12, 4, 3, 1)[0]
    assert len(windows) == 7  # 12 frames each, from 0, 5, 10 ... 25; the seventh, from 30, reaches past the end
    for index, window in enumerate(windows):
        top, left, height, width = window.crops[0].tolist()
        frames = np.minimum(5 * index + clip, 38)  # 38: the last frame before 41 that any window wants
        expected = everything[:, frames, top : top + height, left : left + width]
        shown = make_views(window)[0].numpy()
        assert np.abs(shown.astype(int) - expected).mean() < 1, index


@pytest.mark.parametrize(
    ("data", "test", "clip"),
    [
        ({"target_fps": 12.5}, {}, uniform_clips(24, 4, 3, 1, speed=2.0)),  # of a stream of 25 frames a second
        ({}, {"convention": "mmaction2"}, uniform_clips(12, 4, 3, 1, convention="mmaction2")),
    ],
    ids=["target_fps", "convention"],
)
def test_windows_are_spaced_as_the_config_says(data: dict, test: dict, clip: np.ndarray) -> None:
    views = SlidingWindows([], fps=25, step=None, data=replace(DATA, **data), test=replace(TEST, **test))
    assert views.offsets.tolist() == clip[0].tolist()
    assert views.hop == (12 if data else 6)  # half a window


def test_windows_of_the_whole_frame(video: Path) -> None:
    test = replace(TEST, whole_frame=True, crops=3)
    with FrameStream(str(video)) as stream:
        window = next(iter(SlidingWindows(stream, fps=stream.fps, step=None, data=DATA, test=test)))
    assert window.crops.tolist() == [[0, 0, 36, 48]]


def test_memory_does_not_grow_with_the_video() -> None:
    frame = np.zeros((48, 64, 3), np.uint8)

    def stream() -> Iterator[StreamFrame]:
        yield from (StreamFrame(i, i / 25, frame) for i in range(3000))

    views = SlidingWindows(stream(), fps=25, step=0.2, data=DATA, test=TEST)
    kept, spans = zip(*((len(views._kept), window.spans[0].tolist()) for window in views), strict=True)
    assert max(kept) <= 12
    assert views.duration == pytest.approx(120)
    assert spans[0] == [0, pytest.approx(12 / 25)]


@pytest.mark.parametrize("count", [1, 2, 11])
def test_a_video_shorter_than_a_window_gives_one(count: int) -> None:
    frames = [StreamFrame(i, i / 25, np.full((48, 64, 3), i, np.uint8)) for i in range(count)]
    (window,) = SlidingWindows(frames, fps=25, step=10, data=DATA, test=TEST)
    shown = make_views(window)[0, 0, :, 0, 0].tolist()
    wanted = uniform_clips(12, 4, 3, 1)[0]
    assert shown == [max(i for i in wanted if i <= min(want, count - 1)) for want in wanted]


def counted(numbers: Iterable[int], *, turned_from: int | None = None) -> list[VideoViews]:
    """The windows of frames with these numbers, every pixel of which is the number."""
    frames = []
    for number in numbers:
        size = (64, 48) if turned_from is not None and number >= turned_from else (48, 64)
        frames.append(StreamFrame(number, number / 25, np.full((*size, 3), number, np.uint8)))
    return list(SlidingWindows(frames, fps=25, step=0.2, data=DATA, test=TEST))


def shown(windows: list[VideoViews]) -> list[list[int]]:
    return [make_views(window)[0, 0, :, 0, 0].tolist() for window in windows]


def test_a_window_begins_behind_frames_that_are_missing() -> None:
    clip = uniform_clips(12, 4, 3, 1)[0]
    whole = [list(start + clip) for start in (0, 5, 10)]
    again = [list(start + clip) for start in (50, 55)]
    windows = counted([*range(23), *range(50, 68)])
    assert shown(windows)[:5] == [*whole, *again]
    assert [window.index for window in windows] == list(range(len(windows)))
    assert windows[3].spans[0].tolist() == pytest.approx([50 / 25, (50 + clip[-1] + 1) / 25])
    assert shown(counted([*range(7), 9, *range(20, 33)]))[0] == list(20 + clip), "no window spans a gap"


def test_a_window_begins_where_the_size_changes() -> None:
    clip = uniform_clips(12, 4, 3, 1)[0]
    windows = counted(range(60), turned_from=31)
    assert shown(windows)[:4] == [list(start + clip) for start in (0, 5, 10, 15)]
    first = next(window for window in windows if window.frames.shape[2] > window.frames.shape[3])
    assert shown([first])[0][0] in range(31, 37)
    assert all(np.diff(row).tolist() == np.diff(clip).tolist() for row in shown(windows)[:-1])


def one_hot(*labels: int) -> list[Window]:
    return [Window(float(i), i + 2.0, np.eye(3)[label] * 0.8 + 0.1) for i, label in enumerate(labels)]


def spans(segments: list[Segment]) -> list[tuple[float, float, str]]:
    return [(segment.start, segment.end, segment.label) for segment in segments]


def test_a_timeline_has_no_gaps_and_starts_and_ends_with_the_video() -> None:
    segments = make_timeline(one_hot(0, 0, 1, 1, 2), ["a", "b", "c"], duration=6.0)
    assert spans(segments) == [(0, 2.5, "a"), (2.5, 4.5, "b"), (4.5, 6, "c")]
    assert segments[0].score == pytest.approx(0.9)


def test_smoothing_outvotes_a_single_window() -> None:
    windows = one_hot(0, 0, 1, 0, 0)
    assert len(make_timeline(windows, ["a", "b", "c"], duration=6)) == 3
    assert spans(make_timeline(windows, ["a", "b", "c"], duration=6, smooth=2)) == [(0, 6, "a")]


def test_scores_are_means_over_the_windows_around() -> None:
    """Within half of ``smooth`` on either side, as far as there are windows."""
    values = [0.5, 0.6, 0.7, 0.8, 1.0]
    windows = [Window(float(i), i + 2.0, np.array([value, 0.0])) for i, value in enumerate(values)]
    (segment,) = make_timeline(windows, ["a", "b"], duration=6, smooth=2)
    around = [values[max(0, i - 1) : i + 2] for i in range(5)]
    assert segment.score == pytest.approx(np.mean([np.mean(part) for part in around]))


def test_short_segments_join_the_neighbour_that_scores_higher_in_them() -> None:
    windows = one_hot(0, 0, 0, 1, 2, 2, 2)
    windows[3] = windows[3]._replace(scores=np.array([0.1, 0.6, 0.3]))
    segments = make_timeline(windows, ["a", "b", "c"], duration=8, min_length=1.5)
    assert [segment.label for segment in segments] == ["a", "c"]
    assert segments[1].start == 3.5


def test_a_segment_of_just_the_shortest_length_stays() -> None:
    windows = one_hot(0, 0, 0, 1, 2, 2, 2)
    assert len(make_timeline(windows, ["a", "b", "c"], duration=8, min_length=1.0)) == 3
    assert len(make_timeline(windows, ["a", "b", "c"], duration=8, min_length=1.01)) == 2


def test_the_shortest_segment_joins_first() -> None:
    """A second of c makes b, before it, long enough."""
    windows = one_hot(0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0)
    windows[6] = windows[6]._replace(scores=np.array([0.1, 0.3, 0.6]))
    segments = make_timeline(windows, ["a", "b", "c"], duration=12, min_length=2.5)
    assert spans(segments) == [(0, 4.5, "a"), (4.5, 7.5, "b"), (7.5, 12, "a")]


def test_a_stream_has_the_times_of_the_file(video: Path) -> None:
    with FrameStream(str(video)) as stream:
        times = [frame.time for frame in stream]
    assert stream.problem is None
    assert stream.expected == 40
    np.testing.assert_allclose(times, np.arange(40) / 20, atol=1e-3)


def test_a_pipe_is_read_without_seeking(video: Path, tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, path: Path) -> None:
            self.file = path.open("rb")

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            return self.file.readinto(buffer)

    matroska = write_video(tmp_path / "a.mkv", moving_frames(12), fps=20)
    with FrameStream(io.BufferedReader(Pipe(matroska))) as stream:
        assert len(list(stream)) == 12
    (tmp_path / "text").write_text("no video" * 100)
    with pytest.raises(VideoError, match=r"standard input: .*MPEG-TS, Matroska"):
        FrameStream(io.BufferedReader(Pipe(tmp_path / "text")))


def test_a_video_cut_short_gives_what_it_has_and_says_why(video: Path, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.ts", moving_frames(40), fps=20, gop=10)
    content = bytearray(whole.read_bytes())
    (tmp_path / "cut.ts").write_bytes(content[: len(content) // 2])
    with FrameStream(str(tmp_path / "cut.ts")) as stream:
        assert 5 < len(list(stream)) < 40


@pytest.mark.parametrize(("source", "reason"), [("camera:99", "there is no camera"), ("absent.mp4", "No such file")])
def test_what_is_not_there_is_named(source: str, reason: str) -> None:
    with pytest.raises(VideoError, match=reason):
        FrameStream(source)
