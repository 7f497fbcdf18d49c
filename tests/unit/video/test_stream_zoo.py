"""The stream zoo: every frame of every stream is the right one, in any request, through every backend; or refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gcvideo.video import VideoError, open_video
from tests.boxes import COUNT, decode_in_order, read_number
from tests.reading import INSTALLED
from tests.zoo import STREAMS

# One stream of each kind, for the quick tier.
QUICK = [
    *("h264_b2_gop12.mp4", "h264_open_normal.mp4", "hevc_b2_open1.mp4", "h264.avi", "h264_fragments.mp4", "vp9.webm"),
    *("h264_avi_to_mp4.mp4", "h264_b2_gop12_decoding_times.mkv", "h264_b2_gop12_exchanged.mp4", "short_1_h264.ts"),
    *("joined_in_band_once.mp4", "joined_descriptions.mp4", "joined_sizes.mp4", "hevc_b2_open0_no_picture.mp4"),
    *("matrix_mirrored.mp4", "matrix_mirrored_fragments.mp4", "h264_b2_gop12_cut_0.5.mp4", "uneven.mkv"),
]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


def requests(count: int) -> Iterator[tuple[list[int], bool]]:
    """Indices to ask for, and whether of a fresh reader."""
    rng = np.random.default_rng(count)
    yield list(range(count)), True
    yield list(range(count))[::-1], False
    yield [count - 1, 0, count // 2, 0, count - 1], False
    for _ in range(4):
        yield rng.choice(count, min(count, 5), replace=False).tolist(), False
    for index in rng.permutation(count).tolist():
        yield [index], True
    yield list(range(count // 3, count, 3)), True


def wrong_frames(name: str, folder, backend: str) -> list[str]:
    """What comes out wrong of one stream through one backend."""
    stream = STREAMS[name]
    path = folder / name
    if not path.exists():
        stream.make(folder)
    whole = [stream.turned(frame) for frame in decode_in_order(path)]
    short = name.startswith("short_")  # then pictures at the end are damaged
    wrong = []
    try:
        reader = open_video(path, backend=backend)
    except VideoError as error:
        trusted = backend in ("auto", "pyav") and not stream.refusable and whole
        return [f"refused: {error.reason}"] if trusted else []
    missing = len(reader) - len(whole)  # samples that hold no picture, or pictures that refer to a lost one
    if missing and not stream.refusable:
        wrong.append(f"{len(reader)} frames of {len(whole)}")
    for indices, fresh in requests(len(reader)):
        if fresh:
            reader.close()
            reader = open_video(path, backend=backend)
        try:
            frames = reader.frames(indices)
        except VideoError as error:
            damaged = short and "damaged" in error.reason
            if not (stream.refusable or damaged or backend == "decord"):
                wrong.append(f"{indices} refused: {error.reason}")
            continue
        for index, frame in zip(indices, frames, strict=True):
            if missing:  # then only the numbers tell
                right = read_number(frame) in (index, index + ("lost" in name))
            else:
                right = np.array_equal(frame, whole[index])
            if not right:
                wrong.append(f"frame {index} of {len(indices)} is another one ({read_number(frame)})")
    reader.close()
    return wrong


def check(name: str, folder) -> None:
    stream = STREAMS[name]
    if not (folder / name).exists():
        stream.make(folder)
    if stream.numbers is not None:  # the decode in order, with which readers are compared, is right itself
        numbers = [read_number(frame) for frame in decode_in_order(folder / name)]
        assert numbers == list(stream.numbers)
    found = {backend: wrong_frames(name, folder, backend) for backend in ("auto", *INSTALLED)}
    assert not any(found.values()), found


@pytest.mark.parametrize("name", QUICK)
def test_streams_of_each_kind(name, zoo):
    check(name, zoo)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STREAMS if name not in QUICK])
def test_streams(name, zoo):
    check(name, zoo)


def test_the_zoo_is_large():
    assert len(STREAMS) >= 270
    assert COUNT > 16
