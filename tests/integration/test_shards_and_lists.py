"""Whole trainings and tests on tar shards, and with a list of videos to leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gcvideo.cli import main
from gcvideo.config import RunConfig, save_config
from gcvideo.eval import trained as testing
from gcvideo.eval.predictions import Predictions
from gcvideo.files import Journal
from tests.tiny import tiny_checkpoint
from tests.training import last_state, make_videos, same_tensors, train_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine videos, one of them none; their shards; and what ``verify`` says of them."""
    folder = make_videos(tmp_path_factory.mktemp("shards"))
    (folder / "empty.mp4").write_bytes(b"")
    with (folder / "val.txt").open("a") as file:
        file.write("empty.mp4 1\n")
    tail = ["--workers", "1"]
    assert (
        main(["prepare", "shard", str(folder / "val.txt"), str(folder / "shards"), "--megabytes", "0.02", *tail]) == 0
    )
    assert main(["prepare", "verify", str(folder / "val.txt"), "--out", str(folder / "bad.jsonl"), *tail]) == 1
    tiny_checkpoint(folder)
    return folder


def train(config: RunConfig, *arguments: str) -> dict[str, Any]:
    path = Path(config.output) / f"{config.name}.yaml"
    save_config(config, path)
    assert main(["train", str(path), *arguments]) == 0
    results: dict[str, Any] = json.loads((config.run_dir / "results.json").read_text())["training"]
    return results


def run_test(place: Path, output: Path, *arguments: str) -> tuple[dict[str, Any], Predictions]:
    checkpoint = place / "runs/tiny/checkpoints/best.pt"
    assert main(["test", str(checkpoint), *arguments, "--output", str(output)]) == 0
    return json.loads((output / "results.json").read_text()), Predictions.load(output / "predictions.npz")


@pytest.mark.slow
def test_training_from_shards_ends_with_the_weights_of_training_from_files(place: Path) -> None:
    files = train_config(place, "files", train={"batch_size": 3})
    shards = train_config(place, "shards_run", train={"batch_size": 3})
    shards.data.train.annotation = shards.data.val.annotation = str(place / "shards")
    results = train(files), train(shards)
    states = last_state(files), last_state(shards)
    assert same_tensors(states[0]["model"], states[1]["model"])
    assert states[0]["fingerprint"] == states[1]["fingerprint"]
    assert results[0]["validation"] == results[1]["validation"]
    names = [[(video["id"], video["reason"]) for video in result["failures"]["videos"]] for result in results]
    assert names[0] == names[1] == [("empty.mp4", "is empty")]


def test_a_test_on_shards_gives_the_predictions_of_the_files(place: Path, tmp_path: Path) -> None:
    predictions = [
        run_test(place, tmp_path / name, f"data.val.annotation={place / name}")[1] for name in ("val.txt", "shards")
    ]
    assert predictions[0].ids == predictions[1].ids
    assert (predictions[0].scores == predictions[1].scores).all()
    assert [failure.id for failure in predictions[1].failures] == ["empty.mp4"]


