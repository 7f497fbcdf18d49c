"""Exported files run in the place of their checkpoint, with the same scores, or give one clear error."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gcvideo
from gcvideo.cli import main
from gcvideo.data.dataset import ViewDataset
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError, InputShapeError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions
from gcvideo.predict.predictor import Predictor
from gcvideo.train.checkpoint import load_checkpoint, save_checkpoint
from tests.tiny import CLASSES, tiny_checkpoint, tiny_videos
from tests.videos import moving_frames, write_video

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow  # the export in the fixture


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose preprocessing differs from the defaults in every way, its exported files, and videos."""
    folder = tmp_path_factory.mktemp("exported")
    tiny_videos(folder, 4)
    data = {"stride": 3, "target_fps": 20.0, "mean": [0.4, 0.5, 0.3], "std": [0.2, 0.3, 0.25]}
    test = {"crop": 64, "short_side": 70, "clips": 3, "crops": 1, "convention": "pyslowfast_offset", "ensemble": "max"}
    checkpoint = tiny_checkpoint(folder, data=data, test=test)
    # A head whose scores of these views are spread out, so that a change of the preprocessing shows.
    logits = gcvideo.load(checkpoint, precision="fp32", device="cpu")
    found = evaluate(logits.model, views(logits, folder), test=logits.config.test, data=logits.config.data)
    mean, scale = (
        torch.from_numpy(value) for value in (found.averages["logits"].mean(0), found.averages["logits"].std(0))
    )
    state = load_checkpoint(checkpoint)
    state["model"]["head.proj.weight"].div_(scale[:, None])
    state["model"]["head.proj.bias"].sub_(mean).div_(scale)
    save_checkpoint(folder / "best.pt", state)
    for target, *options in (["m.onnx"], ["m.pt2"], ["fixed.onnx", "--half", "--dynamic"]):
        assert main(["export", str(folder / "best.pt"), str(folder / target), *options]) == 0
    return folder


def videos(place: Path) -> list[Path]:
    return [place / f"video_{i}.mp4" for i in range(4)]


def views(predictor: Predictor, place: Path) -> ViewDataset:
    records = RecordTable.of_files(videos(place))
    return ViewDataset(records, data=predictor.config.data, test=predictor.config.test)


def scores(place: Path, file: str, **options: str) -> np.ndarray:
    predictor = gcvideo.load(place / file, device="cpu", **{"precision": "auto", **options})
    return np.stack([found for found in predictor.score_files(videos(place)) if isinstance(found, np.ndarray)])


def test_predicts_as_the_checkpoint_does(place: Path) -> None:
    expected = scores(place, "best.pt", precision="fp32")
    assert np.ptp(expected, axis=0).max() > 0.1, "the videos must differ for the test to tell"
    for file, tolerance in (("m.onnx", 1e-5), ("m.pt2", 1e-5), ("fixed.onnx", 1e-2)):
        np.testing.assert_allclose(scores(place, file), expected, atol=tolerance, err_msg=file)
    assert (place / "fixed.onnx").stat().st_size < 0.8 * (place / "m.onnx").stat().st_size  # halved weights


def test_openvino_gives_the_same_scores(place: Path) -> None:
    pytest.importorskip("openvino")
    expected = scores(place, "m.onnx")
    np.testing.assert_allclose(scores(place, "m.onnx", engine="openvino"), expected, atol=1e-4)


@pytest.mark.parametrize("file", ["m.onnx", "m.pt2"])
def test_the_test_command_and_other_views(place: Path, tmp_path: Path, file: str) -> None:
    data = [f"data.val.annotation={place}/val.txt", "data.workers=0", "train.precision=fp32"]
    found = []
    for model in ("best.pt", file):
        for name, overrides in (("own", []), ("fast", ["test.whole_frame=true", "data.frames=6"])):
            output = tmp_path / f"{model}_{name}"
            assert main(["test", str(place / model), *data, *overrides, "--output", str(output)]) == 0
            suffix = "_fast" if overrides else ""
            found.append(Predictions.load(output / f"predictions{suffix}.npz").scores)
            results = json.loads((output / f"results{suffix}.json").read_text())
            assert results["precision"] == "fp32"
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
    np.testing.assert_allclose(found[3], found[1], atol=1e-5)


