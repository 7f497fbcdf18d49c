"""The tables of MP4 files: what libavformat says of them, boxes that players seldom meet, and damage."""

import contextlib
import os
import struct

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gcvideo.video.decode_plan import DecodeError
from gcvideo.video.decord_decoder import write_slice
from gcvideo.video.mp4_tables import Mp4Track, read_samples, read_tables
from gcvideo.video.parameter_sets import StreamInfo, parse_config
from gcvideo.video.slice_headers import Start, nal_units, read_picture
from gcvideo.video.tar_members import in_memory
from tests.videos import decode_all, moving_frames, write_video

COUNT = 30
X264 = {"preset": "medium", "x264-params": "scenecut=0:bframes=3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mp4")


@pytest.fixture(scope="module")
def plain(folder):
    return write_video(folder / "plain.mp4", moving_frames(COUNT), gop=10, options=X264)


@pytest.fixture(scope="module")
def plain_hevc(folder):
    options = {"preset": "medium", "x265-params": "log-level=none:pools=none:frame-threads=1:keyint=10:open-gop=1"}
    return write_video(folder / "hevc.mp4", moving_frames(COUNT), codec="libx265", options=options)


class NotFollowed(Exception):
    """Why tables cannot be followed."""


def track_of(path) -> Mp4Track:
    tables = read_tables(os.fspath(path))
    if isinstance(tables, str):
        raise NotFollowed(tables)
    return tables


def track_of_bytes(data: bytes) -> Mp4Track:
    with in_memory([memoryview(data)]) as path:
        return track_of(path)


def rebuild(data: bytes, change, path: tuple[bytes, ...] = ()) -> bytes:
    """Write every box again; ``change(path, body)`` returns a new body, whole boxes (a list), or None for no change."""
    containers = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"}
    result, position = [], 0
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + size]
        here = (*path, kind)
        if kind in containers:
            body = rebuild(body, change, here)
        changed = change(here, body)
        body = body if changed is None else changed
        result.append(b"".join(body) if isinstance(body, list) else struct.pack(">I", 8 + len(body)) + kind + body)
        position += size
    return b"".join(result)


def replace_box(data: bytes, kind: bytes, change) -> bytes:
    return rebuild(data, lambda path, body: change(body) if path[-1] == kind else None)


@pytest.mark.parametrize("name", ["plain", "plain_hevc"])
def test_tables_agree_with_libavformat(name, request):
    path = request.getfixturevalue(name)
    track = track_of(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert (track.info.height, track.info.width) == (stream.height, stream.width)
        assert track.config == stream.codec_context.extradata
        assert track.size.tolist() == [packet.size for packet in packets]
        assert track.offset.tolist() == [packet.pos for packet in packets]
        np.testing.assert_allclose(
            track.table.pts * float(track.table.time_base), [float(p.pts * p.time_base) for p in packets], atol=1e-9
        )
        assert list(track.table.starts) == [i for i, packet in enumerate(packets) if packet.is_keyframe]
        assert track.fps == pytest.approx(float(stream.average_rate))
    file = os.open(path, os.O_RDONLY)
    for chosen in ([3, 4, 5, 6, 9, 10], [5, 0, 17]):  # by one call, and by several
        data = read_samples(file, track, chosen)
        assert [bytes(piece) for piece in data.values()] == [bytes(packets[i]) for i in chosen]
    os.close(file)


def test_what_lies_between_samples_need_not_be_readable(plain, monkeypatch):
    track, pread = track_of(plain), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, int(track.size.max())), at))
    with open(plain, "rb") as file:
        data = read_samples(file.fileno(), track, [3, 4, 5])
    assert [len(piece) for piece in data.values()] == track.size[3:6].tolist()


def test_a_file_that_becomes_shorter_while_it_is_read(plain, folder):
    (folder / "cut.mp4").write_bytes(plain.read_bytes())
    track = track_of(folder / "cut.mp4")
    os.truncate(folder / "cut.mp4", int(track.offset[17]))
    with open(folder / "cut.mp4", "rb") as file:
        for chosen in ([16, 17], [0, 17]):
            with pytest.raises(OSError, match="has become shorter"):
                read_samples(file.fileno(), track, chosen)


