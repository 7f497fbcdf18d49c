"""Every frame by index, compared with a decode of the whole file from its beginning."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from gcvideo.errors import VideoError
from gcvideo.video import FrameStream, open_video, pyav_decoder
from gcvideo.video import reader as reader_module
from gcvideo.video.decode_plan import Orientation
from gcvideo.video.mp4_tables import read_tables
from gcvideo.video.parameter_sets import parse_config
from gcvideo.video.pyav_decoder import LibavVideo
from tests.reading import COUNT, INSTALLED, RNG, VIDEOS, assert_right, x264
from tests.videos import decode_all, moving_frames, remux, write_video
from tests.zoo import STREAMS

QUICK = ("closed_gop.mp4", "intra_only.mp4", "sound.mp4", "yuv444.mp4", "hevc_layers.mp4", "h264.ts", "mpeg4_b.avi")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VIDEOS]
)
def test_every_frame_by_index(name, folder):
    settings, for_decord = VIDEOS[name]
    path = write_video(folder / name, moving_frames(COUNT, 64, 128), **settings)
    assert assert_right(path, "pyav").backend == "pyav"
    assert assert_right(path, "auto").backend == ("decord" if for_decord else "pyav")
    if for_decord:
        assert assert_right(path, "decord").backend == "decord"
    else:
        with pytest.raises(VideoError, match="use backend pyav or auto"):
            open_video(path, backend="decord")


def without_usability_information(record: bytes) -> bytes:
    """An avcC whose parameter set does not tell how far pictures are reordered, of the same length."""
    size = int.from_bytes(record[6:8], "big")
    untold = dataclasses.replace(parse_config("h264", record), reorder=None)
    bits = "".join(f"{byte:08b}" for byte in record[8 : 8 + size])
    for position in range(len(bits) - 2, 0, -1):
        shorter = (bits[:position] + "01").ljust(len(bits), "0")
        if bits[position] == "0":
            continue
        changed = record[:8] + int(shorter, 2).to_bytes(size, "big") + record[8 + size :]
        with contextlib.suppress(ValueError):
            if dataclasses.replace(parse_config("h264", changed), sets=untold.sets) == untold:
                found = changed
    return found  # the earliest place that leaves all else: the flag in front of the information


def test_unknown_order_of_output(folder):
    """Then decoders guess, and decord's frames may shift; PyAV is told to wait as long as the standard allows."""
    settings = x264(bframes=3, b_pyramid="normal")
    path = write_video(folder / "told.mp4", moving_frames(COUNT, 64, 128), **settings)
    whole, _ = decode_all(path)
    config = read_tables(str(path)).config
    untold = folder / "untold.mp4"
    untold.write_bytes(path.read_bytes().replace(config, without_usability_information(config)))
    assert read_tables(str(untold)).info.reorder is None
    with pytest.raises(VideoError, match="does not tell how pictures are reordered"):
        open_video(untold, backend="decord")
    with open_video(untold) as reader:
        assert reader.backend == "pyav"
        for indices in (range(COUNT), [20, 3], [17, 18, 19]):
            assert (reader.frames(indices) == whole[list(indices)]).all()


@pytest.mark.parametrize("start", [0, 0.3, 0.77, 1.1])
@pytest.mark.parametrize("source", ["closed_gop.mp4", "open_gop.mp4", "hevc_open.mp4", "uneven.mp4", "open_gop.mkv"])
def test_files_cut_without_encoding(source, start, folder):
    """`ffmpeg -ss ... -c copy` leaves an edit list over pictures that are decoded but not shown."""
    path = folder / source
    if not path.exists():
        write_video(path, moving_frames(COUNT, 64, 128), **VIDEOS[source][0])
    cut = remux(path, folder / f"cut_{start}_{source}", start=start, end=1.6)
    assert_right(cut, "auto")
    assert_right(cut, "pyav")


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rotation_is_honoured_by_all_backends_alike(rotation, suffix, folder):
    frames = moving_frames(4, 64, 128)
    path = write_video(folder / f"turned{rotation}.{suffix}", frames, rotation=rotation)
    clockwise = np.rot90(frames, -rotation // 90, axes=(1, 2)).astype(int)
    for backend in ["auto", *(name for name in INSTALLED if name == "pyav" or suffix == "mp4")]:
        reader = assert_right(path, backend)
        assert (reader.height, reader.width) == clockwise.shape[1:3]
        assert (
            np.abs(reader_frames(path, backend) - clockwise).mean() < 30
        )  # the loss of the encoder; other turns are twice as far off


@pytest.mark.parametrize("name", ["turned90.mp4", "turned90.mkv"])
def test_part_of_a_frame(name, folder):
    path = write_video(folder / f"part_{name}", moving_frames(4, 64, 128), rotation=90)
    for backend in ["auto", *(name for name in INSTALLED if name == "pyav" or path.suffix == ".mp4")]:
        with open_video(path, backend=backend) as reader:
            assert (reader.frames([3, 1], (8, 16, 40, 30)) == reader.frames([3, 1])[:, 8:48, 16:46]).all()


def reader_frames(path: Path, backend: str) -> np.ndarray:
    with open_video(path, backend=backend) as reader:
        return reader.frames(range(len(reader))).astype(int)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 48), (33, 17), (1, 1), (2, 2), (34, 66), (64, 35)])
