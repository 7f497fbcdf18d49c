"""What the reader refuses, with the reason, and what it does where a decoder fails or is missing."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from gcvideo.errors import DamagedVideoError, VideoError
from gcvideo.video import FrameStream, open_video
from gcvideo.video import reader as reader_module
from gcvideo.video.mp4_tables import read_tables
from tests.boxes import WIDTH, decode_in_order, filtered, read_number
from tests.reading import COUNT, INSTALLED, assert_right, x264
from tests.videos import decode_all, moving_frames, remux, write_video
from tests.zoo import STREAMS


def test_fallback_when_decord_fails(closed, monkeypatch):
    def broken(*_):
        raise RuntimeError("no")

    monkeypatch.setitem(reader_module._DECODERS, "decord", broken)
    with open_video(closed) as reader:
        assert reader.backend == "decord"
        assert (reader.frames([7]) == decode_all(closed)[0][7]).all()
        assert reader.backend == "pyav"
    with open_video(closed, backend="decord") as reader, pytest.raises(VideoError, match=r"plain\.mp4: .*\(no\)"):
        reader.frames([7])


def test_without_decord(closed, monkeypatch):
    monkeypatch.setattr(reader_module, "has_decord", lambda: False)
    assert assert_right(closed, "auto").backend == "pyav"
    with pytest.raises(VideoError, match="decord is not installed"):
        open_video(closed, backend="decord")


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
    for module in ("reader", "pyav_decoder"):
        monkeypatch.setattr(f"gcvideo.video.{module}.MAX_PIXELS", 64 * 64)
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
@pytest.mark.parametrize("backend", ["auto", "decord", "pyav"])
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
        ("a.mp4", data[: len(data) // 2], "has no movie box"),  # it was at the end
        ("b.mp4", tables_first[: len(tables_first) * 3 // 4], "cut short: .* pictures lie beyond its end"),
    ]:
        (tmp_path / name).write_bytes(content)
        for backend in ("auto", *INSTALLED):
            with pytest.raises(VideoError, match=reason if backend != "decord" else reason + "|cannot be trusted"):
                open_video(tmp_path / name, backend=backend)


def test_damaged_picture_is_an_error(closed, tmp_path, capfd):
    """A picture that the decoder cannot make out must not shift those after it."""
    data = bytearray(closed.read_bytes())
    start = int(read_tables(str(closed)).offset[14])
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


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_damage_in_a_picture_that_others_refer_to_is_an_error_where_the_decoder_tells(suffix, closed, tmp_path):
    data = bytearray(closed.read_bytes())
    track = read_tables(str(closed))
    start, size = int(track.offset[13]), int(track.size[13])  # the first after a key picture
    data[start + size // 3 : start + size] = bytes(size - size // 3)
    path = tmp_path / "hidden.mp4"
    path.write_bytes(data)
    if suffix == "mkv":
        path = remux(path, tmp_path / "hidden.mkv")
    whole, _ = decode_all(closed)
    with open_video(path, backend="pyav") as reader:
        for index in (5, 30):  # in the groups of pictures before and after
            assert (reader.frames([index]) == whole[index]).all()
        for indices in ([23], [13], [5, 30, 20]):
            with pytest.raises(DamagedVideoError, match=r"cannot be decoded \(a picture is damaged\)"):
                reader.frames(indices)


def test_what_lies_behind_damage_is_read_where_frames_are_counted(tmp_path):
    """As in AVI: the damage ends at the next key picture."""
    path = write_video(tmp_path / "a.avi", moving_frames(COUNT, 64, 128), **x264(bframes=0))
    whole, _ = decode_all(path)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = next(p for i, p in enumerate(container.demux(video=0)) if i == 14)
        end = packet.pos + packet.size  # at most 8 bytes of a chunk's head too early
    data[end - packet.size // 2 : end] = bytes(packet.size // 2)
    path.write_bytes(data)
    with open_video(path) as reader:
        for index in (5, 30):
            assert (reader.frames([index]) == whole[index]).all()
        with pytest.raises(VideoError, match="a picture is damaged"):
            reader.frames([20])


ALL_KINDS = {
    "h264_b2_gop12.mp4": ("decord", None),
    "h264_open_normal.mp4": ("decord", None),
    "hevc_b2_open0.mp4": ("pyav", "HEVC"),
    "h264_yuv420p10le.mp4": ("pyav", "more than 8 bits"),
    "h264_yuv444p.mp4": ("pyav", "4:4:4"),
    "h264_field_order.mp4": ("pyav", "interlaced"),
    "h264_fragments.mp4": ("pyav", "fragmented"),
    "joined_in_band_once.mp4": ("pyav", "the parameter sets of the stream change"),
    "joined_descriptions.mp4": ("pyav", "several sample descriptions"),
    "h264.mkv": ("pyav", "not an MP4 file"),
}


@pytest.mark.parametrize("name", ALL_KINDS)
def test_who_reads_it_and_why(name, folder):
    path = STREAMS[name].make(folder)
    decoder, refusal = ALL_KINDS[name]
    with open_video(path) as reader:
        assert reader.backend == decoder
    with open_video(path, backend="pyav") as reader:
        assert reader.backend == "pyav"
    if refusal:
        with pytest.raises(VideoError, match=rf"decord cannot be trusted with it \({refusal}"):
            open_video(path, backend="decord")


def test_times_that_contradict_the_slices(folder):
    path = STREAMS["h264_b2_gop12_decoding_times_rewritten.mp4"].make(folder)
    with open_video(path) as reader:
        assert reader.backend == "decord"
        assert [read_number(frame) for frame in reader.frames([7, 5, 20])] == [7, 5, 20]
        assert reader.backend == "pyav"
    with (
        open_video(path, backend="decord") as reader,
        pytest.raises(VideoError, match=r"contradict .*; use backend pyav"),
    ):
        reader.frames([7])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_messages_that_turn_single_pictures_are_refused_in_every_container(suffix, folder):
    source = STREAMS["h264_b2_gop12.mp4"].make(folder)
    path = folder / f"turned_by_message.{suffix}"
    filtered("h264_metadata=display_orientation=insert:rotate=90")(source, path)
    with open_video(path) as reader:
        assert (reader.backend, reader.height) == ("pyav", WIDTH)
        with pytest.raises(VideoError, match="pictures are turned in different ways"):
            reader.frames([0, 1])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_colours_that_cannot_be_converted_are_refused_by_every_backend(suffix, folder):
    source = STREAMS["h264_b2_gop12.mp4"].make(folder)
    path = folder / f"ycgco.{suffix}"
    filtered("h264_metadata=matrix_coefficients=8")(source, path)
    with open_video(path) as reader, pytest.raises(VideoError, match="cannot be decoded"):
        reader.frames([0])
    with pytest.raises(VideoError, match="decord cannot be trusted with it"):
        open_video(path, backend="decord")


def test_times_of_joined_recordings_rise_at_the_rate_of_the_file(folder):
    """The second recording's times begin within the first one's."""
    path = folder / "both.ts"
    first = write_video(folder / "one.ts", moving_frames(20), **x264(bframes=0))
    later = {"pts": range(37, 97, 3), "time_base": Fraction(1, 75)}
    second = write_video(folder / "two.ts", moving_frames(20), **later, **x264())
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with open_video(path) as reader:
        np.testing.assert_allclose(np.diff(reader.times), 1 / reader.fps)
        assert len(reader) == 40
        assert reader.fps == pytest.approx(25, rel=0.1)


def test_the_rate_is_that_of_the_times_where_the_container_declares_another(folder):
    """The stream says 25 a second."""
    path = write_video(folder / "slow.ts", moving_frames(20), pts=range(0, 40, 2), time_base=Fraction(1, 25))
    with open_video(path) as reader:
        assert reader.fps == pytest.approx(12.5)


def test_a_lost_picture_changes_no_rate(folder):
    pts = [*range(10), *range(11, 21)]
    path = write_video(folder / "gap.ts", moving_frames(20), pts=pts, time_base=Fraction(1, 25))
    with open_video(path) as reader:
        assert reader.fps == pytest.approx(25)


def test_a_still_picture_is_no_recording_that_was_cut_short(folder):
    path = write_video(folder / "one.avif", moving_frames(1), codec="libsvtav1")
    with open_video(path) as reader:
        assert (len(reader), reader.backend) == (1, "pyav")


def test_direct_blocks_by_an_old_x264(folder):
    """Whose version note, in the first picture alone, libavcodec follows."""
    path = STREAMS["h264_b2_gop12.mp4"].make(folder)
    data = path.read_bytes()
    at = data.index(b"x264 - core ") + 12
    old = folder / "core_33.mp4"
    old.write_bytes(data[:at] + b"033" + data[at + 3 :])
    whole = decode_in_order(old)
    with open_video(old) as reader:
        assert "old x264" in reader.reason
        assert (reader.frames([20])[0] == whole[20]).all()


def test_a_display_matrix_of_45_degrees_is_refused(folder):
    path = STREAMS["matrix_45.mp4"].make(folder)
    for backend in ("auto", *INSTALLED):
        with pytest.raises(VideoError, match="turns by 45 degrees"):
            open_video(path, backend=backend)
    with FrameStream(str(path)) as stream, pytest.raises(VideoError, match="turns by 45 degrees"):
        next(iter(stream))