def test_disposable_pictures_are_those_that_libavcodec_skips(plain, plain_hevc):
    for path in (plain, plain_hevc):
        track = track_of(path)
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        ours = {
            int(track.table.pts[i]) for i, p in enumerate(packets) if read_picture(memoryview(p), track.info).disposable
        }
        shown = {}
        for skip in ("DEFAULT", "NONREF"):
            with av.open(str(path)) as container:
                container.streams.video[0].codec_context.skip_frame = skip
                shown[skip] = {frame.pts for frame in container.decode(video=0)}
        assert ours
        assert ours == shown["DEFAULT"] - shown["NONREF"]


def test_wide_boxes(plain):
    """64-bit box sizes (section 4.2) and chunk offsets (section 8.7.5)."""
    data = plain.read_bytes()
    before = track_of(plain)
    grow = 8  # the mdat header grows by so much, and it comes first

    def widen(path, body):
        if path == (b"mdat",):
            return [struct.pack(">I4sQ", 1, b"mdat", 16 + len(body)), body]
        if path[-1] == b"stco":
            offsets = np.frombuffer(body, ">u4", offset=8).astype(">u8") + grow
            return [struct.pack(">I4s", 16 + 8 * len(offsets), b"co64"), body[:8], offsets.astype(">u8").tobytes()]
        return None

    wide = rebuild(data, widen)
    assert data.index(b"mdat") < data.index(b"moov")
    track = track_of_bytes(wide)
    assert (track.offset == before.offset + grow).all()
    assert (track.table.order == before.table.order).all()
    with in_memory([memoryview(wide)]) as path:
        assert (decode_all(path)[0] == decode_all(plain)[0]).all()


def test_one_composition_offset_for_all(plain):
    """Composition offsets below zero, and none."""
    data = replace_box(plain.read_bytes(), b"edts", lambda body: [])  # an edit list would hide the shifted frames
    before = track_of_bytes(data)
    negative = track_of_bytes(
        replace_box(
            data,
            b"ctts",
            lambda body: (
                b"\1\0\0\0"
                + body[4:8]
                + (np.frombuffer(body, ">i4", offset=8).reshape(-1, 2) - [0, 5000]).astype(">i4").tobytes()
            ),
        )
    )
    assert (negative.table.order == before.table.order).all()
    without = track_of_bytes(replace_box(data, b"ctts", lambda body: []))
    assert (without.table.order == np.arange(COUNT)).all()


def edit_list(*rows: tuple[int, int], version: int = 0) -> bytes:
    layout = ">Qqhh" if version else ">Iihh"
    return struct.pack(">BxxxI", version, len(rows)) + b"".join(struct.pack(layout, d, m, 1, 0) for d, m in rows)


@pytest.mark.parametrize("version", [0, 1])
def test_edit_lists(plain, version, tmp_path):
    """Which frames an edit shows, and when, as libavformat reads it."""
    data = plain.read_bytes()
    scale = track_of(plain).table.time_base.denominator
    frame, movie_frame = scale // 25, 1000 // 25
    lists = [
        [(20 * movie_frame, 7 * frame)],
        [(12 * movie_frame + 7, 6 * frame + 11)],
        [(5 * movie_frame, -1), (20 * movie_frame, 8 * frame)],
    ]
    for number, rows in enumerate(lists):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(replace_box(data, b"elst", lambda _, rows=rows: edit_list(*rows, version=version)))
        _, times = decode_all(path)
        track = track_of(path)
        np.testing.assert_allclose(track.table.seconds, times, atol=1e-9, err_msg=str(rows))
    for rows in ([(400, 0), (400, 5 * frame)], [(400, 10_000 * frame)], [(400, -2)], [(0, 0)]):
        with pytest.raises(NotFollowed):
            track_of_bytes(replace_box(data, b"elst", lambda _, rows=rows: edit_list(*rows, version=version)))