def test_odd_and_tiny_sizes(height, width, folder):
    pixel_format = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    frames = moving_frames(6, height, width)
    path = write_video(folder / f"odd{height}x{width}.mp4", frames, pixel_format=pixel_format)
    assert_right(path, "auto")  # decord refuses some of these widths: PyAV steps in


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_frames(count, folder):
    path = write_video(folder / f"short{count}.mp4", moving_frames(count, 64, 128))
    for backend in ("auto", *INSTALLED):
        reader = assert_right(path, backend)
        assert reader.fps == pytest.approx(25)


def test_unusual_file_names(folder, closed):
    for name in ("-with a space.mp4", "ünï'\"cödé%03d.mp4", "http:host.mp4", "no_suffix", "wrong.avi"):
        path = folder / name
        path.write_bytes(closed.read_bytes())
        for backend in ("auto", *INSTALLED):
            assert_right(path, backend)


@pytest.mark.parametrize("name", ["rate_24000_1001.mp4", "rate_60.avi", "mp4_to_avi.avi", "h264_avi_to_mkv.mkv"])
def test_rates(name, folder):
    """Also of H.264 in AVI, where libavformat's average is twice the real one."""
    path = STREAMS[name].make(folder)
    expected = Fraction(name.split(".")[0].removeprefix("rate_").replace("_", "/")) if "rate" in name else 25
    with open_video(path) as reader, FrameStream(str(path)) as stream:
        assert reader.fps == pytest.approx(float(expected), rel=0.01)
        assert stream.fps == pytest.approx(float(expected), rel=0.01)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command")
@pytest.mark.parametrize("bframes", [0, 2])
def test_the_rate_of_a_short_copy_to_avi(tmp_path, bframes):
    """Its last frame may have a time half an interval early."""
    source = write_video(tmp_path / "a.mp4", moving_frames(50), **x264(bframes=bframes))
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, "-c", "copy", tmp_path / "a.avi"], check=True)
    with open_video(tmp_path / "a.avi") as reader:
        assert reader.fps == 25


@pytest.mark.parametrize("name", ["matrix_mirrored.mp4", "matrix_transposed_fragments.mp4", "turned_90.mkv"])
def test_streams_are_turned_as_readers_turn(name, folder):
    path = STREAMS[name].make(folder)
    with open_video(path) as reader, FrameStream(str(path)) as stream:
        frames = reader.frames(range(len(reader)))
        for frame, expected in zip(stream, frames, strict=True):
            assert np.array_equal(frame.rgb(), expected)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0], [0, 1]], Orientation()),
        ([[-1, 0], [0, 1]], Orientation(flip_columns=True)),
        ([[0, 1], [-1, 0]], Orientation(transpose=True, flip_columns=True)),  # clockwise
        ([[0, -1], [1, 0]], Orientation(transpose=True, flip_rows=True)),
        ([[0, 1], [1, 0]], Orientation(transpose=True)),
        ([[-2, 0.01], [-0.01, -2]], Orientation(flip_rows=True, flip_columns=True)),
        ([[0, 0], [0, 0]], Orientation()),
        ([[1, 0], [0, 0]], Orientation()),
    ],
)
def test_display_matrices(matrix, expected):
    assert Orientation.from_matrix(np.array(matrix)) == expected


def test_relative_path(closed, monkeypatch):
    monkeypatch.chdir(closed.parent)
    for backend in ("auto", *INSTALLED):
        assert len(open_video(closed.name, backend=backend)) == COUNT