def test_int8_says_what_it_costs(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, account = tmp_path / "q.onnx", tmp_path / "q.json"
    command = ["export", str(place / "best.pt"), str(target), "--int8", "--json", str(account), "--dynamic"]
    assert main([*command, "--calibrate", str(place / "val.txt")]) == 0
    int8 = json.loads(account.read_text())["int8"]
    assert "top-1 before: " in capsys.readouterr().out
    assert int8["videos"] == 4
    assert 0 < int8["mean_difference"] < 0.1
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("Conv") > 15
    np.testing.assert_allclose(
        gcvideo.load(target).predict(place / "video_0.mp4", top=1)[0].score, scores(place, "m.onnx")[0].max(), atol=0.2
    )


def test_one_clear_error(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, file = str(place / "video_0.mp4"), str(place / "m.onnx")
    (tmp_path / "cut.onnx").write_bytes((place / "m.onnx").read_bytes()[:2000])
    (tmp_path / "cut.pt2").write_bytes((place / "m.pt2").read_bytes()[:2000])
    foreign = onnx.load(place / "m.onnx")
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for command, message in (
        (["predict", video, "--checkpoint", str(tmp_path / "cut.onnx")], "cut.onnx: damaged, or not a .onnx file"),
        (["predict", video, "--checkpoint", str(tmp_path / "cut.pt2")], "cut.pt2: damaged, or not a .pt2 file"),
        (["predict", video, "--checkpoint", str(tmp_path / "no.onnx")], "no.onnx: no such exported file"),
        (["predict", video, "--checkpoint", str(tmp_path / "foreign.onnx")], "was not written by this gcvideo"),
        (["predict", video, "--checkpoint", file, "--compile"], "was exported in fp32 and cannot be compiled"),
        (["predict", video, "--checkpoint", file, "--maps", str(tmp_path)], "shows no layers; give the checkpoint"),
        (["predict", video, "--checkpoint", str(place / "fixed.onnx"), "--fast"], "H is 64, not (3, 3, 4, 70, 93)"),
        (["test", file], "set data.test.annotation"),
        (["test", file, "model.depth=50"], "cannot be changed"),
        (["export", file, str(tmp_path / "again.onnx")], "shows no layers"),
        (["embed", video, "--checkpoint", file, "--out", str(tmp_path / "v.parquet")], "shows no layers"),
        (["analyze", "attention", file], "shows no layers"),
        (["export", "slow_r18", str(tmp_path / "a.pt2"), "--int8"], "--int8 writes an .onnx"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    with pytest.raises(ConfigError, match="cannot be run in bf16"):
        gcvideo.load(file, precision="bf16", device="cpu")


def test_the_file_holds_all_that_preprocessing_needs(place: Path) -> None:
    entry = next(entry for entry in onnx.load(place / "m.onnx").metadata_props if entry.key == "gcvideo")
    about = json.loads(entry.value)
    assert about["classes"] == CLASSES
    assert about["format"] == 1
    assert about["data"] == {
        "frames": 4, "stride": 3, "target_fps": 20.0, "mean": [0.4, 0.5, 0.3], "std": [0.2, 0.3, 0.25],
    }  # fmt: skip
    assert about["test"] == {
        "clips": 3, "crops": 1, "short_side": 70, "crop": 64, "whole_frame": False,
        "convention": "pyslowfast_offset", "ensemble": "max",
    }  # fmt: skip
    assert about["clip"] == [3, 4, 64, 64]
    assert set(about["dynamic"]) == {"T", "H", "W"}
    config = gcvideo.load(place / "best.pt", device="cpu").config
    read = gcvideo.load(place / "m.onnx", device="cpu").config
    assert replace(read.model, weights=config.model.weights) == config.model
    assert (read.test, read.data.target_fps) == (config.test, 20.0)


@pytest.mark.parametrize(
    ("convention", "clips"), [("pyslowfast", 2), ("pyslowfast_offset", 1), ("pyslowfast_offset", 3)]
)
def test_the_script_of_the_docs_needs_no_gcvideo(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    convention: str,
    clips: int,
) -> None:
    """With the usual views, as it says, and a frame rate to be reached."""
    page = (Path(__file__).parents[2] / "docs/testing.md").read_text()
    (tmp_path / "label.py").write_text(page.split('```python title="label.py"\n')[1].split("```")[0])
    assert "gcvideo." not in (tmp_path / "label.py").read_text()
    model = onnx.load(place / "m.onnx")
    about = json.loads(model.metadata_props[-1].value)
    about["test"] |= {"convention": convention, "ensemble": "softmax", "clips": clips, "crops": 3}
    model.metadata_props[-1].value = json.dumps(about)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    tie = write_video(tmp_path / "tie.mp4", moving_frames(35, 64, 48), fps=50)  # whose frames hang on float32
    for video in (videos(place)[0], tie):
        monkeypatch.setattr(sys, "argv", ["label.py", str(video)])
        runpy.run_path("label.py")
        found = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
        expected = gcvideo.load("model.onnx", device="cpu").predict(video)
        assert [label for _, label in found] == [prediction.label for prediction in expected]
        scores = [float(score) for score, _ in found]
        np.testing.assert_allclose(scores, [prediction.score for prediction in expected], atol=1e-4)


def test_timelines_and_pages(place: Path, tmp_path: Path) -> None:
    expected, found = (
        gcvideo.load(place / file, device="cpu", precision=precision).timeline(place / "video_0.mp4")
        for file, precision in (("best.pt", "fp32"), ("m.onnx", "auto"))
    )
    assert [segment.label for segment in found.segments] == [segment.label for segment in expected.segments]
    page = tmp_path / "page.html"
    arguments = ["--checkpoint", str(place / "m.onnx"), "--html", str(page), "--workers", "0", "--device", "cpu"]
    assert main(["predict", str(place / "video_0.mp4"), *arguments]) == 0
    assert "an exported file shows none of its layers" in page.read_text()


def test_shapes_are_checked_before_the_engine_sees_them(place: Path) -> None:
    model = gcvideo.load(place / "m.onnx", device="cpu").model
    for shape, message in (((1, 3, 4, 32, 64), "H is 64 or more"), ((1, 3, 4, 64, 32), "W is 64 or more")):
        with pytest.raises(InputShapeError, match=message):
            model(torch.zeros(shape))
