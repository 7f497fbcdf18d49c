"""``gcvideo fit`` as a whole, on tiny videos, and what it says where it cannot work."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from gcvideo.cli import main
from gcvideo.config import load_config
from gcvideo.data.annotations import load_records
from gcvideo.fit import run
from gcvideo.fit.look import find_twins, look
from gcvideo.fit.plan import Plan
from tests.videos import write_frames, write_video

TINY = [
    *("model.width=4", "model.weights=null", "data.frames=4", "data.crop=32", "data.workers=0", "device=cpu"),
    *("test.clips=1", "train.precision=fp32", "--minutes", "0.1"),
]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and bright, of three persons with two clips each, one as frames; one damaged, one copied."""
    folder = tmp_path_factory.mktemp("own") / "set"
    for place, name in enumerate(("dark", "bright")):
        (folder / name).mkdir(parents=True)
        for person in range(3):
            for clip in range(2):
                rng = np.random.default_rng(100 * place + 10 * person + clip)
                frames = rng.integers(30 + 90 * place, 90 + 90 * place, (12, 4, 6, 3), dtype=np.uint8)
                frames = frames.repeat(8, axis=1).repeat(8, axis=2)
                write = write_frames if (place, person, clip) == (1, 2, 1) else write_video
                write(folder / name / f"person{person}_clip{clip}{'.mp4' * (write is write_video)}", frames)
    video = folder / "dark" / "person0_clip0.mp4"
    (folder / "dark" / "person9_clip9.mp4").write_bytes(video.read_bytes()[:200])
    shutil.copy(video, folder / "dark" / "person8_clip8.mp4")
    return folder


def fit(*words: object) -> int:
    return main(["fit", *map(str, words)])