def test_what_is_refused(plain):
    data = plain.read_bytes()

    def broken(kind: bytes, at: int, layout: str, *values: int) -> bytes:
        def change(body):
            body = bytearray(body)
            struct.pack_into(">" + layout, body, at, *values)
            return bytes(body)

        return replace_box(data, kind, change)

    cases = [
        (broken(b"stts", 4, "I", 2**32 - 1), NotFollowed, "damaged tables"),
        (broken(b"stts", 8, "I", 2**32 - 1), NotFollowed, "does not cover the samples"),
        (broken(b"stts", 12, "I", 2**32 - 300), NotFollowed, "times that run backwards"),
        (broken(b"stsd", 40, "H", 66), NotFollowed, "another frame size"),
        (broken(b"stsz", 8, "I", 2**31), NotFollowed, "damaged tables"),
        (broken(b"stsz", 4, "II", 1000, 2**31), DecodeError, "more than the file"),
        (broken(b"stsz", 8, "I", 0), NotFollowed, "does not cover the samples"),
        (broken(b"stsz", 12, "I", 2**31), DecodeError, "30 of 30 pictures lie beyond"),
        (broken(b"stco", 8, "I", 2**31), DecodeError, "lie beyond"),
        (broken(b"stsc", 8, "I", 0), NotFollowed, "chunk tables"),
        (broken(b"stss", 8, "I", 0), NotFollowed, "key pictures"),
        (broken(b"stss", 8, "I", 15), NotFollowed, "key pictures"),
        (broken(b"stss", 8, "I", 2), NotFollowed, "does not begin with a key picture"),
        (broken(b"stsd", 4, "I", 2), NotFollowed, "sample description"),
        (broken(b"mdhd", 12, "I", 0), NotFollowed, "edit list shows no picture"),
        (broken(b"hdlr", 8, "4s", b"soun"), NotFollowed, "no video track"),
        (data.replace(b"avc1", b"encv"), DecodeError, "encrypted"),
        (data.replace(b"moov", b"free"), DecodeError, "no movie box"),
        (data.replace(b"stbl", b"free"), NotFollowed, "no stbl box"),
        (b"", DecodeError, "is empty"),
        (data[:-10], NotFollowed, "longer than the file"),
    ]
    for content, kind, text in cases:
        with pytest.raises(kind, match=text):
            track_of_bytes(content)


def test_a_sound_track_in_front_is_passed_over(folder):
    path = write_video(folder / "sound.mp4", moving_frames(6), audio=True)
    data = path.read_bytes()
    first, second = data.index(b"trak"), data.rindex(b"trak")
    size = [struct.unpack_from(">I", data, at - 4)[0] for at in (first, second)]
    swapped = (
        data[: first - 4]
        + data[second - 4 : second - 4 + size[1]]
        + data[first - 4 : first - 4 + size[0]]
        + data[second - 4 + size[1] :]
    )
    assert len(track_of_bytes(swapped).table.order) == 6


def test_needed_samples(plain):
    table = track_of(plain).table
    assert list(table.starts.items()) == [(0, Start.ANYWHERE), (10, Start.ANYWHERE), (20, Start.ANYWHERE)]

    def nothing(sample: int) -> bool:
        return False

    assert table.needed([0], nothing) == [0]
    assert table.needed([10], nothing) == [10]
    assert table.needed([0, 20], nothing) == [0, 20]  # nothing of the group in between
    last = int(table.order[15])
    assert table.needed([15], nothing) == list(range(10, last + 1))
    assert table.needed([15], lambda sample: True) == [10, last] or table.needed([15], lambda sample: True) == [last]
    assert table.needed(range(COUNT), lambda sample: True) == list(range(COUNT))


@given(st.sets(st.integers(0, COUNT - 1), min_size=1))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_decode_to_the_same_frames(wanted):
    """A slice, decoded by libav as a file of its own, holds exactly the wanted frames at the places it names."""
    for path, whole, track, samples in _slicing_cases():
        chosen = track.table.needed(wanted, lambda i, s=samples, t=track: read_picture(s[i], t.info).disposable)
        pieces, place = write_slice(track, {i: samples[i] for i in chosen})
        with in_memory(pieces) as sliced:
            frames, _ = decode_all(sliced)
        assert len(frames) == len(chosen)
        for index in wanted:
            assert (frames[place[int(track.table.order[index])]] == whole[index]).all(), (path, index)


_CASES: list = []


def _slicing_cases():
    return _CASES


@pytest.fixture(scope="module", autouse=True)
def _fill_slicing_cases(plain, plain_hevc):
    for path in (plain, plain_hevc):
        track = track_of(path)
        file = os.open(path, os.O_RDONLY)
        _CASES.append((path.name, decode_all(path)[0], track, read_samples(file, track, range(len(track.size)))))
        os.close(file)
    yield
    _CASES.clear()


