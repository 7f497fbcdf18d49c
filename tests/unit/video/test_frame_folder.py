"""Folders of numbered pictures as videos: exact frames, in the order of their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcvideo.errors import DamagedVideoError, VideoError
from gcvideo.video import open_video
from gcvideo.video.frame_folder import check_frames, is_frame_folder
from tests.videos import moving_frames, write_frames

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("{:06d}.jpg", 1),  # Something-Something
        ("frame{:06d}.jpg", 1),
        ("image_{:05d}.jpg", 1),
        ("img_{:05d}.jpg", 1),  # mmaction2
        ("{}.png", 0),  # not padded: 10 comes after 9
        ("shot 2-{}.WEBP", 1),
        ("001YG-{:06d}_rgb.jpeg", 0),
    ],
)
def test_frames_come_out_by_number(tmp_path, name, first):
    frames = moving_frames(12)
    write_frames(tmp_path, frames, name=name, first=first)
    for flow in ("flow_x_00001.jpg", "flow_y_00001.jpg", ".hidden_1.jpg", "notes.txt"):
        (tmp_path / flow).write_bytes(b"not looked at")
    with open_video(tmp_path, frame_rate=10.0) as video:
        assert (len(video), video.height, video.width, video.fps, video.timed) == (12, 48, 64, 10.0, True)
        np.testing.assert_allclose(video.times, np.arange(12) / 10)
        wanted = [11, 0, 9, 10, 9]
        bits = video.frames(wanted)[:, 3, 4::8].mean(axis=-1) > 128  # the number of the frame, see moving_frames
        assert (bits << np.arange(8)).sum(axis=1).tolist() == wanted
        if name.endswith("png"):
            np.testing.assert_array_equal(video.frames(wanted), frames[wanted])
    assert not open_video(tmp_path).timed


def test_only_the_wanted_pictures_are_decoded_and_bad_ones_are_named(tmp_path):
    frames = moving_frames(6)
    write_frames(tmp_path, frames, name="img_{:05d}.png")
    whole = (tmp_path / "img_00003.png").read_bytes()
    (tmp_path / "img_00003.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "img_00005.png").write_bytes(b"")
    with open_video(tmp_path) as video:
        np.testing.assert_array_equal(video.frames([0, 3, 5]), frames[[0, 3, 5]])
        with pytest.raises(DamagedVideoError, match=r"img_00003.png cannot be read: .*truncated"):
            video.frames([1, 2])
        with pytest.raises(DamagedVideoError, match=r"img_00005.png is no picture"):
            video.frames([4])
        with pytest.raises(IndexError):
            video.frames([6])
    numbers, reason = check_frames(str(tmp_path))
    assert numbers == [2, 4]
    assert "img_00003.png" in reason
    (tmp_path / "img_00001.png").unlink()
    with pytest.raises(VideoError, match=r"lacks the picture before img_00002.png; frames are numbered from 0 or 1"):
        open_video(tmp_path)


def test_some_of_the_frames_are_a_video(tmp_path):
    frames = moving_frames(10)
    write_frames(tmp_path / "a", frames, name="{}.png", first=0)
    with open_video(f"{tmp_path}/a#frames=3,7") as video:
        assert len(video) == 4
        np.testing.assert_array_equal(video.frames([0, 3]), frames[[3, 6]])
    for span in ("7,11", "5,5"):
        with pytest.raises(VideoError, match="has 10 pictures, of which"):
            open_video(f"{tmp_path}/a#frames={span}")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img_1.png", "img_2.png", "img_5.png"], "lacks the picture before img_5.png"),
        (["img_1.png", "img_01.png"], "has two pictures of one number"),
        (["1.png", "1.jpg"], "has two pictures of one number"),
        (["img_1.png", "thumb_2.png"], r"pictures of several kinds \(img_1.png and thumb_2.png\)"),
        (["flow_x_1.png", "flow_y_1.png", "cover.png"], "is a folder with no numbered pictures"),
        ([], "is a folder with no numbered pictures"),
    ],
)
def test_other_pictures_are_refused(tmp_path, names, message):
    for name in names:
        Image.fromarray(GREY).save(tmp_path / name)
    with pytest.raises(VideoError, match=message) as caught:
        open_video(tmp_path)
    assert caught.value.path == str(tmp_path)


def test_sizes_that_change_are_refused(tmp_path):
    write_frames(tmp_path, moving_frames(3), name="{}.png")
    Image.fromarray(GREY).save(tmp_path / "3.png")
    with open_video(tmp_path) as video, pytest.raises(VideoError, match=r"3.png has 4 x 3, not 64 x 48 as the first"):
        video.frames([2])


def test_pictures_are_turned_as_their_exif_data_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    for number in (1, 2):
        Image.fromarray(GREY).save(tmp_path / f"{number}.png", exif=exif)
    with open_video(tmp_path) as video:
        assert (video.height, video.width) == (4, 3)
        np.testing.assert_array_equal(video.frames([1])[0, ..., 0], np.rot90(GREY, -1))


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_pictures_of_every_mode_become_rgb(tmp_path, mode):
    rgb = Image.fromarray(np.stack([GREY] * 3, axis=-1))
    image = Image.fromarray(GREY.astype(np.uint16) * 257) if mode == "I;16" else rgb.convert(mode)
    name = "1.jpg" if mode == "CMYK" else "1.png"
    image.save(tmp_path / name, **({"quality": 100, "subsampling": 0} if mode == "CMYK" else {}))
    image.save(tmp_path / name.replace("1", "2"))
    expected = np.asarray((rgb if mode == "I;16" else rgb.convert(mode)).convert("RGB"))
    with open_video(tmp_path) as video:
        found = video.frames([0])[0]
    assert np.abs(found.astype(int) - expected).max() <= (8 if mode == "CMYK" else 0)


def test_folders_of_frames_and_other_folders(tmp_path):
    write_frames(tmp_path / "a", moving_frames(2), name="{}.jpg")
    (tmp_path / "one").mkdir()
    Image.fromarray(GREY).save(tmp_path / "one" / "cover1.jpg")
    assert is_frame_folder(str(tmp_path / "a"))
    assert is_frame_folder(f"{tmp_path}/a#frames=0,1")
    assert not any(map(is_frame_folder, [str(tmp_path), str(tmp_path / "one"), str(Path(__file__))]))
