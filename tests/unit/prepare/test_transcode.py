"""Transcoding to a layout made for reading clips."""

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from gcvideo.data.annotations import load_records
from gcvideo.errors import ConfigError, DataError
from gcvideo.prepare import transcode as module
from gcvideo.prepare.jobs import Part, PartDone
from gcvideo.prepare.transcode import JOURNAL, PRESETS, Encoding, copy_annotation, encode_video, scaled_size, transcode
from gcvideo.video import open_video
from tests.processes import killed_after_rows
from tests.videos import decode_all, moving_frames, write_video
from tests.zoo import STREAMS

SMALL = Encoding(short_side=32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving_frames(40), fps=20, audio=True)


def picture_types(path: Path) -> str:
    with av.open(str(path)) as container:
        return "".join(PictureType(frame.pict_type).name for frame in container.decode(video=0))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_keeps_frames_and_times(clip, tmp_path, preset):
    copy = tmp_path / "copy.mp4"
    assert encode_video(clip, copy, Encoding(preset=preset, short_side=48)) == 40
    old, new = decode_all(clip), decode_all(copy)
    assert np.abs(old[0].astype(int) - new[0]).mean() < 12  # the loss of H.264 on a texture of noise
    assert np.abs(old[1] - new[1]).max() < 1e-6
    with open_video(copy) as video:
        assert (video.backend, video.codec, len(video)) == ("pyav", "h264", 40)
        assert video.reason.startswith("made by gcvideo prepare transcode")
        assert (video.frames(range(40)) == new[0]).all()


def test_presets_lay_pictures_out_as_they_say(clip, tmp_path):
    layouts = {}
    for preset in ("clip", "gop16", "intra"):
        encode_video(clip, tmp_path / f"{preset}.mp4", Encoding(preset=preset))
        layouts[preset] = picture_types(tmp_path / f"{preset}.mp4")
    assert layouts["intra"] == "I" * 40
    assert layouts["gop16"].replace("P", "p") == "".join("I" if i % 16 == 0 else "p" for i in range(40))
    assert "B" * 7 + "P" + "B" * 7 in layouts["clip"]


def test_b_frames_of_the_clip_preset_can_be_left_out(clip, tmp_path):
    """No B-frame is referred to: decoding without them gives the other pictures exactly."""
    encode_video(clip, tmp_path / "copy.mp4", Encoding(preset="clip"))
    frames, _ = decode_all(tmp_path / "copy.mp4")
    kept = [i for i, kind in enumerate(picture_types(tmp_path / "copy.mp4")) if kind != "B"]
    with av.open(str(tmp_path / "copy.mp4")) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(kept) < len(frames) / 4
    assert (np.stack(decoded) == frames[kept]).all()


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((720, 1280), 256, (256, 456)),
        ((1280, 720), 256, (456, 256)),
        ((240, 320), 256, (240, 320)),
        ((49, 65), 256, (48, 64)),
    ],
)
def test_the_short_side_shrinks_to_even_sizes_and_never_grows(size, short_side, expected):
    assert scaled_size(*size, short_side) == expected


@pytest.mark.parametrize("name", ["turned_90.mkv", "matrix_mirrored.mp4", "matrix_transposed_fragments.mp4"])
def test_display_matrix_becomes_upright_pixels(name, tmp_path):
    source = STREAMS[name].make(tmp_path)
    encode_video(source, tmp_path / "copy.mp4", Encoding())
    with open_video(source) as old, open_video(tmp_path / "copy.mp4") as new:
        assert (old.height, old.width) == (new.height, new.width)
        assert np.abs(old.frames([3]).astype(int) - new.frames([3])).mean() < 12
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_variable_frame_times_stay(tmp_path):
    times = [0, 3, 4, 9, 10, 30, 31, 33]
    path = write_video(tmp_path / "vfr.mp4", moving_frames(8), pts=times, fps=30)
    encode_video(path, tmp_path / "copy.mp4", Encoding())
    with open_video(tmp_path / "copy.mp4") as video:
        assert np.allclose(video.times - video.times[0], np.array(times) / 30, atol=1e-4)


@pytest.mark.parametrize(("audio", "tracks"), [(False, 0), (True, 1)])
def test_sound_is_dropped_or_kept(clip, tmp_path, audio, tracks):
    encode_video(clip, tmp_path / "copy.mp4", Encoding(audio=audio))
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert len(container.streams.audio) == tracks
        assert all(stream.codec_context.name == "aac" for stream in container.streams.audio)


@pytest.fixture
def tree(tmp_path, clip) -> Path:
    source = tmp_path / "source"
    for folder in ('playing "air" guitar', "-büße'n", "日本 語"):
        (source / folder).mkdir(parents=True)
        shutil.copy(clip, source / folder / "-a b.mp4")
    return source


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.mp4")}