@pytest.mark.slow
def test_a_list_of_bad_videos_is_honoured_from_the_first_clip(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A listed video is not even opened; with what ``verify`` found the weights are those of finding it oneself."""
    found = train_config(place, "found", train={"batch_size": 3})
    listed = train_config(place, "listed", data={"quarantine": str(place / "bad.jsonl")}, train={"batch_size": 3})
    train(found)
    results = train(listed)
    assert "bad.jsonl excludes 1 and 1 of them" in capsys.readouterr().out
    assert same_tensors(last_state(found)["model"], last_state(listed)["model"])
    assert results["failures"]["count"] == 1
    assert results["failures"]["videos"][0]["id"] == "empty.mp4"
    assert results["validation"]["failures"] == 1


@pytest.mark.slow
def test_a_messy_list_trains_without_its_bad_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the list of ``verify``, training on a list that is refused equals training on its sound rows."""
    rows = [line for line in (place / "val.txt").read_text().splitlines() if "empty" not in line]
    (place / "clean.txt").write_text("\n".join(rows[:-1]) + "\n")
    other = f"{rows[-1].split()[0]} {(int(rows[-1].split()[1]) + 1) % 4}"  # a second label for the last video
    messy = [rows[0], "gone.mp4 1", *rows[1:4], "not_a_row", *rows[4:], other]
    (place / "messy.txt").write_text("\n".join(messy) + "\n")
    bad = place / "messy.jsonl"
    assert main(["prepare", "verify", str(place / "messy.txt"), "--out", str(bad), "--workers", "1"]) == 1
    losses = []
    for name, data in (("clean", {}), ("messy", {"quarantine": str(bad)})):
        config = train_config(place, name, data=data, train={"batch_size": 2})
        config.data.train.annotation = config.data.val.annotation = str(place / f"{name}.txt")
        losses.append(train(config)["validation"])
    assert losses[0] == losses[1]
    assert same_tensors(*(last_state(train_config(place, name))["model"] for name in ("clean", "messy")))
    assert "4 rows cannot be used; left out" in capsys.readouterr().err


def test_sound_videos_that_are_listed_are_left_out_counted_and_named(place: Path, tmp_path: Path) -> None:
    """Also those whose turn a short run never comes to."""
    entries = [{"id": f"video_{i}.mp4", "path": "x", "reason": "shows a test card"} for i in range(4)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    config = train_config(
        place, "left_out", data={"quarantine": str(tmp_path / "list.jsonl")}, train={"epochs": 1, "batch_size": 2}
    )
    config.optim.warmup_epochs = 0
    results = train(config)
    named = {video["id"]: video["reason"] for video in results["failures"]["videos"]}
    assert named.items() >= {entry["id"]: "shows a test card" for entry in entries}.items()
    tested, predictions = run_test(place, tmp_path / "out", f"data.quarantine={tmp_path / 'list.jsonl'}")
    assert (tested["videos"], tested["answered"], tested["failed"]) == (9, 4, 5)
    assert {failure.id: failure.reason for failure in predictions.failures}["video_2.mp4"] == "shows a test card"


def test_a_listed_video_that_a_killed_test_had_finished_counts_as_failed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(Journal):
        def add(self, item: str, row: dict[str, Any], stamp: Any = None) -> None:
            super().add(item, row, stamp)
            if row["id"] == "video_2.mp4":
                raise KeyboardInterrupt

    checkpoint = str(place / "runs/tiny/checkpoints/best.pt")
    with monkeypatch.context() as patch:
        patch.setattr(testing, "Journal", Dying)
        assert main(["test", checkpoint, "--output", str(tmp_path)]) == 130
    (tmp_path / "list.jsonl").write_text('{"id": "video_1.mp4", "path": "x", "reason": "no"}\n')
    tested, predictions = run_test(place, tmp_path, f"data.quarantine={tmp_path / 'list.jsonl'}")
    assert (tested["answered"], [failure.id for failure in predictions.failures]) == (7, ["empty.mp4", "video_1.mp4"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a readable list of bad videos ("),
        (b"\x00\xff\xfe", "not a readable list of bad videos ("),
        (b"video_1.mp4\n", "list.jsonl:1: expected a JSON object with id, path and reason"),
        (b'{"id": "a", "path": "a", "reason": "b"}\n{"id": "b", "pa', "list.jsonl:2: expected a JSON object"),
    ],
    ids=["missing", "binary", "plain list", "cut short"],
)
def test_a_bad_list_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "list.jsonl").write_bytes(content)
    checkpoint = str(place / "runs/tiny/checkpoints/best.pt")
    arguments = [f"data.quarantine={tmp_path / 'list.jsonl'}", "--output", str(tmp_path / "out")]
    assert main(["test", checkpoint, *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