@pytest.mark.slow
def test_a_folder_becomes_a_tested_run(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(own, *TINY, "train.epochs=2", "--json", "out.json") == 0
    output = capsys.readouterr()
    assert "person9_clip9.mp4" in output.err
    assert "person8_clip8.mp4: the same as" in output.err
    assert "3 groups of videos from one source, by persons in file names" in output.out
    assert "use it: gcvideo predict NEW_VIDEOS --checkpoint runs/set --html page.html" in output.out.splitlines()[-1]
    run = Path("runs/set")
    for name in ("config.yaml", "results.json", "report.html", "fit.html", "fit.json", "checkpoints/last.pt"):
        assert (run / name).is_file(), name
    assert not (run / "trials").exists()
    results = json.loads(Path("out.json").read_text())
    assert results["verdict"]["videos"] == 4
    assert any(str(line) in output.out for line in results["says"])
    train, test = ({Path(r.path).name[:7] for r in load_records(run / f"{part}.parquet")} for part in ("train", "test"))
    assert (len(train), len(test), train & test) == (2, 1, set())
    assert json.loads((run / "results.json").read_text())["videos"] == 4
    page = (run / "fit.html").read_text()
    assert "person9_clip9" in page
    assert "What was chosen, and why" in page
    # The config repeats the training.
    config = load_config(run / "config.yaml")
    assert config.data.train.annotation == "runs/set/train.parquet"
    assert "# data.stride: " in (run / "config.yaml").read_text()
    assert main(["train", "runs/set/config.yaml", "name=again", "train.epochs=0.5", "optim.warmup_epochs=0"]) == 0
    # A second time needs another name. What was stopped before its verdict can be finished.
    assert fit(own, *TINY) == 2
    assert "already holds a run: give another --name, or replace it with --overwrite\n" in capsys.readouterr().err
    (run / "fit.json").unlink()
    assert fit(own, *TINY) == 2
    assert "--overwrite; gcvideo train runs/set/config.yaml --resume, and then" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("saves", [True, False])
def test_small_copies_are_made_where_they_save_time(
    saves: bool, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Originals and frames stay as they are, and the index of the training names the copies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "costs", lambda pairs: [{"clip_ms": 1000.0 * saves}, {"clip_ms": 1.0}])
    monkeypatch.setattr(run.Fit, "measure", lambda self, parts: 0.0)
    videos, plan = look(own, deadline=time.monotonic()), Plan("set", ["data.workers=0"])
    groups, until = np.zeros(len(videos.records)), time.monotonic() + 600
    work = run.Fit(plan=plan, videos=videos, groups=groups, seconds=600, until=until, clip_seconds=0.01)
    work.copy_videos({})
    work.write(np.arange(len(videos.records)), Path("runs/set/train.parquet"))
    paths = [Path(record.path) for record in load_records("runs/set/train.parquet")]
    assert sum(path.parts[-3] == "videos" for path in paths) == saves * (len(paths) - 1)
    assert [path.stem for path in paths] == [Path(record.path).stem for record in videos.records]
    assert Path("runs/set/videos").is_dir() == saves


def test_runs_of_others_are_left_alone(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/set_fold2/checkpoints").mkdir(parents=True)
    Path("runs/set_fold2/checkpoints/last.pt").touch()
    assert fit(own, "--folds", "3") == 2
    assert "runs/set_fold2 already holds a run: give another --name" in capsys.readouterr().err
    Path("runs/set").mkdir()
    with Path("runs/set/.fit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fit(own, "--dry-run") == 2
    assert "runs/set: another gcvideo fit is at work here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_trains_nothing(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(own, *TINY, "--dry-run") == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".fit.lock"]


@pytest.mark.slow
def test_folds_of_a_list_with_several_labels(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{path},{('0', '1', '0 1')[i % 3]}\n" for i, path in enumerate(sorted(own.rglob("person[012]*")))]
    Path("list.csv").write_text("path,labels\n" + "".join(rows))
    assert fit("list.csv", *TINY, "train.epochs=1", "--folds", "2", "--name", "both") == 0
    output = capsys.readouterr().out
    assert "model.multi_label=True" in output
    assert "2 folds: " in output
    assert "mean average precision" in output
    results = json.loads(Path("runs/both/fit.json").read_text())
    assert results["verdict"]["videos"] == 12
    assert len(load_records("runs/both/train.parquet")) == 12
    assert Path("runs/both_fold1/results.json").is_file()


def test_pictures_of_a_fixed_camera_are_no_copies(tmp_path: Path) -> None:
    """Near-duplicates are left out of training, but not where nearly all videos look alike."""
    frames = (
        np.random.default_rng(0).integers(0, 255, (12, 4, 6, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    )
    for i, place in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (tmp_path / place).mkdir(parents=True)
        for k in range(2):
            shown = frames.copy()
            shown[k, :4, :4] = 60 * i  # other files, the same pictures
            write_video(tmp_path / place / f"{k}.mp4", shown)
    videos = look(tmp_path, deadline=0.0)
    assert [videos.parts.count(part) for part in ("train", "test")] == [4, 4]
    assert "as of a fixed camera" in videos.notes[0]
    assert find_twins(videos) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder.mkdir(), "no class has videos"),
        (lambda folder: (folder / "jump").mkdir(parents=True), "no class has videos"),
        (lambda folder: None, "no such annotation"),
    ],
    ids=["empty", "no videos", "nothing"],
)
def test_what_cannot_be_used_is_one_line(
    make: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "set")  # type: ignore[operator]
    assert fit("set") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_single_class_is_refused(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dark").symlink_to(own / "dark")
    assert fit("set") == 2
    assert "only the class 'dark' has videos" in capsys.readouterr().err  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words", [["--folds", "1"], ["--folds", "3", "--seeds", "2"], ["--minutes", "0"], ["data.strid=3"]]
)
def test_mistaken_options_are_refused(words: list[str], own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(own, *words) == 2
    assert capsys.readouterr().err.startswith("gcvideo fit: ")