def test_a_tree_with_awkward_names_is_mirrored_and_the_original_untouched(tree, tmp_path):
    before, times = digests(tree), [path.stat().st_mtime_ns for path in sorted(tree.rglob("*.mp4"))]
    result = transcode(tree, tmp_path / "out", SMALL, workers=1)
    assert (result.videos, result.failures) == (3, {})
    assert digests(tmp_path / "out").keys() == before.keys()
    assert digests(tree) == before
    assert [path.stat().st_mtime_ns for path in sorted(tree.rglob("*.mp4"))] == times
    assert result.old["bytes"] == sum(path.stat().st_size for path in tree.rglob("*.mp4"))
    assert result.new["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.mp4"))
    assert result.new["clip_ms"] > 0
    assert load_records(tmp_path / "out").classes == load_records(tree).classes


def test_a_second_run_makes_only_what_is_not_there(tree, tmp_path):
    out = tmp_path / "out"
    bad = tree / "-büße'n" / "bad.mp4"
    bad.write_bytes(b"no video")
    assert list(transcode(tree, out, SMALL, workers=1).failures) == [str(bad)]
    lost, *kept = sorted(out.rglob("*.mp4"))
    lost.unlink()
    times = [path.stat().st_mtime_ns for path in kept]
    write_video(bad, moving_frames(5))
    assert transcode(tree, out, SMALL, workers=1).failures == {}
    assert lost.exists()
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert len(list(out.rglob("*.mp4"))) == 4


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_written_video_and_is_taken_up(tree, tmp_path):
    out = tmp_path / "out"
    killed_after_rows(1, partial(transcode, tree, out, SMALL, workers=1), tmp_path / "said.txt")
    first = next(path for path in out.rglob("[!.]*.mp4"))  # not what an orphan writes for a moment
    time = first.stat().st_mtime_ns
    assert transcode(tree, out, SMALL, workers=1).videos == 3
    assert first.stat().st_mtime_ns == time
    for path in out.rglob("*.mp4"):
        with open_video(path) as video:
            assert len(video) == 40
    assert {path.name for path in out.iterdir() if path.is_file()} == {JOURNAL}


def test_parts_make_every_copy_once(tree, tmp_path):
    out = tmp_path / "out"
    for number in (2, 1):
        with pytest.raises(PartDone):
            transcode(tree, out, SMALL, workers=1, part=Part(number, 2))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert len(times) == 3
    assert transcode(tree, out, SMALL, workers=1).videos == 3
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == times
    with pytest.raises(ConfigError, match="another encoding; choose another place"):
        transcode(tree, out, Encoding(short_side=48), workers=1, part=Part(1, 2))


def test_folders_that_cannot_be_used_are_refused(tree, tmp_path, clip):
    with pytest.raises(DataError, match="must lie outside"):
        transcode(tree, tree / "small", SMALL)
    with pytest.raises(DataError, match="must lie outside"):
        transcode(tree, tree.parent, SMALL)
    with pytest.raises(DataError, match="no folder of videos"):
        transcode(tmp_path / "nowhere", tmp_path / "out", SMALL)
    transcode(tree, tmp_path / "out", SMALL, workers=1)
    with pytest.raises(ConfigError, match="another encoding"):
        transcode(tree, tmp_path / "out", Encoding(short_side=40))
    shutil.copy(clip, tree / "日本 語" / "-a b.avi")
    with pytest.raises(DataError, match="2 videos would become"):
        transcode(tree, tmp_path / "other", SMALL)


def test_sources_that_break_off_leave_no_copy(clip, tmp_path, monkeypatch):
    def break_off(frame):
        raise av.InvalidDataError(1, "broken")

    monkeypatch.setattr(module, "_upright", break_off)
    with pytest.raises(Exception, match="cannot be transcoded"):
        encode_video(clip, tmp_path / "copy.mp4", SMALL)
    assert os.listdir(tmp_path) == []


def test_lists_are_copied_with_the_new_suffix(tree, tmp_path):
    os.rename(tree / "日本 語" / "-a b.mp4", tree / "日本 語" / "-a b.avi")
    (tree / "list.txt").write_text("日本 語/-a b.avi 3\n-büße'n/-a b.mp4 5\n")
    transcode(tree, tmp_path / "out", SMALL, workers=1)
    copy = copy_annotation(tree / "list.txt", tree, tmp_path / "out")
    records = load_records(copy)
    assert [(os.path.relpath(record.path, tmp_path / "out"), record.label) for record in records] == [
        ("日本 語/-a b.mp4", 3),
        ("-büße'n/-a b.mp4", 5),
    ]