def parse_or_refuse(data: bytes) -> None:
    """Reading tables ends in a usable track or in one of two errors."""
    try:
        track = track_of_bytes(data)
    except (NotFollowed, DecodeError):
        return
    assert (track.offset >= 0).all()
    assert (track.offset + track.size <= len(data)).all()
    assert len(track.table.order) <= len(track.size) == len(track.table.pts)
    assert track.table.order.max() < len(track.size)
    track.table.needed([0, len(track.table.order) - 1], lambda sample: False)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_tables_never_escape(data):
    """Single bytes and whole words of the movie box, overwritten."""
    original = bytearray(_MOVIES[data.draw(st.sampled_from(sorted(_MOVIES)))])
    start = original.index(b"moov")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(start, len(original) - 4))
        word = data.draw(st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"\xff" * 4, bytes(4)])))
        original[at : at + len(word)] = word
    parse_or_refuse(bytes(original))


@given(cut=st.floats(0, 1), name=st.sampled_from(["plain", "hevc"]))
@settings(max_examples=60, deadline=None)
def test_cut_files_never_escape(cut, name):
    data = _MOVIES[name]
    parse_or_refuse(data[: int(len(data) * cut)])


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_noise_never_escapes(noise):
    parse_or_refuse(noise)
    parse_or_refuse(struct.pack(">I4s", 8 + len(noise), b"moov") + noise)


_MOVIES: dict[str, bytes] = {}


@pytest.fixture(scope="module", autouse=True)
def _fill_movies(plain, plain_hevc):
    _MOVIES.update(plain=plain.read_bytes(), hevc=plain_hevc.read_bytes())
    yield
    _MOVIES.clear()


def stream_info(codec: str, *, layers: int = 1) -> StreamInfo:
    return StreamInfo(codec, 4, frozenset(), 64, 48, 8, 2, 4, 4, layers)


AVC = stream_info("h264")


def sample(*units: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ([b"\x65\x88rest"], Start.ANYWHERE),  # IDR
        ([b"\x09\xf0", b"\x67sps", b"\x68pps", b"\x65\x88rest"], Start.ANYWHERE),
        ([b"\x41\x9arest"], Start.NO),  # not IDR
        ([b"\x06\x06\x01\xc4\x80", b"\x41\x9arest"], Start.NO),  # a recovery point
        ([b"\x06\xff\xff\xff", b"\x41\x9arest"], Start.NO),  # a message that ends too early
        ([b"\x67sps"], Start.NO),
        ([], Start.NO),
    ],
)
def test_where_h264_may_start(units, expected):
    assert read_picture(sample(*units), AVC).start is expected


@pytest.mark.parametrize(
    ("unit_type", "expected"),
    [(1, Start.NO), (9, Start.NO), (16, Start.ANYWHERE), (19, Start.ANYWHERE), (20, Start.ANYWHERE), (21, Start.FRESH)],
)
def test_where_hevc_may_start(unit_type, expected):
    hevc = stream_info("hevc")
    assert read_picture(sample(bytes([32 << 1, 1]), bytes([unit_type << 1, 1, 0x80, 0])), hevc).start is expected


def test_which_hevc_pictures_are_disposable():
    def picture(unit_type: int, layer: int) -> bytes:
        return sample(bytes([unit_type << 1, layer + 1, 0x80, 0xFF]))

    def disposable(unit_type: int, layer: int, layers: int) -> bool:
        info = stream_info("hevc", layers=layers)
        return read_picture(picture(unit_type, layer), info).disposable

    assert disposable(0, 0, 1)  # TRAIL_N of the only layer
    assert disposable(8, 0, 1)  # RASL_N
    assert not disposable(1, 0, 1)  # TRAIL_R
    assert not disposable(0, 0, 2)  # a higher layer may refer to it
    assert disposable(0, 1, 2)
    assert not disposable(0, 0, 0)  # number of layers unknown
    assert not disposable(20, 0, 1)  # IDR


@given(st.binary(max_size=200), st.sampled_from(["h264", "hevc"]))
@settings(max_examples=200, deadline=None)
def test_configuration_records_never_escape(noise, codec):
    head = b"\1d\0\x1e\xff\xe1\0\xff\x67" if codec == "h264" else bytes(21) + b"\x0f\1\x21\0\1\0\xff"
    for record in (noise, head + noise):
        with contextlib.suppress(ValueError, LookupError):
            assert parse_config(codec, record).codec == codec


@given(st.binary(max_size=100), st.integers(1, 4))
def test_nal_units_never_escape(noise, length_size):
    assert sum(len(unit) + length_size for unit in nal_units(noise, length_size)) <= len(noise)
