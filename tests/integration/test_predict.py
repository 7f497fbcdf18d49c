"""``gcvideo predict`` and ``gcvideo.load(...).predict(...)``: every input is answered or refused in one line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import gcvideo
from gcvideo.cli import main
from gcvideo.data.dataset import ViewDataset
from gcvideo.data.records import RecordTable
from gcvideo.errors import CheckpointError, VideoError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions
from gcvideo.predict.ensemble import Ensemble
from gcvideo.predict.inputs import find_sources
from gcvideo.predict.predictor import Predictor
from gcvideo.predict.timeline import Window
from gcvideo.train.checkpoint import load_checkpoint, save_checkpoint
from gcvideo.video import open_video
from gcvideo.video.stream import FrameStream
from tests.processes import gcvideo as gcvideo_command
from tests.processes import run_apart, wait
from tests.tiny import CLASSES, tiny_checkpoint, tiny_videos
from tests.videos import moving_frames, write_video


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    tiny_videos(folder, 3)
    tiny_checkpoint(folder)
    return folder


def predict(checkpoint: str, *arguments: object, expect: int = 0) -> None:
    assert main(["predict", *map(str, arguments), "--checkpoint", checkpoint, "--workers", "0"]) == expect


def test_the_python_call_gives_the_best_labels_first(predictor: Predictor, place: Path) -> None:
    predictions = predictor.predict(place / "video_0.mp4", top=3)
    assert len(predictions) == 3
    scores = [p.score for p in predictions]
    assert scores == sorted(scores, reverse=True)
    assert all(p.label == CLASSES[p.index] for p in predictions)
    assert sum(p.score for p in predictor.predict(place / "video_0.mp4", top=10)) == pytest.approx(1)


def test_scores_that_are_no_numbers_are_no_answer(
    checkpoint: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(checkpoint)
    state["model"]["head.proj.weight"][0] = float("nan")
    save_checkpoint(tmp_path / "spoilt.pt", state)
    predict(str(tmp_path / "spoilt.pt"), place / "video_0.mp4", expect=2)
    assert "spoilt.pt: its scores are not finite" in capsys.readouterr().err
    spoilt = gcvideo.load(tmp_path / "spoilt.pt", device="cpu")
    with pytest.raises(CheckpointError, match="not finite"):
        spoilt.timeline(place / "video_0.mp4")


def test_predict_and_test_give_the_same_scores(predictor: Predictor, place: Path, tmp_path: Path) -> None:
    assert main(["test", predictor.source, "--output", str(tmp_path)]) == 0
    tested = Predictions.load(tmp_path / "predictions.npz")
    scores = np.stack(list(predictor.score_files([place / f"video_{i}.mp4" for i in range(3)])))
    np.testing.assert_allclose(scores, tested.scores, atol=1e-6)


def test_several_networks_are_averaged_each_with_its_own_views(
    predictor: Predictor, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(predictor.source)
    state["config"]["data"]["stride"], state["config"]["test"]["clips"] = 3, 1
    state["model"]["head.proj.bias"] += torch.tensor([1.0, 0, 0, -1])
    save_checkpoint(tmp_path / "other.pt", state)
    other, video = gcvideo.load(tmp_path / "other.pt", device="cpu"), place / "video_0.mp4"
    several = ["predict", str(video), "--checkpoint", predictor.source, "--checkpoint", str(tmp_path / "other.pt")]
    for options, change in (([], {}), (["--crops", "1"], {"crops": 1})):
        arguments = ["--workers", "0", "--device", "cpu", "--json", str(tmp_path / "a.json"), *options]
        assert main([*several, *arguments]) == 0
        found = json.loads((tmp_path / "a.json").read_text())["videos"][0]["predictions"]
        each = [next(one.score_files([video], test=replace(one.config.test, **change))) for one in (predictor, other)]
        for prediction in found:
            assert prediction["score"] == pytest.approx(np.mean(each, axis=0)[prediction["index"]])
    frames = moving_frames(20, seed=0)
    of_array, of_iterator = (Ensemble([predictor, other]).predict(form) for form in (frames, iter(frames)))
    assert of_array == of_iterator
    state["classes"] = CLASSES[::-1]
    save_checkpoint(tmp_path / "other.pt", state)
    for arguments, message in (([], "have other classes"), (["--timeline"], "give one for anything else")):
        assert main([*several, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_files_say_what_the_terminal_says(
    checkpoint: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"]
    predict(checkpoint, place / "video_0.mp4", place / "absent.mp4", "--top", 2, *files, expect=1)
    out, err = capsys.readouterr()
    answered, refused = json.loads((tmp_path / "a.json").read_text())["videos"]
    assert refused["error"] == "does not exist"
    assert err.strip() == f"warning: {place}/absent.mp4: does not exist"
    best = answered["predictions"][0]
    assert f"{100 * best['score']:.2f} %  {best['label']}" in out
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    assert [row["label"] for row in rows[:2]] == [p["label"] for p in answered["predictions"]]
    assert rows[2]["error"] == "does not exist"


def test_names_that_begin_with_a_dash(
    checkpoint: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(place / "video_0.mp4", tmp_path / "-a.mp4")
    monkeypatch.chdir(tmp_path)
    predict(checkpoint, "-a.mp4")
    assert capsys.readouterr().out.startswith("./-a.mp4\n")


def test_folders_and_patterns(checkpoint: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "sub dir" / "deeper").mkdir(parents=True)
    shutil.copy(place / "video_0.mp4", tmp_path / "sub dir" / "deeper" / "a.MP4")
    shutil.copy(place / "video_1.mp4", tmp_path / "sub dir" / "b [1].mp4")
    (tmp_path / "sub dir" / "notes.txt").write_text("no video")
    (tmp_path / "sub dir" / "._1.mp4").write_text("what macOS writes beside 1.mp4")
    (tmp_path / "sub dir" / "loop").symlink_to(tmp_path)
    predict(checkpoint, tmp_path, "--json", tmp_path / "a.json", "--clips", 1, "--crops", 1)
    found = [entry["video"] for entry in json.loads((tmp_path / "a.json").read_text())["videos"]]
    assert [Path(name).name for name in found] == ["b [1].mp4", "a.MP4"]
    assert [s.path for s in find_sources(str(tmp_path / "**" / "*.MP4"))] == [found[1]]
    assert [s.path for s in find_sources(found[0])] == [found[0]], "an existing name is no pattern"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ftp://me:secret@example.org/a.mp4", "ftp://***@example.org/a.mp4: is a URL of a kind that is not read"),
        ("file:///a.mp4", "is a URL of a kind that is not read"),
        ("http://me:secret@127.0.0.1:9/a.mp4", "http://***@127.0.0.1:9/a.mp4: Connection refused"),
        ("nothing/*.mp4", "no file matches"),
        ("absent.mp4", "does not exist"),
        ("x" * 300, "does not exist"),
        ("/dev/null", "is not a file"),
        ("{place}/empty", "without videos"),
        ("{place}/pipe.mp4", "is not a file"),
        ("{place}/dangling.mp4", "does not exist"),
        ("nul\0byte", "does not exist"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "gone.mp4")
    predict(checkpoint, name.format(place=tmp_path), expect=2)
    error = capsys.readouterr().err.strip()
    assert reason in error
    assert "\n" not in error


HOSTILE_NAMES = [
    "<script>alert(1)</script>.mp4".replace("/", "_"),
    "quotes \"double\" 'single' `back`.mp4",
    "two\nlines.mp4",
    "\u202egpj.mp4",
    "x" * 200 + ".mp4",
    "-rf.mp4",
    "percent %s {0} $HOME.mp4",
    "ünï cödé 视频.mp4",
    os.fsdecode(b"latin \xfcmlaut.mp4"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_answered(
    checkpoint: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copy(place / "video_0.mp4", tmp_path / name)
    files = ["--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv"]
    predict(checkpoint, tmp_path / name, "--clips", 1, "--crops", 1, "--top", 1, *files)
    out, _ = capsys.readouterr()
    assert len(out.strip().splitlines()) == 2, "a name takes one line, whatever is in it"
    assert "\u202e" not in out
    assert json.loads((tmp_path / "out.json").read_text())["videos"][0]["video"] == str(tmp_path / name)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert next(csv.DictReader(file))["video"] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("one_frame", {"count": 1}),
        ("shorter than a clip", {"count": 3}),
        ("portrait", {"count": 12, "height": 64, "width": 36}),
        ("wide", {"count": 12, "height": 16, "width": 200}),
        ("odd size", {"count": 12, "height": 47, "width": 63}),
    ],
)
def test_odd_videos_are_answered(predictor: Predictor, tmp_path: Path, name: str, options: dict[str, int]) -> None:
    path = write_video(tmp_path / f"{name}.mp4", moving_frames(**options), pixel_format="yuv444p")
    assert len(predictor.predict(path)) == len(CLASSES)


def test_a_rotated_video_is_seen_as_displayed(predictor: Predictor, tmp_path: Path) -> None:
    frames = moving_frames(16)
    lossless: dict[str, Any] = {"options": {"qp": "0", "preset": "ultrafast"}, "pixel_format": "yuv444p"}
    upright = write_video(tmp_path / "upright.mp4", np.ascontiguousarray(np.rot90(frames, axes=(1, 2))), **lossless)
    turned = write_video(tmp_path / "turned.mp4", frames, rotation=90, **lossless)
    again = write_video(tmp_path / "again.mp4", np.ascontiguousarray(np.rot90(frames, 3, axes=(1, 2))), **lossless)
    scores = [np.asarray(next(predictor.score_files([path]))) for path in (upright, turned, again)]
    differences = [np.abs(scores[1] - scores[k]).max() for k in (0, 2)]
    # Chroma and resizing are not quite the same turned; another picture altogether is an order of magnitude away.
    assert min(differences) < 0.1 * max(differences)
    assert max(differences) > 0.05


def test_variable_frame_rate_is_answered(predictor: Predictor, tmp_path: Path) -> None:
    pts = np.cumsum([1, 1, 5, 1, 9, 1, 1, 2, 30, 1, 1, 1]).tolist()
    path = write_video(tmp_path / "vfr.mp4", moving_frames(12), pts=pts, time_base=Fraction(1, 30))
    assert predictor.predict(path)


@pytest.mark.slow
def test_4k_is_answered(predictor: Predictor, tmp_path: Path) -> None:
    path = write_video(tmp_path / "4k.mp4", np.repeat(np.repeat(moving_frames(4), 45, 1), 60, 2)[:, :2160, :3840])
    assert predictor.predict(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"this is no video", b"\x00\x00\x00\x18ftypmp42" + b"\0" * 99])
def test_a_file_that_is_no_video_is_named(predictor: Predictor, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"bad\.mp4") as caught:
        predictor.predict(tmp_path / "bad.mp4")
    assert "\n" not in str(caught.value)


def test_a_bad_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
        gcvideo.load(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("option", [("--top", "0"), ("--clips", "0"), ("--workers", "-1")])
def test_options_out_of_range(checkpoint: str, place: Path, option: tuple[str, str]) -> None:
    assert main(["predict", str(place / "video_0.mp4"), "--checkpoint", checkpoint, *option]) == 2


@pytest.mark.slow
def test_every_real_video_is_answered_or_refused_in_one_line(
    checkpoint: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = ["--clips", "1", "--crops", "1", "--top", "1", "--workers", "2"]
    code = main(
        ["predict", str(shared / "videos"), "--checkpoint", checkpoint, *views, "--json", str(tmp_path / "a.json")]
    )
    entries = json.loads((tmp_path / "a.json").read_text())["videos"]
    refused = [entry for entry in entries if entry["error"]]
    assert code == (1 if refused else 0)
    assert len(entries) >= 20
    assert len(capsys.readouterr().err.strip().splitlines()) <= len(refused)
    assert all("\n" not in entry["error"] for entry in refused)
    assert all(not entry["error"] for entry in entries if "kinetics400" in entry["video"])


def test_a_timeline_covers_the_whole_video(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_video(tmp_path / "long.mp4", moving_frames(100), fps=20)
    files = ["--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"]
    predict(checkpoint, video, "--timeline", "--step", 0.25, "--smooth", 0, "--min-length", 0.2, *files)
    (entry,) = json.loads((tmp_path / "a.json").read_text())["videos"]
    segments = entry["timeline"]
    assert segments[0]["start"] == 0
    assert segments[-1]["end"] == pytest.approx(5, abs=0.1)
    assert all(a["end"] == b["start"] for a, b in pairwise(segments))
    assert all(a["label"] != b["label"] for a, b in pairwise(segments))
    assert len(entry["windows"]) == 20
    assert capsys.readouterr().out.count("\n") == 1 + len(segments)
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    assert [row["label"] for row in rows] == [segment["label"] for segment in segments]


def test_options_reach_the_timeline(checkpoint: str, predictor: Predictor, tmp_path: Path) -> None:
    scenes = np.concatenate([moving_frames(20, seed=scene) for scene in range(6)])
    video = write_video(tmp_path / "scenes.mp4", scenes, fps=20)

    def entry(*options: object) -> dict[str, Any]:
        predict(checkpoint, video, "--timeline", "--step", 0.25, *options, "--json", tmp_path / "a.json")
        (found,) = json.loads((tmp_path / "a.json").read_text())["videos"]
        return found

    plain = predictor.timeline(video, step=0.25, smooth=0, min_length=0)
    assert len(plain.segments) > 1, "a network that always says the same could not tell"
    options = {"smooth": 0.0, "min_length": 0.0}
    found = [entry("--smooth", 0, "--min-length", 0), entry("--smooth", 9, "--min-length", 0)]
    found.append(entry("--smooth", 0, "--min-length", 9))
    expected = [options, {**options, "smooth": 9.0}, {**options, "min_length": 9.0}]
    for got, values in zip(found, expected, strict=True):
        segments = predictor.timeline(video, step=0.25, **values).segments
        assert [s["label"] for s in got["timeline"]] == [s.label for s in segments]
        assert [s["score"] for s in got["timeline"]] == pytest.approx([s.score for s in segments], abs=1e-5)


@pytest.mark.parametrize("ensemble", ["softmax", "logits", "max"])
def test_labels_are_scored_by_the_ensemble_of_the_test(predictor: Predictor, place: Path, ensemble: str) -> None:
    test = replace(predictor.config.test, ensemble=ensemble)
    (scores,) = predictor.score_files([place / "video_0.mp4"], test=test)
    dataset = ViewDataset(RecordTable.of_files([place / "video_0.mp4"]), data=predictor.config.data, test=test)
    averages = evaluate(predictor.model, [dataset[0]], test=test, data=predictor.config.data).averages
    expected = {**averages, "logits": torch.tensor(averages["logits"]).softmax(dim=1).numpy()}[ensemble]
    assert isinstance(scores, np.ndarray)
    np.testing.assert_allclose(scores, expected[0], atol=1e-5)
    others = [other[0] for name, other in averages.items() if name != ensemble]
    assert all(np.abs(scores - other).max() > 1e-4 for other in others)


def test_an_annotated_video_keeps_its_frames_and_its_sound(checkpoint: str, tmp_path: Path) -> None:
    frames = np.full((30, 96, 128, 3), 128, np.uint8)
    video = write_video(tmp_path / "a.mp4", frames, fps=20, audio=True)
    predict(checkpoint, video, "--save", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as out, av.open(str(video)) as source:
        heard = [sum(frame.samples for frame in container.decode(audio=0)) for container in (out, source)]
        assert heard[0] == pytest.approx(heard[1], abs=2048)  # two packets of AAC
    with open_video(tmp_path / "out.mp4") as out:
        assert len(out) == 30
        picture = out.frames([0])[0].astype(int)
    with FrameStream(str(tmp_path / "out.mp4")) as stream:
        np.testing.assert_allclose([frame.time for frame in stream], np.arange(30) / 20, atol=1e-3)
    assert np.abs(picture[:80] - 128).max() < 8, "the picture above the band is untouched"
    assert picture[-6:].min() < 60, "the band is dark"
    assert picture[-8:].max() > 150, "and has bright text"
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save", "{place}/out.avi"], ".mp4, .mkv, .mov"),
        (["--save", "{place}/video_0.mp4"], "is the video itself"),
        (["{place}/video_1.mp4", "--save", "{place}/out.mp4"], "a single video"),
        (["--timeline", "--step", "0"], "--step"),
        (["--timeline", "--smooth", "nan"], "--smooth"),
    ],
)
def test_wrong_timeline_options(
    checkpoint: str, place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    filled = [argument.format(place=place) for argument in arguments]
    before = (place / "video_0.mp4").read_bytes()
    predict(checkpoint, place / "video_0.mp4", *filled, expect=2)
    assert message in capsys.readouterr().err
    assert (place / "video_0.mp4").read_bytes() == before


@pytest.mark.slow
def test_maps_are_written_as_pictures_and_films(checkpoint: str, place: Path, tmp_path: Path) -> None:
    predict(checkpoint, place / "video_0.mp4", "--checkpoint", checkpoint, "--maps", tmp_path / "maps")
    networks = ("video_0_maps", "video_0_maps_network2")
    expected = {"video_0_maps.html", *(f"{name}.{kind}" for name in networks for kind in ("png", "gif", "mp4"))}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == expected
    png = Image.open(tmp_path / "maps" / "video_0_maps.png")
    assert png.size == (4 * 112, 4 * (112 + 18))  # 4 frames; the frames, Grad-CAM and two blocks
    assert getattr(Image.open(tmp_path / "maps" / "video_0_maps.gif"), "n_frames", 1) == 4
    with open_video(tmp_path / "maps" / "video_0_maps.mp4") as film:
        assert len(film) == 4
    predict(checkpoint, place / "video_0.mp4", "--query", 2, 0, 0, expect=2)


@pytest.mark.slow
def test_maps_replace_no_video_and_no_other_maps(checkpoint: str, place: Path, tmp_path: Path) -> None:
    names = ["a.mp4", "a_maps.mp4", "b/a.mp4", "b/a.mkv"]
    (tmp_path / "b").mkdir()
    for name in names:
        shutil.copy(place / "video_0.mp4", tmp_path / name)
    before = (place / "video_0.mp4").read_bytes()
    predict(checkpoint, *(tmp_path / name for name in names), "--maps", tmp_path, "--clips", 1)
    assert all((tmp_path / name).read_bytes() == before for name in names)
    maps = ["a_maps_2.png", "a_maps_3.png", "a_maps_4.png", "a_maps_maps.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == maps


def test_a_camera_that_is_not_there_is_named(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    predict(checkpoint, "97", expect=2)
    assert "warning: camera:97: there is no camera /dev/video97" in capsys.readouterr().err


def test_a_camera_is_answered_until_told_to_stop(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel's end of the camera is FFmpeg's endless test picture; all the rest is as with a real one."""
    opened, exists, open_ = [], os.path.exists, av.open

    def open_camera(place: str, **options: Any) -> Any:
        opened.append((place, options.pop("format")))
        return open_("testsrc2=size=64x48:rate=20,realtime", format="lavfi", **options)

    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/video3" or exists(path))
    monkeypatch.setattr(av, "open", open_camera)
    files = ["--json", tmp_path / "a.json", "--html", tmp_path / "a.html"]
    predict(checkpoint, "3", "--seconds", 1, *files)
    assert opened == [("/dev/video3", "v4l2")]
    (entry,) = json.loads((tmp_path / "a.json").read_text())["videos"]
    assert entry["video"] == "camera:3"
    assert entry["windows"][-1]["end"] == pytest.approx(1, abs=0.4)
    assert entry["timeline"][-1]["end"] == entry["duration"] < 2
    best = entry["windows"][0]["predictions"][0]
    assert f"0:00.0  {100 * best['score']:6.2f} %  {best['label']}" in capsys.readouterr().out, "said as it happens"
    page = (tmp_path / "a.html").read_text()
    assert "<h2><bdi>camera:3</bdi></h2>" in page
    assert "What happens when" in page