@pytest.mark.slow
def test_real_videos(shared):
    """Every file of the reference folder either opens and gives right frames, or is refused with its reason."""
    # The largest ones take a minute each; one of that kind is enough.
    files = [f for f in sorted((shared / "videos").rglob("*")) if f.is_file() and f.parent.name != "reference"]
    files = [f for f in files if f.stat().st_size < 800_000]
    assert len(files) > 20
    for path in files:
        try:
            whole, _ = decode_all(path)
        except Exception:
            with pytest.raises(VideoError), open_video(path) as reader:
                reader.frames(range(len(reader)))
            continue
        with open_video(path) as reader:
            assert len(reader) == len(whole), path.name
            indices = RNG.integers(0, len(whole), 6)
            assert (reader.frames(indices) == whole[indices]).all(), path.name


def test_reference_frames(shared):
    """Frames that torchcodec's authors took out of a file with the ffmpeg command."""
    folder = shared / "videos" / "torchcodec"
    checked = 0
    for name in ("nasa_13013.mp4", "h265_video.mp4"):
        references = sorted((folder / "reference").glob(f"{name}.stream0.frame*.pt"))
        indices = [int(f.name.split("frame")[1].split(".")[0]) for f in references]
        for backend in ("auto", *INSTALLED) if name == "nasa_13013.mp4" else ("auto", "pyav"):  # no other reads HEVC
            with open_video(folder / name, backend=backend) as reader:
                for frame, file in zip(reader.frames(indices), references, strict=True):
                    reference = torch.load(file, weights_only=True).numpy()
                    difference = np.abs(frame.astype(int) - reference.astype(int))
                    assert difference.max() <= 2, file.name
                    checked += 1
    assert checked >= 16


def test_each_frame_is_decoded_once(closed, monkeypatch):
    decoded = []

    def spy(track, data, wanted):
        decoded.append((list(data), list(wanted)))
        return pyav_decoder.decode_with_pyav(track, data, wanted)

    monkeypatch.setitem(reader_module._DECODERS, "pyav", spy)
    with open_video(closed, backend="pyav") as reader:
        reader.frames([30, 30, 30, 14, 30, 14])
    ((samples, wanted),) = decoded
    assert len(wanted) == 2
    assert len(set(samples)) == len(samples)
    assert min(samples) >= 12  # nothing of the first group of pictures
    assert len(samples) < 19  # 12 to 30, without unwanted pictures to which no other refers


def test_a_torch_bridge_does_not_matter(closed):
    decord = pytest.importorskip("decord")
    expected = open_video(closed).frames([5])
    decord.bridge.set_bridge("torch")  # as pytorchvideo does when its data part is imported
    try:
        found = open_video(closed).frames([5])
        assert isinstance(found, np.ndarray)
        assert (found == expected).all()
        assert decord.bridge._CURRENT_BRIDGE.type == "torch"
    finally:
        decord.bridge.set_bridge("native")
    open_video(closed).frames([5])
    assert decord.bridge._CURRENT_BRIDGE.type == "native"


def test_a_seek_that_goes_too_far(closed, folder):
    """Or fails: then the file is read from its beginning."""
    path = remux(closed, folder / "seek.mkv")
    whole, _ = decode_all(path)
    video = LibavVideo(str(path))
    calls = []

    class Overshooting:
        def __init__(self, container):
            self.container = container

        def seek(self, *_, stream):
            calls.append("seek")
            if len(calls) == 1:
                raise av.error.PermissionError(1, "Operation not permitted")
            self.container.seek(1440, stream=stream)  # milliseconds: the last key picture

        def __getattr__(self, name):
            return getattr(self.container, name)

    for index in (5, 5, 30):
        video._container = Overshooting(video._container)
        [(_, frame)] = video.decode(np.array([index]))
        assert (frame == whole[index]).all()
    assert len(calls) == 3
    video.close()


def test_files_are_let_go(closed):
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    for backend in INSTALLED:
        open_video(closed, backend=backend).frames([1])
    before = open_files()
    for backend in INSTALLED:
        for _ in range(5):
            reader = open_video(closed, backend=backend)
            reader.frames([3])
        del reader
    with pytest.raises(VideoError):
        open_video(closed.parent / "text.mp4")
    assert open_files() == before


def test_importing_gcvideo_brings_no_optional_decoder():
    code = "import sys, gcvideo, gcvideo.video.reader; print('decord' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
