"""Checkpoints: whole or not there, checked to the last byte, and free of code."""

from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from gcvideo.errors import CheckpointError
from gcvideo.train.checkpoint import CheckpointFolder, load_checkpoint, save_checkpoint
from tests.processes import run_apart, wait


def state(step: int = 1, value: float = 1.0) -> dict[str, Any]:
    return {"model": {"weight": torch.full((100,), value)}, "step": step, "classes": ["a", "b"]}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new" / "last.pt", state())
    loaded = load_checkpoint(tmp_path / "new" / "last.pt")
    assert torch.equal(loaded["model"]["weight"], torch.ones(100))
    assert loaded["classes"] == ["a", "b"]
    assert loaded["format"] == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.pt"]  # nothing temporary is left


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"last\.pt: "):
        load_checkpoint(path)


def test_a_single_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, state())
    content = bytearray(path.read_bytes())
    place = content.index(torch.ones(100).numpy().tobytes()) + 40
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil_was_here",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": Evil()}, "evil.pt")
    with pytest.raises(CheckpointError, match="unsafe to read"):
        load_checkpoint("evil.pt")
    assert not Path("evil_was_here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "not a gcvideo checkpoint"),
        ({"format": 2, "model": {}}, "has format 2, this gcvideo reads 1"),
    ],
)
def test_foreign_and_newer_files_are_told_apart(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "other.pt")


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(CheckpointError, match=r"old\.pt: not a checkpoint"):
        load_checkpoint(tmp_path / "old.pt")


def test_a_text_file_is_called_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("jump/1.mp4 0\n")
    with pytest.raises(CheckpointError, match=r"list\.txt: not a checkpoint, or cut short \(it is neither a zip"):
        load_checkpoint(tmp_path / "list.txt")


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in range(1, 5):
        folder.save(state(step), best=step == 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pt",
        "last.pt",
        "step_00000003.pt",
        "step_00000004.pt",
    ]
    assert load_checkpoint(folder.best)["step"] == 2
    assert load_checkpoint(folder.last)["step"] == 4


def test_a_training_goes_on_while_its_copy_is_written(tmp_path: Path) -> None:
    folder, trained = CheckpointFolder(tmp_path), state()
    folder.save_in_thread(trained)
    trained["model"]["weight"].zero_()
    folder.wait()
    assert torch.equal(load_checkpoint(folder.last)["model"]["weight"], torch.ones(100))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step_*"))


def test_a_run_that_counts_fewer_steps_than_before_keeps_its_new_checkpoints(tmp_path: Path) -> None:
    """As when resumed with a larger batch: step 16 of old is step 8 of now."""
    folder = CheckpointFolder(tmp_path, keep=2)
    for order, step in enumerate((14, 16, 10, 12)):
        folder.save(state(step))
        newest = tmp_path / f"step_{step:08d}.pt"
        assert newest in tmp_path.iterdir()
        os.utime(newest, (order, order))  # whatever the file system's clock can tell apart
        if step == 10:
            assert names(tmp_path) == ["step_00000010.pt", "step_00000016.pt"]
    assert names(tmp_path) == ["step_00000010.pt", "step_00000012.pt"]
    folder.last.unlink()
    assert (folder.load_latest() or {})["step"] == 12


def test_a_clock_that_was_set_back_costs_no_new_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state(1))
    os.utime(tmp_path / "step_00000001.pt", (2**32, 2**32))
    folder.save(state(2))
    assert names(tmp_path) == ["step_00000002.pt"]


def test_an_empty_folder_has_no_latest(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path).load_latest() is None


def test_a_damaged_last_one_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(state(1))
    folder.save(state(2))
    with folder.last.open("r+b") as file:  # in place, so under both of its names
        file.truncate(300)
    latest = folder.load_latest()
    assert latest is not None
    assert latest["step"] == 1
    warning = capsys.readouterr().err
    assert "last.pt: not a checkpoint, or cut short" in warning
    assert "trying the one before" in warning
    folder.save(state(3))  # the damaged one is out of the way: two sound ones are kept
    assert sorted(path.name for path in tmp_path.glob("step*")) == [
        "step_00000001.pt",
        "step_00000002.pt.damaged",
        "step_00000003.pt",
    ]


def test_the_best_one_is_the_last_resort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save({**state(1), "optimizer": {}}, best=True)
    folder.save({**state(2), "optimizer": {}})
    os.truncate(folder.last, 300)
    latest = folder.load_latest()
    assert latest is not None
    assert (latest["step"], latest["path"]) == (1, str(folder.best))
    warning = capsys.readouterr().err.splitlines()[-1]
    assert "best.pt is used, the best validation so far: later steps are repeated" in warning
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pt",
        "last.pt.damaged",
        "step_00000002.pt.damaged",
    ]


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1))
    folder.last.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the checkpoints can be read"):
        folder.load_latest()
    with pytest.raises(CheckpointError, match="none of the checkpoints can be read"):  # nor is it the second time
        folder.load_latest()


def test_a_crash_before_the_last_rename_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1))

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.save(state(2))
    monkeypatch.undo()
    assert (folder.load_latest() or {})["step"] == 1


def fill_the_disk(place: Path) -> None:
    folder = CheckpointFolder(place)
    folder.save({"model": {"weight": torch.ones(10)}, "step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        folder.save_in_thread({"model": {"weight": torch.ones(1_000_000)}, "step": 2})
        folder.wait()
    except OSError as error:
        print(error)


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint_and_one_line(tmp_path: Path) -> None:
    """A limit on the size of files makes writing fail half way, as a full disk does."""
    folder, output = tmp_path / "checkpoints", tmp_path / "output.txt"
    assert wait([run_apart(fill_the_disk, folder, output=output)]) == [0]
    assert output.read_text().count("\n") == 1
    assert "File too large" in output.read_text()
    assert load_checkpoint(folder / "last.pt")["step"] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "step_00000001.pt"]
