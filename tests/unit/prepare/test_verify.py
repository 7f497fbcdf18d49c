"""Decoding whole videos to find those that are not sound."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gcvideo.data.annotations import load_records
from gcvideo.data.bad_videos import Quarantine
from gcvideo.errors import VideoError
from gcvideo.prepare.verify import verify, verify_video
from tests.videos import moving_frames, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", noise, gop=12)


def damaged(clip: Path, copy: Path) -> Path:
    """The same with 60 bytes in the middle of the picture data overwritten."""
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60] = bytes(range(60))
    copy.write_bytes(content)
    return copy


def test_a_sound_video_is_sound(clip):
    assert verify_video(str(clip)) == {"frames": 24}


@pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "mpeg4"])
def test_sound_videos_of_other_codecs_are_sound(tmp_path, codec):
    path = write_video(tmp_path / "clip.mkv", moving_frames(12), codec=codec)
    assert verify_video(str(path)) == {"frames": 12}


def test_damage_that_decoders_paper_over_is_found(clip, tmp_path):
    with pytest.raises(VideoError, match="is damaged at frame"):
        verify_video(str(damaged(clip, tmp_path / "damaged.mp4")))


def test_the_quarantine_list_names_bad_videos_and_training_honours_it(clip, tmp_path):
    shutil.copy(clip, tmp_path / "good one.mp4")
    damaged(clip, tmp_path / "damaged.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.txt").write_text("good one.mp4 0\ndamaged.mp4 1\nempty.mp4 1\n")
    out = tmp_path / "quarantine.jsonl"
    result = verify(tmp_path / "list.txt", out, workers=1)
    assert (result.videos, result.frames) == (3, 24)
    assert [failure.id for failure in result.failures] == ["damaged.mp4", "empty.mp4"]
    entries = [json.loads(line) for line in out.read_text().splitlines()]
    assert entries[1] == {"id": "empty.mp4", "path": str(tmp_path / "empty.mp4"), "reason": "is empty"}
    assert not Path(f"{out}.partial").exists()
    quarantine = Quarantine(load_records(tmp_path / "list.txt"), known=out)
    assert [quarantine.is_bad(index, 0) for index in range(3)] == [False, True, True]


def test_real_videos(shared):
    """A file that its makers call corrupted is not sound; one from a camera, in an old codec, is."""
    with pytest.raises(VideoError, match="is damaged"):
        verify_video(str(shared / "videos" / "decord" / "corrupted.mp4"))
    hmdb = "RATRACE_wave_f_nm_np1_fr_goo_37.avi"
    assert verify_video(str(shared / "videos" / "torchvision" / hmdb))["frames"] > 0


@pytest.mark.parametrize(
    "name", ["concat:a|b.mp4", "-x.mp4", "http:.mp4", "file:x.mp4", "pipe:0", "x%03d.mp4", "subfile,,start,0,end,9,,:x"]
)
def test_names_that_look_like_something_else_are_file_names(clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, tmp_path / name)
    assert verify_video(name) == {"frames": 24}
