"""Every frame by index, compared with a decode of the whole file from its beginning."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from gcvideo.data import decoders, torchcodec_decoder
from gcvideo.data import reader as reader_module
from gcvideo.data.bitstream import BitstreamError, parse_avc_config
from gcvideo.data.libav import LibavVideo
from gcvideo.data.mp4 import read_track
from gcvideo.data.reader import VideoReader, open_video, why_missing
from gcvideo.errors import VideoError
from tests.videos import decode_all, moving_frames, remux, write_video

NO_TORCHCODEC = why_missing("torchcodec")
needs_torchcodec = pytest.mark.skipif(NO_TORCHCODEC is not None, reason=NO_TORCHCODEC or "")
WITH_TORCHCODEC = pytest.param("torchcodec", marks=needs_torchcodec)
INSTALLED = ("decord", "pyav") if NO_TORCHCODEC else ("decord", "pyav", "torchcodec")
COUNT = 45
RNG = np.random.default_rng(0)
X265 = "log-level=none:pools=none:frame-threads=1:scenecut=0:"
UNEVEN = np.cumsum(RNG.integers(1, 6, COUNT)).tolist()
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def x264(gop: int = 12, **parameters: str | int) -> dict:
    text = ":".join(f"{key.replace('_', '-')}={value}" for key, value in {"scenecut": 0, **parameters}.items())
    return {"gop": gop, "options": {"preset": "medium", "x264-params": text}}


def x265(parameters: str) -> dict:
    return {"codec": "libx265", "options": {"preset": "medium", "x265-params": X265 + parameters}}


# File name: how it is written, and whether decord may read it.
VIDEOS: dict[str, tuple[dict, bool]] = {
    "closed_gop.mp4": (x264(bframes=3, b_pyramid="normal"), True),
    "many_b.mp4": (x264(gop=40, bframes=8, b_pyramid="strict", b_adapt=0), True),
    "no_b.mov": (x264(bframes=0), True),
    "default_gop.mp4": (x264(gop=250), True),
    "intra_only.mp4": (x264(gop=1), True),
    "open_gop.mp4": (x264(bframes=3, open_gop=1, b_pyramid="normal"), True),
    "open_gop_many_b.mp4": (x264(bframes=6, open_gop=1, b_pyramid="strict", b_adapt=0), True),
    "intra_refresh.mp4": (x264(intra_refresh=1), True),
    "interlaced.mp4": (x264(tff=1), False),
    "fragmented.mp4": ({**x264(), "container_options": FRAGMENTS}, False),
    "tables_first.mp4": ({**x264(), "container_options": {"movflags": "faststart"}}, True),
    "sound.mp4": ({**x264(), "audio": True}, True),
    "uneven.mp4": ({**x264(), "pts": UNEVEN, "time_base": Fraction(1, 100)}, True),
    "late_start.mp4": ({**x264(), "pts": range(125, 125 + COUNT), "time_base": Fraction(1, 25)}, True),
    "late_start.mkv": ({**x264(), "pts": range(125, 125 + COUNT), "time_base": Fraction(1, 25)}, False),
    "ten_bits.mp4": ({**x264(), "pixel_format": "yuv420p10le"}, False),
    "yuv444.mp4": ({**x264(), "pixel_format": "yuv444p"}, True),
    "full_range.mp4": ({**x264(), "pixel_format": "yuvj420p"}, True),
    "hevc_closed.mp4": (x265("open-gop=0:keyint=12"), True),
    "hevc_open.mp4": (x265("open-gop=1:keyint=12:bframes=4"), True),
    "hevc_layers.mp4": (x265("temporal-layers=3:keyint=15:bframes=4"), True),
    "hevc_ten_bits.mp4": ({**x265("keyint=12"), "pixel_format": "yuv420p10le"}, False),
    "hevc_open.mkv": (x265("open-gop=1:keyint=12:bframes=4"), False),
    "open_gop.mkv": (x264(bframes=3, open_gop=1), False),
    "h264.avi": (x264(), False),
    "h264.ts": (x264(), False),
    "h264.flv": (x264(), False),
    "mpeg2.ts": ({"codec": "mpeg2video", "gop": 12, "options": {"bf": "2"}}, False),
    "mpeg4.avi": ({"codec": "mpeg4", "gop": 12}, False),
    "mpeg4_b.avi": ({"codec": "mpeg4", "gop": 12, "options": {"bf": "2"}}, False),
    "mpeg4_b.mp4": ({"codec": "mpeg4", "gop": 12, "options": {"bf": "2"}}, False),
    "mjpeg.avi": ({"codec": "mjpeg", "pixel_format": "yuvj420p"}, False),
    "vp8.webm": ({"codec": "libvpx", "gop": 12, "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}, False),
    "vp9.webm": ({"codec": "libvpx-vp9", "gop": 12}, False),
    "vp9.mp4": ({"codec": "libvpx-vp9", "gop": 12, "options": {"lag-in-frames": "16"}}, False),
    "av1.mp4": ({"codec": "libsvtav1", "gop": 12}, False),
    "av1.mkv": ({"codec": "libsvtav1", "gop": 12}, False),
    "animation.gif": ({"codec": "gif", "pixel_format": "rgb8"}, False),
}
# Those that torchcodec may read beside decord's.
FOR_TORCHCODEC = {
    *("fragmented.mp4", "late_start.mkv", "hevc_open.mkv", "open_gop.mkv"),
    *("vp9.webm", "vp9.mp4", "av1.mp4", "av1.mkv"),
}


def assert_right(path: Path, backend: str) -> VideoReader:
    """Compare length, times and frames (all, single ones, clips, shuffled and repeated ones) with the whole decode."""
    frames, times = decode_all(path)
    with open_video(path, backend=backend) as reader:
        assert len(reader) == len(frames)
        assert (reader.height, reader.width) == frames.shape[1:3]
        np.testing.assert_allclose(reader.pts, np.sort(times), atol=1e-9)
        choices = [np.arange(len(frames)), np.array([len(frames) - 1, 0, len(frames) - 1])]
        choices += [RNG.integers(0, len(frames), 5) for _ in range(3)] + [RNG.integers(0, len(frames), 1)]
        choices += [np.arange(len(frames) // 3, len(frames), 4)]
        for indices in choices:
            found = reader.frames(indices)
            assert found.dtype == np.uint8
            assert found.flags.c_contiguous
            wrong = [int(i) for i, frame in zip(indices, found, strict=True) if (frame != frames[i]).any()]
            assert not wrong, f"wrong frames {wrong} of {indices.tolist()}"
        return reader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def closed(folder):
    """A file that every backend reads."""
    return write_video(folder / "plain.mp4", moving_frames(COUNT, 64, 128), **x264(bframes=3))


@pytest.mark.parametrize("name", VIDEOS)
def test_every_frame_by_index(name, folder):
    settings, for_decord = VIDEOS[name]
    path = write_video(folder / name, moving_frames(COUNT, 64, 128), **settings)
    assert assert_right(path, "pyav").backend == "pyav"
    assert assert_right(path, "auto").backend == ("decord" if for_decord else "pyav")
    if not for_decord:
        with pytest.raises(VideoError, match="use backend pyav or auto"):
            open_video(path, backend="decord")


@needs_torchcodec
@pytest.mark.parametrize("name", VIDEOS)
def test_every_frame_by_torchcodec(name, folder):
    settings, for_decord = VIDEOS[name]
    path = folder / name
    if not path.exists():
        write_video(path, moving_frames(COUNT, 64, 128), **settings)
    if for_decord or name in FOR_TORCHCODEC:
        assert assert_right(path, "torchcodec").backend == "torchcodec"
    else:
        with pytest.raises(VideoError, match=r"torchcodec cannot be trusted with it \(.*\); use backend pyav or auto"):
            open_video(path, backend="torchcodec")


@needs_torchcodec
def test_torchcodec_refuses_more_than_8_bits(folder):
    frames = moving_frames(3, 64, 128)
    path = write_video(folder / "ten_bits.mkv", frames, codec="libsvtav1", pixel_format="yuv420p10le")
    with pytest.raises(VideoError, match=r"more than 8 bits a sample"):
        open_video(path, backend="torchcodec")


@needs_torchcodec
def test_torchcodec_gives_no_picture_in_place_of_another(folder):
    """After a seek libavcodec leaves out what it cannot decode yet, here all pictures before the refresh is through;
    torchcodec then gives the next one that comes."""
    path = write_video(folder / "refresh.mkv", moving_frames(COUNT, 64, 128), **x264(intra_refresh=1))
    whole, _ = decode_all(path)
    wrong = 0
    for index in range(COUNT):
        with open_video(path, backend="pyav") as reader:
            assert (reader.frames([index]) == whole[index]).all()
        with open_video(path, backend="torchcodec") as reader:
            try:
                assert (reader.frames([index]) == whole[index]).all()
            except VideoError as error:
                wrong += "other pictures than those asked for" in error.reason
    assert wrong


def without_usability_information(record: bytes) -> bytes:
    """An avcC whose parameter set does not tell how far pictures are reordered, of the same length."""
    size = int.from_bytes(record[6:8], "big")
    info = parse_avc_config(record)
    bits = "".join(f"{byte:08b}" for byte in record[8 : 8 + size])
    for position in range(len(bits) - 2, 0, -1):
        shorter = (bits[:position] + "01").ljust(len(bits), "0")
        if bits[position] == "0":
            continue
        changed = record[:8] + int(shorter, 2).to_bytes(size, "big") + record[8 + size :]
        with contextlib.suppress(BitstreamError):
            if parse_avc_config(changed) == dataclasses.replace(info, reorder=None):
                found = changed
    return found  # the earliest place that leaves all else: the flag in front of the information


def test_unknown_order_of_output(folder):
    """Then decoders guess, and decord's frames may shift; PyAV is told to wait as long as the standard allows."""
    settings = x264(bframes=3, b_pyramid="normal")
    path = write_video(folder / "told.mp4", moving_frames(COUNT, 64, 128), **settings)
    whole, _ = decode_all(path)
    with path.open("rb") as file:
        config = read_track(file.fileno()).config
    untold = folder / "untold.mp4"
    untold.write_bytes(path.read_bytes().replace(config, without_usability_information(config)))
    with untold.open("rb") as file:
        assert read_track(file.fileno()).info.reorder is None
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
    if "torchcodec" in INSTALLED:
        with contextlib.suppress(VideoError):
            assert_right(cut, "torchcodec")


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rotation_is_honoured_by_all_backends_alike(rotation, suffix, folder):
    frames = moving_frames(4, 64, 128)
    path = write_video(folder / f"turned{rotation}.{suffix}", frames, rotation=rotation)
    clockwise = np.rot90(frames, -rotation // 90, axes=(1, 2)).astype(int)
    for backend in ["auto", *(name for name in INSTALLED if name != "decord" or suffix == "mp4")]:
        reader = assert_right(path, backend)
        assert (reader.height, reader.width) == clockwise.shape[1:3]
        assert (
            np.abs(reader_frames(path, backend) - clockwise).mean() < 30
        )  # the loss of the encoder; other turns are twice as far off


def reader_frames(path: Path, backend: str, **options: int) -> np.ndarray:
    with open_video(path, backend=backend, **options) as reader:
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


def test_relative_path(closed, monkeypatch):
    monkeypatch.chdir(closed.parent)
    for backend in ("auto", *INSTALLED):
        assert len(open_video(closed.name, backend=backend)) == COUNT


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
        for backend in ("auto", *INSTALLED):
            with open_video(folder / name, backend=backend) as reader:
                for frame, file in zip(reader.frames(indices), references, strict=True):
                    reference = torch.load(file, weights_only=True).numpy()
                    difference = np.abs(frame.astype(int) - reference.astype(int))
                    assert difference.max() <= 2, file.name
                    checked += 1
    assert checked >= 16


@pytest.mark.parametrize("backend", ["decord", "pyav", WITH_TORCHCODEC])
def test_short_side_scales_down_only(backend, closed, folder):
    x, y = np.meshgrid(np.linspace(0, 255, 128), np.linspace(0, 255, 64))
    smooth = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    path = write_video(folder / "smooth.mp4", np.stack([smooth, 255 - smooth]))
    with open_video(path, backend=backend, short_side=32) as reader:
        assert (reader.height, reader.width) == (32, 64)
        small = reader.frames([1, 0])
    assert small.shape == (2, 32, 64, 3)
    whole = open_video(path).frames([1, 0]).astype(float)
    averaged = whole.reshape(2, 32, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(small - averaged).mean() < 2
    whole = open_video(closed).frames([3, 20])
    with open_video(closed, backend=backend, short_side=100) as reader:
        assert (reader.height, reader.width) == (64, 128)
        assert (reader.frames([3, 20]) == whole).all()
    turned = write_video(folder / "turned_small.mp4", moving_frames(3, 64, 128), rotation=90)
    with open_video(turned, backend=backend, short_side=32) as reader:
        assert (reader.height, reader.width) == (64, 32)
        assert reader.frames([1]).shape == (1, 64, 32, 3)


def test_each_frame_is_decoded_once(closed, monkeypatch):
    decoded = []

    def spy(track, samples, data, wanted, size):
        decoded.append((list(samples), list(wanted)))
        return decoders.decode_with_pyav(track, samples, data, wanted, size)

    monkeypatch.setattr(reader_module, "decode_with_pyav", spy)
    with open_video(closed, backend="pyav") as reader:
        reader.frames([30, 30, 30, 14, 30, 14])
    ((samples, wanted),) = decoded
    assert len(wanted) == 2
    assert len(set(samples)) == len(samples)
    assert min(samples) >= 12  # nothing of the first group of pictures
    assert len(samples) < 19  # 12 to 30, without unwanted pictures to which no other refers


def test_fallback_when_decord_fails(closed, monkeypatch):
    def broken(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(reader_module, "decode_with_decord", broken)
    with open_video(closed) as reader:
        assert reader.backend == "decord"
        assert (reader.frames([7]) == decode_all(closed)[0][7]).all()
        assert reader.backend == "pyav"
    with open_video(closed, backend="decord") as reader, pytest.raises(VideoError, match=r"plain\.mp4: .*\(no\)"):
        reader.frames([7])


def test_without_decord(closed, monkeypatch):
    monkeypatch.setattr(reader_module, "_has_decord", lambda: False)
    assert assert_right(closed, "auto").backend == "pyav"
    with pytest.raises(VideoError, match="decord is not installed"):
        open_video(closed, backend="decord")


def test_without_torchcodec(closed, monkeypatch):
    torchcodec_decoder.why_no_torchcodec.cache_clear()
    monkeypatch.setattr(torchcodec_decoder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        VideoError, match=r"plain\.mp4: torchcodec is not installed: pip install 'gcvideo\[torchcodec\]'$"
    ):
        open_video(closed, backend="torchcodec")
    torchcodec_decoder.why_no_torchcodec.cache_clear()


def test_torchcodec_without_ffmpeg(closed, monkeypatch):
    class NoLibraries:
        def __init__(self, _: bytes) -> None:
            raise RuntimeError("Could not load libtorchcodec. Likely causes:\n FFmpeg is not properly installed")

    torchcodec_decoder.why_no_torchcodec.cache_clear()
    monkeypatch.setattr(torchcodec_decoder.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=NoLibraries))
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=sys.modules["torchcodec.decoders"]))
    with pytest.raises(VideoError, match=r"plain\.mp4: torchcodec finds no FFmpeg libraries"):
        open_video(closed, backend="torchcodec")
    torchcodec_decoder.why_no_torchcodec.cache_clear()


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


