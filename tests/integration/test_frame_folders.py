"""Folders of frames through whole commands: train, test, predict, embed, verify and index."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import gcvideo
from gcvideo import cli
from gcvideo.errors import VideoError
from gcvideo.predict.inputs import find_sources
from tests.tiny import tiny_checkpoint
from tests.videos import moving_frames, write_frames, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("frame_folders")
    for seed, name in enumerate(("left/a", "left/b", "right/c", "right/d")):
        write_frames(place / "set" / name, moving_frames(12, seed=seed), name="img_{:05d}.jpg")
    lines = [f"set/{name} 12 {label}\n" for label, name in enumerate(("left/a", "left/b", "right/c", "right/d"))]
    (place / "val.txt").write_text("".join(lines))
    broken = write_frames(place / "bad/e", moving_frames(12, seed=9), name="img_{:05d}.jpg") / "img_00001.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    tiny_checkpoint(place)
    return place


def predict(folder: Path, *words: object, code: int = 0) -> list[dict]:
    out = folder / "predictions.json"
    checkpoint = folder / "runs/tiny"
    assert cli.main(["predict", *map(str, words), "--checkpoint", str(checkpoint), "--json", str(out)]) == code
    return list(json.loads(out.read_text())["videos"])


@pytest.mark.slow
def test_predict_tells_a_folder_of_frames_from_a_folder_of_videos(folder):
    found = predict(folder, f"{folder}/bad/e/", folder / "set", "--workers", "0", code=1)
    names = ["bad/e", "set/left/a", "set/left/b", "set/right/c", "set/right/d"]
    assert [video["video"] for video in found] == [f"{folder}/{name}" for name in names]
    assert "img_00001.jpg cannot be read" in found[0]["error"]
    assert [source.path for source in find_sources(f"{folder}/set/left/*")] == [f"{folder}/{n}" for n in names[1:3]]
    timeline = predict(folder, folder / "set/left/a", "--timeline", "--fps", "4", "--step", "1")
    assert timeline[0]["duration"] == 3.0
    predictor = gcvideo.load(folder / "runs/tiny", device="cpu")
    assert predictor.predict(folder / "set/left/a")[0].score == found[1]["predictions"][0]["score"]
    assert predictor.timeline(folder / "set/left/a", fps=4, step=1).segments[0].label
    assert len(predictor.embed(folder / "set/left/a", fps=4, window=1.0).vectors) == 3
    with pytest.raises(VideoError, match="a window needs their rate"):
        predictor.embed(folder / "set/left/a", window=1.0)
    with pytest.raises(VideoError, match=r"has no frame rate of its own: give fps= \(--fps\)"):
        predictor.timeline(folder / "set/left/a")


@pytest.mark.slow
def test_verify_and_index(folder, tmp_path):
    assert cli.main(["prepare", "verify", str(folder / "set"), "--out", str(tmp_path / "bad.jsonl")]) == 0
    assert cli.main(["prepare", "verify", str(folder / "bad"), "--out", str(tmp_path / "bad.jsonl")]) == 1
    found = [json.loads(line) for line in (tmp_path / "bad.report.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["id"]) for row in found] == [("damaged", "e")]  # without a label
    assert found[0]["reason"].startswith("img_00001.jpg cannot be read")
    data = bytearray((write_frames(tmp_path / "set/x", moving_frames(3), name="{}.jpg") / "2.jpg").read_bytes())
    (tmp_path / "set/x/2.jpg").write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")
    assert cli.main(["prepare", "verify", str(tmp_path / "set"), "--out", str(tmp_path / "bad.jsonl")]) == 1
    row = json.loads((tmp_path / "bad.report.jsonl").read_text())
    assert (row["kind"], row["reason"]) == ("damaged", "2.jpg holds damage that libjpeg conceals")
    assert cli.main(["prepare", "index", str(folder / "val.txt"), "--out", str(tmp_path / "index.parquet")]) == 0
    rows = pq.read_table(tmp_path / "index.parquet").to_pylist()
    assert [(row["path"], row["label"], row["frames"], row["fps"]) for row in rows[:2]] == [
        ("set/left/a", 0, 12, None),
        ("set/left/b", 1, 12, None),
    ]
    assert (rows[0]["backend"], rows[0]["codec"], rows[0]["error"], rows[0]["width"]) == ("pillow", "jpeg", None, 64)


@pytest.mark.slow
def test_train_and_test(folder, tmp_path, capsys):
    place = Path(shutil.copytree(folder / "set", tmp_path / "set", symlinks=True))
    write_video(place / "left/film.mp4", moving_frames(12))  # of both kinds
    options = [f"output={tmp_path}", "name=run", "device=cpu", "model.num_classes=2", "model.width=4"]
    options += ["data.frames=4", "data.stride=2", "data.crop=32", "data.short_side=[32,40]", "data.workers=0"]
    options += [
        "train.epochs=1",
        "train.batch_size=2",
        "test.short_side=36",
        "test.crop=32",
        "test.clips=1",
        "test.crops=1",
    ]
    options += [f"data.{split}.annotation={place}" for split in ("train", "val")]
    (place / "right/e").symlink_to(folder / "bad/e")
    config = "configs/custom/small_scratch.yaml"
    assert cli.main(["train", config, *options]) == 0
    assert cli.main(["test", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "img_00001.jpg cannot be read" in (tmp_path / "run/quarantine.jsonl").read_text() + said.err + said.out


def test_what_takes_files_alone_says_so(folder, tmp_path, capsys):
    for words in (["shard", f"{folder}/val.txt", f"{tmp_path}/s"], ["transcode", f"{folder}/set", f"{tmp_path}/t"]):
        assert cli.main(["prepare", *words]) == 2
        assert re.search(
            r"is a folder of frames; shards hold|folders of frames are read as they are", capsys.readouterr().err
        )
