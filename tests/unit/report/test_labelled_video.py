"""Burnt-in labels: fonts, right-to-left text, and videos without times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import features

from gcvideo.predict.timeline import Segment
from gcvideo.report import pictures
from gcvideo.report.pictures import annotate_video, draw_label, find_font
from gcvideo.video import FrameStream
from tests.videos import moving_frames, write_video

CHINESE = "跳绳"


@pytest.fixture(autouse=True)
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fonts of the machine: none but matplotlib's own, and those that a test adds."""
    found: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    for cached in (pictures.find_font, pictures._band):
        cached.cache_clear()
    yield found
    for cached in (pictures.find_font, pictures._band):
        cached.cache_clear()


def make_font(path: Path, characters: str) -> Path:
    """A font in which each of these characters is a black square."""
    names = {ord(character): f"glyph{ord(character)}" for character in characters}
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 800), (800, 800), (800, 0)):
        (pen.moveTo if place == (0, 0) else pen.lineTo)(place)
    pen.closePath()
    square = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    order = [".notdef", *names.values()]
    font.setupGlyphOrder(order)
    font.setupCharacterMap(names)
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names.values(), square)})
    font.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


def band(label: str) -> np.ndarray:
    frame = np.full((240, 640, 3), 128, np.uint8)
    draw_label(frame, Segment(0, 1, label, 0, 0.81))
    return frame[-20:, :, 0]


@pytest.mark.parametrize("label", ["jump", "éclair", "Прыжок", "άλμα", "قفز بالحبل", "zero\u200cwidth"])
def test_letters_of_many_alphabets_are_drawn(label: str) -> None:
    assert find_font(label)[1] == set()
    assert not np.array_equal(band(label), band("\ufdd0" * len(label))), "not boxes"


def test_a_font_of_the_machine_is_found(fonts: list[str], tmp_path: Path) -> None:
    boxes = band(CHINESE)
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    fonts += [str(tmp_path / "damaged.ttf"), str(make_font(tmp_path / "half.ttf", "跳"))]
    fonts.append(str(make_font(tmp_path / "whole.ttf", CHINESE)))
    for cached in (pictures.find_font, pictures._band):
        cached.cache_clear()
    assert pictures.find_font(CHINESE) == (str(tmp_path / "whole.ttf"), set())
    drawn = band(CHINESE)
    assert (drawn > 200).sum() > 150, "two black squares"
    assert not np.array_equal(drawn, boxes)
    assert pictures.find_font("jump")[0].endswith("DejaVuSans.ttf")


@pytest.mark.skipif(not features.check("raqm"), reason="needs FriBiDi")
def test_right_to_left_text_is_joined_and_in_order() -> None:
    word, apart = "قفز", "\u200c".join("قفز")  # the invisible character keeps letters apart
    ends = [np.flatnonzero((band(label) > 100).any(axis=0)).max() for label in (word, apart)]
    assert ends[0] < ends[1], "joined letters are narrower"
    first, last = band("ا" + "ـ" * 9), band("ـ" * 9 + "ا")  # a tall letter before and behind a flat line
    tall = [np.flatnonzero((image[:8] > 100).any(axis=0)).min() for image in (first, last)]
    assert tall[0] > tall[1], "the first letter is on the right"


def test_a_saved_video_warns_of_boxes_and_of_times_that_are_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "a.mp4", moving_frames(10), fps=25)
    annotate_video(str(video), tmp_path / "plain.mp4", [Segment(0, 1, "jump", 0, 0.5)])
    assert capsys.readouterr().err == ""
    raw = write_video(tmp_path / "a.h264", moving_frames(10), fps=25)
    annotate_video(str(raw), tmp_path / "out.mp4", [Segment(0, 1, CHINESE, 0, 0.5)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "out.mp4: no font here has 绳跳, which are drawn as boxes" in lines[0]
    assert "apt install fonts-noto-cjk" in lines[0]
    assert lines[1] == f"warning: {raw}: has no times, so the copy plays 25 frames per second"
    with FrameStream(str(tmp_path / "out.mp4")) as stream:
        np.testing.assert_allclose([frame.time for frame in stream], np.arange(10) / 25, atol=1e-3)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_sound_keeps_its_place(tmp_path: Path, name: str) -> None:
    """Half a second of silence and half a second of a tone, as a camera writes it."""
    tone = (8000 * np.sin(np.arange(16_000) / 4) * (np.arange(16_000) >= 8_000)).astype(np.int16)
    with av.open(str(tmp_path / "a.avi"), "w") as file:
        video, sound = file.add_stream("mpeg4", rate=20), file.add_stream("pcm_s16le", rate=16_000, layout="mono")
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        played = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        played.sample_rate = 16_000
        file.mux([*sound.encode(played), *sound.encode(None)])
        for frame in [*map(av.VideoFrame.from_ndarray, moving_frames(20, 64, 96)), None]:
            file.mux(video.encode(frame))
    annotate_video(str(tmp_path / "a.avi"), tmp_path / name, [Segment(0, 1, "jump", 0, 0.5)])
    with av.open(str(tmp_path / name)) as file:
        heard = [(frame.time, np.abs(frame.to_ndarray()).max()) for frame in file.decode(audio=0)]
    assert next(second for second, loud in heard if loud > 0.1) == pytest.approx(0.5, abs=0.1)
    assert heard[-1][0] == pytest.approx(1, abs=0.1)
