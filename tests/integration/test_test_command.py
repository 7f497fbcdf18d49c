"""``gcvideo test`` from the command line: the same answers however it is run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import nll_loss

from gcvideo.cli import main
from gcvideo.config import config_from_dict
from gcvideo.data.records import RecordTable
from gcvideo.eval import trained as testing
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.files import Journal, hash_file
from gcvideo.train.checkpoint import load_checkpoint, save_checkpoint
from tests.processes import gcvideo, start_ranks, wait, wait_for
from tests.tiny import CLASSES, tiny_checkpoint, tiny_videos


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("test_command")
    tiny_videos(folder)
    (folder / "broken.mp4").write_bytes(b"this is no video")
    with (folder / "val.txt").open("a") as file:
        file.write("broken.mp4 1\n")
    tiny_checkpoint(folder)
    return folder


def run(place: Path, output: Path, *arguments: str) -> tuple[dict[str, Any], Predictions]:
    checkpoint = place / "runs/tiny/checkpoints/best.pt"
    assert main(["test", str(checkpoint), *arguments, "--output", str(output)]) == 0
    return json.loads((output / "results.json").read_text()), Predictions.load(output / "predictions.npz")


@pytest.fixture(scope="module")
def reference(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Predictions]:
    return run(place, tmp_path_factory.mktemp("reference"))


def same(one: Predictions, other: Predictions) -> bool:
    return one.ids == other.ids and np.array_equal(one.scores, other.scores)


def test_results_say_what_was_tested(place: Path, reference: tuple[dict[str, Any], Predictions]) -> None:
    results, predictions = reference
    assert results["videos"] == 7
    assert results["answered"] == 6
    assert results["views_per_video"] == 6
    assert results["views"] == 36
    assert results["failed"] == 1
    assert results["failures"][0]["path"].endswith("broken.mp4")
    assert results["failures"][0]["reason"]
    assert results["protocol"] == "2 clips x 3 crops of 32"
    assert len(results["checkpoint"]["sha256"]) == 64
    assert len(results["fingerprint"]) == 64
    assert results["config"]["test"]["crops"] == 3
    right = predictions.scores.argmax(axis=1) == predictions.labels
    assert results["video"]["top1"] == pytest.approx(right.mean())
    assert results["video"]["top5"] == 1  # of four classes
    assert results["video_of_all"]["top1"] == pytest.approx(right.sum() / 7)
    assert np.trace(results["confusion"]) == right.sum()
    assert sum(row["videos"] for row in results["per_class"]) == np.sum(results["confusion"]) == 6
    truth = torch.from_numpy(predictions.scores).log()
    assert results["loss"] == pytest.approx(float(nll_loss(truth, torch.from_numpy(predictions.labels))), rel=1e-5)
    assert 0 <= results["calibration"]["expected_calibration_error"] <= 1
    assert predictions.classes == CLASSES
    assert len({tuple(row.argsort()) for row in predictions.scores}) > 1, "the videos must differ for tests to tell"


@pytest.mark.parametrize("overrides", [("data.workers=2",), ("test.views_per_batch=1",), ("test.views_per_batch=16",)])
def test_answers_do_not_depend_on_workers_or_batch_size(
    place: Path, tmp_path: Path, reference: tuple[dict[str, Any], Predictions], overrides: tuple[str, ...]
) -> None:
    results, predictions = run(place, tmp_path, *overrides)
    assert results["video"] == reference[0]["video"]
    assert results["clip"] == reference[0]["clip"]
    assert predictions.ids == reference[1].ids
    np.testing.assert_allclose(predictions.scores, reference[1].scores, atol=1e-6)


@pytest.mark.slow
def test_two_processes_count_every_video_once(
    place: Path, tmp_path: Path, reference: tuple[dict[str, Any], Predictions]
) -> None:
    checkpoint = str(place / "runs/tiny/checkpoints/best.pt")
    assert wait(start_ranks(gcvideo, "test", checkpoint, "--output", str(tmp_path), processes=2)) == [0, 0]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["processes"] == 2
    assert results["video"] == reference[0]["video"]
    assert results["failed"] == 1
    assert same(Predictions.load(tmp_path / "predictions.npz"), reference[1])


def noting(place: Path, output: Path, notes: Path, most: int) -> None:
    """``gcvideo test`` that notes the videos that it has tested, once they are on disk, and what it prints.

    After so many videos it waits to be killed.
    """
    rank, add, count = os.environ["RANK"], Journal.add, 0

    def add_and_note(journal: Journal, item: str, row: dict[str, Any], stamp: Any = None) -> None:
        nonlocal count
        add(journal, item, row, stamp)
        (notes / f"{row['id']} {rank}").touch()
        count += 1
        if count == most:
            time.sleep(600)

    Journal.add = add_and_note  # type: ignore[method-assign]
    with (notes / f"said {rank}").open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        gcvideo("test", str(place / "runs/tiny/checkpoints/best.pt"), "--output", str(output))


@pytest.mark.slow
@pytest.mark.parametrize("other", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_killed_in_the_middle_resume_where_they_stood(
    place: Path, tmp_path: Path, reference: tuple[dict[str, Any], Predictions], other: signal.Signals
) -> None:
    """One is killed and the other ended, as torchrun does then; or both are killed."""
    output, before, after = tmp_path / "out", tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()

    def tested(notes: Path) -> list[str]:
        return sorted(note.name.split()[0] for note in notes.glob("video_*"))

    running = start_ranks(noting, place, output, before, 2, processes=2)
    wait_for(lambda: len(tested(before)) == 4, running)
    running[1].kill()
    os.kill(running[0].pid or 0, other)
    assert wait(running) == [-other, -signal.SIGKILL]
    assert tested(before) == [f"video_{i}.mp4" for i in range(4)]
    assert not (output / "results.json").exists()

    assert wait(start_ranks(noting, place, output, after, 0, processes=2)) == [0, 0]
    assert "4 of 7 videos were finished" in (after / "said 0").read_text()
    assert tested(after) == ["video_4.mp4", "video_5.mp4"]  # no other
    results = json.loads((output / "results.json").read_text())
    incidental = ("processes", "seconds")
    assert {k: v for k, v in results.items() if k not in incidental} == {
        k: v for k, v in reference[0].items() if k not in incidental
    }
    assert results["processes"] == 2
    assert same(Predictions.load(output / "predictions.npz"), reference[1])
    assert not list(output.glob("*.partial*"))


def test_a_killed_test_goes_on_where_it_stood(
    place: Path,
    tmp_path: Path,
    reference: tuple[dict[str, Any], Predictions],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noted = []

    class Dying(Journal):
        def add(self, item: str, row: dict[str, Any], stamp: Any = None) -> None:
            super().add(item, row, stamp)
            noted.append(item)
            if len(noted) == 3:
                raise KeyboardInterrupt

    checkpoint = str(place / "runs/tiny/checkpoints/best.pt")
    with monkeypatch.context() as patch:
        patch.setattr(testing, "Journal", Dying)
        assert main(["test", checkpoint, "--output", str(tmp_path)]) == 130
    assert not (tmp_path / "results.json").exists()
    capsys.readouterr()
    _, predictions = run(place, tmp_path)
    assert "3 of 7 videos were finished" in capsys.readouterr().out
    assert same(predictions, reference[1])
    assert not list(tmp_path.glob("*.partial*"))


def test_another_test_does_not_take_up_the_finished_videos() -> None:
    """But one that only ensembles or decodes otherwise does."""

    def key(
        checkpoint: str = "one", precision: str = "fp32", ids: str = "ab", label: int = 0, **sections: Any
    ) -> dict[str, Any]:
        config = config_from_dict({"name": "a", **sections}, where="the test's config")
        records = RecordTable(ids=list(ids), paths=list(ids), labels=[label] * len(ids))
        return testing.journal_key(config, records, checkpoint, precision)

    others = [
        key(checkpoint="two"),
        key(precision="bf16"),
        key(ids="ba"),
        key(label=1),
        key(test={"clips": 3}),
        key(data={"stride": 3}),
    ]
    assert key() not in others
    harmless = {"test": {"ensemble": "max", "views_per_batch": 2}, "data": {"workers": 1, "quarantine": "list.jsonl"}}
    assert key(**harmless) == key()


def test_a_restart_forgets_the_finished_videos(place: Path, tmp_path: Path) -> None:
    path = place / "runs/tiny/checkpoints/best.pt"
    checkpoint = load_checkpoint(path)
    config = config_from_dict(checkpoint["config"], where="the test's checkpoint")
    records = testing.test_records(config, checkpoint["classes"])
    key = testing.journal_key(config, records, hash_file(path), "fp32")
    nonsense = np.ones(4, np.float32)
    kept = []
    for arguments in ([], ["--restart"]):
        journal = Journal(tmp_path / "predictions.npz.partial", key)
        journal.add("0", VideoScores(0, "video_0.mp4", 0, 6, 0, 0, nonsense, nonsense, nonsense).to_row())
        _, predictions = run(place, tmp_path, "train.precision=fp32", *arguments)
        kept.append(bool((predictions.scores[0] == 1).all()))
    assert kept == [True, False]


def test_the_fast_protocol_is_reported_apart(place: Path, tmp_path: Path) -> None:
    checkpoint = str(place / "runs/tiny/checkpoints/best.pt")
    assert main(["test", checkpoint, "test.whole_frame=true", "--output", str(tmp_path)]) == 0
    assert not (tmp_path / "results.json").exists()
    results = json.loads((tmp_path / "results_fast.json").read_text())
    assert results["protocol"] == "fast: 2 clips x the whole frame, short side 36"
    assert results["views_per_video"] == 2
    assert Predictions.load(tmp_path / "predictions_fast.npz").ids


def test_not_one_readable_video_is_no_success(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "val.txt").write_text(f"{place}/broken.mp4 1\n")
    checkpoint = str(place / "runs/tiny/checkpoints/best.pt")
    arguments = [f"data.val.annotation={tmp_path}/val.txt", "--html", str(tmp_path / "report.html")]
    assert main(["test", checkpoint, *arguments, "--output", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "0 of 1 videos" in out
    assert "broken.mp4: cannot be opened" in err
    assert json.loads((tmp_path / "results.json").read_text())["failed"] == 1
    assert "broken.mp4" in (tmp_path / "report.html").read_text()


def test_scores_that_are_no_numbers_are_refused_and_not_reported(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(place / "runs/tiny/checkpoints/best.pt")
    state["model"]["head.proj.weight"][0] = float("nan")
    spoilt = tmp_path / "spoilt.pt"
    save_checkpoint(spoilt, state)
    assert main(["test", str(spoilt), "--output", str(tmp_path / "out")]) == 2
    assert f"{spoilt}: scores of 6 videos are not finite" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "out").glob("*")] == ["predictions.npz.partial"]


def test_names_of_any_bytes_are_tested_and_reported(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [os.fsdecode(b"latin \xfc.mp4"), "<script>.mp4", "two\nlines.mp4", "\u202egpj.mp4", "x" * 200 + ".mp4"]
    for i, label in enumerate(CLASSES):
        (tmp_path / "set" / label).mkdir(parents=True)
        for name in names[i:]:
            shutil.copy(place / "video_0.mp4", tmp_path / "set" / label / name)
        shutil.copy(place / "broken.mp4", tmp_path / "set" / label / f"broken {names[0]}")
    arguments = [f"data.val.annotation={tmp_path}/set", "--html", str(tmp_path / "report.html")]
    results, predictions = run(place, tmp_path / "out", *arguments)
    assert (results["answered"], results["failed"]) == (14, len(CLASSES))
    assert set(predictions.ids) == {f"{c}/{name}" for i, c in enumerate(CLASSES) for name in names[i:]}
    page = (tmp_path / "report.html").read_text()
    assert "latin \\udcfc.mp4" in page
    assert "<script>.mp4" not in page
    out, err = capsys.readouterr()
    assert "the unreadable counted as wrong" in out
    assert err.count("warning: ") == len(CLASSES)


def test_a_run_folder_means_its_best_checkpoint(place: Path) -> None:
    assert main(["test", str(place / "runs/tiny"), "test.clips=1", "test.crops=1"]) == 0
    assert (place / "runs/tiny/results.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{best}", "test.clip=1"], "did you mean 'test.clips'"),
        (["{best}", "model.depth=50"], "comes with the checkpoint"),
        (["absent.pt"], "absent.pt: no such checkpoint"),
        (["{place}"], "neither checkpoints/best.pt nor checkpoints/last.pt"),
        ([], "give either a checkpoint, or --from-predictions"),
        (["{best}", "--ensemble", "max"], "--from-predictions"),
        (["{best}", "data.val.annotation=nowhere.txt"], "nowhere.txt"),
        (["{best}", "data.val.annotation=null"], "data.test.annotation"),
        (["{place}/val.txt"], "not a checkpoint"),
    ],
)
def test_a_wrong_command_gets_one_line_and_exit_code_2(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    names = {"best": str(place / "runs/tiny/checkpoints/best.pt"), "place": str(place)}
    assert main(["test", *(argument.format(**names) for argument in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_rescoring_needs_no_model(
    place: Path, tmp_path: Path, reference: tuple[dict[str, Any], Predictions], capsys: pytest.CaptureFixture[str]
) -> None:
    _, predictions = reference
    predictions.save(tmp_path / "a.npz")
    command = ["test", "--from-predictions", str(tmp_path / "a.npz"), "--json", str(tmp_path / "out.json")]
    assert main([*command, "--ensemble", "max", "--compare", str(tmp_path / "a.npz")]) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    right = predictions.averages["max"].argmax(axis=1) == predictions.labels
    assert results["video"]["top1"] == pytest.approx(right.mean())
    assert results["ensemble"] == "max"
    assert results["mcnemar"]["p_value"] == 1
    (tmp_path / "ids.txt").write_text("\n".join(predictions.ids[:2]) + "\n")
    assert main([*command, "--subset", str(tmp_path / "ids.txt")]) == 0
    chosen = json.loads((tmp_path / "out.json").read_text())
    assert (chosen["answered"], chosen["failed"]) == (2, 0)
    capsys.readouterr()
    (tmp_path / "ids.txt").write_text("never seen\n")
    assert main([*command, "--subset", str(tmp_path / "ids.txt")]) == 2
    assert "'never seen'" in capsys.readouterr().err
    assert np.trace(results["confusion"]) == right.sum()


def test_several_prediction_files_are_an_ensemble_of_networks(
    place: Path, tmp_path: Path, reference: tuple[dict[str, Any], Predictions], capsys: pytest.CaptureFixture[str]
) -> None:
    _, predictions = reference
    predictions.save(tmp_path / "a.npz")
    other = replace(predictions, averages={k: v[::-1] for k, v in predictions.averages.items()})
    other.select([3, 1, 0, 2, 5, 4]).save(tmp_path / "b.npz")  # videos are matched by id
    files = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]
    arguments = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    for weights, both in ([], predictions.scores + other.scores), (["1", "3"], predictions.scores + 3 * other.scores):
        options = ["--weights", *weights] if weights else []
        assert main(["test", "--from-predictions", *files, *arguments, *options]) == 0
        results = json.loads((tmp_path / "out.json").read_text())
        assert results["video"]["top1"] == pytest.approx((both.argmax(axis=1) == predictions.labels).mean())
    assert len(results["checkpoint"]["average_of"]) == 2
    for row, one in zip(results["networks"], (predictions, other), strict=True):
        assert row["video"] == one.accuracy()["video"]
    out = capsys.readouterr().out
    assert f"{files[1]} alone, weight 3" in out
    lacking, relabelled = predictions.select([True, False] * 3), replace(predictions, labels=predictions.labels[::-1])
    reclassed = replace(predictions, classes=CLASSES[::-1])
    for wrong, message in (
        (lacking, f"do not hold the same videos; {predictions.ids[1]!r} is in {files[0]} alone"),
        (relabelled, f"they label {predictions.ids[0]!r} differently"),
        (reclassed, "they have other classes"),
    ):
        wrong.save(tmp_path / "b.npz")
        assert main(["test", "--from-predictions", files[0], "--from-predictions", files[1]]) == 2
        assert message in capsys.readouterr().err
    assert main(["test", "--from-predictions", *files, "--weights", "1"]) == 2
    assert "--weights: give a number for each of the 2 files" in capsys.readouterr().err


def test_moved_data_are_given_by_the_keys_that_the_error_names(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(place / "runs/tiny/checkpoints/best.pt")
    for gone in (f"data.val.annotation={tmp_path}/gone.csv", f"data.val.root={tmp_path}/gone"):
        assert main(["test", checkpoint, gone, "--output", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "add data.val.annotation=FILE data.val.root=FOLDER" in error
        assert error.count("\n") == 1