def test_index_errors(closed):
    reader = open_video(closed)
    for indices in ([COUNT], [-1], [0, 10**9]):
        with pytest.raises(IndexError, match=r"plain\.mp4"):
            reader.frames(indices)
    assert reader.frames([]).shape == (0, 64, 128, 3)


def test_backend_name_is_checked(closed):
    with pytest.raises(ValueError, match="opencv"):
        open_video(closed, backend="opencv")


def test_memory_bound(closed, monkeypatch):
    monkeypatch.setattr(reader_module, "MAX_BYTES", 64 * 128 * 3 * 2)
    with open_video(closed) as reader:
        reader.frames([0, 1])
        with pytest.raises(VideoError, match="exceed"):
            reader.frames([0, 1, 2])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_huge_frames_are_refused_before_decoding(suffix, folder, monkeypatch):
    path = write_video(folder / f"huge.{suffix}", moving_frames(2, 64, 128))
    for module in ("decoders", "reader", "libav"):
        monkeypatch.setattr(f"gcvideo.data.{module}.MAX_PIXELS", 64 * 64)
    for backend in ("auto", *INSTALLED):
        with pytest.raises(VideoError, match=r"larger than 4096 pixels|cannot be trusted"):
            open_video(path, backend=backend)


BAD_FILES = {
    "empty.mp4": (b"", "is empty"),
    "text.mp4": (b"not a video at all\n" * 100, "cannot be opened"),
    "zeros.mp4": (bytes(10_000), "cannot be opened"),
    "noise.avi": (np.random.default_rng(0).bytes(20_000), "cannot be opened"),
    "one_byte.mkv": (b"\x1a", "cannot be opened"),
    "playlist.m3u8": (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "cannot be opened"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("backend", ["auto", "decord", "pyav", WITH_TORCHCODEC])
def test_bad_files(name, backend, tmp_path):
    content, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError) as caught:
        open_video(tmp_path / name, backend=backend)
    assert caught.value.path == str(tmp_path / name)
    assert reason in caught.value.reason or backend == "decord"
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(VideoError, match="does not exist"):
        open_video(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="is a folder"):
        open_video(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="is not a file"):
        open_video(tmp_path / "pipe.mp4")


def test_sound_only(tmp_path):
    for suffix in ("mp4", "wav"):
        path = tmp_path / f"sound.{suffix}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac" if suffix == "mp4" else "pcm_s16le", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with pytest.raises(VideoError, match="no video track"):
            open_video(path)


def test_truncated_files(closed, tmp_path):
    data = closed.read_bytes()
    tables_first = write_video(
        tmp_path / "first.mp4", moving_frames(COUNT, 64, 128), container_options={"movflags": "faststart"}
    ).read_bytes()
    for name, content, reason in [
        ("a.mp4", data[: len(data) // 2], "cannot be opened"),  # the movie box was at the end
        ("b.mp4", tables_first[: len(tables_first) * 3 // 4], "cut short: .* pictures lie beyond its end"),
    ]:
        (tmp_path / name).write_bytes(content)
        for backend in ("auto", *INSTALLED):
            with pytest.raises(VideoError, match=reason if backend != "decord" else reason + "|cannot be trusted"):
                open_video(tmp_path / name, backend=backend)


def test_damaged_picture_is_an_error(closed, tmp_path, capfd):
    """A picture that the decoder cannot make out must not shift those after it."""
    data = bytearray(closed.read_bytes())
    with closed.open("rb") as file:
        start = int(read_track(file.fileno()).offset[14])
    data[start : start + 4] = b"\xff" * 4  # the length of its first unit
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    whole, _ = decode_all(closed)
    for backend in ("auto", *INSTALLED):
        with open_video(path, backend=backend) as reader:
            assert len(reader) == COUNT
            for index in (COUNT - 1, COUNT - 5):  # the last group of pictures is sound
                assert (reader.frames([index]) == whole[index]).all()
            with pytest.raises(VideoError, match=r"damaged\.mp4: cannot be decoded \([^/]*\)$"):
                reader.frames(range(COUNT))
    output = capfd.readouterr()
    assert output.out + output.err == ""


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
        assert (video.decode(np.array([index]), (64, 128)) == whole[index]).all()
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


def test_importing_gcvideo_brings_no_decoder():
    code = "import sys, gcvideo, gcvideo.data.reader; print('decord' in sys.modules, 'av' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