def test_an_interrupt_ends_a_live_source_like_its_end(predictor: Predictor, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", moving_frames(60), fps=20)

    def interrupt(window: Window, stream: Any) -> None:
        if window.start > 0.5:
            raise KeyboardInterrupt

    timeline = predictor.timeline(video, step=0.25, live=True, on_window=interrupt)
    assert len(timeline.windows) == 4
    assert timeline.segments[-1].end == timeline.duration < 3
    with pytest.raises(KeyboardInterrupt):
        predictor.timeline(video, step=0.25, on_window=interrupt)


def test_a_device_that_is_no_camera_is_refused_in_one_line(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/video97" or exists(path))
    predict(checkpoint, "97", expect=2)
    error = capsys.readouterr().err
    assert error.startswith("warning: camera:97: ")
    assert error.count("\n") == 1


def from_standard_input(words: list[str], pipe: Path) -> None:
    os.dup2(os.open(pipe, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0)
    gcvideo_command(*words)


@pytest.mark.slow
def test_standard_input_is_answered_as_it_comes(checkpoint: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mkv", moving_frames(60), fps=20)
    os.mkfifo(tmp_path / "pipe")
    words = ["predict", "-", "--checkpoint", checkpoint, "--json", str(tmp_path / "a.json")]
    process = run_apart(from_standard_input, words, tmp_path / "pipe", output=tmp_path / "output.txt")
    (tmp_path / "pipe").write_bytes(video.read_bytes())
    assert wait([process]) == [0], (tmp_path / "output.txt").read_text()
    (entry,) = json.loads((tmp_path / "a.json").read_text())["videos"]
    assert entry["video"] == "-"
    assert entry["duration"] == pytest.approx(3, abs=0.1)
