"""``gcvideo predict`` of many videos: lists, parts on many machines, and jobs that were killed."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from gcvideo.cli import main
from gcvideo.errors import DataError
from gcvideo.files import Journal
from gcvideo.predict.inputs import find_videos
from tests.processes import gcvideo as command_of_rank
from tests.processes import killed_after_rows, start_ranks, wait
from tests.tiny import tiny_checkpoint, tiny_videos

COUNT = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, the second of which cannot be read, and what one run says of them."""
    folder = tmp_path_factory.mktemp("many")
    tiny_videos(folder, COUNT)
    tiny_checkpoint(folder)
    (folder / "video_1.mp4").write_bytes(b"no video")
    assert main(command(folder, folder)) == 1
    return folder


def command(place: Path, out: Path, *options: str) -> list[str]:
    network = ["--checkpoint", str(place / "runs/tiny"), "--device", "cpu", "--workers", "0", "--top", "2"]
    files = [word for kind in ("csv", "json", "json-lines") for word in (f"--{kind}", str(out / f"labels.{kind}"))]
    return ["predict", str(place / "val.txt"), *network, *files, *options]


def assert_same_files(found: Path, expected: Path) -> None:
    """What one run writes, to rounding; and nothing else is left."""
    assert sorted(path.name for path in found.iterdir()) == ["labels.csv", "labels.json", "labels.json-lines"]
    lines, wanted = ([json.loads(x) for x in (f / "labels.json-lines").open()] for f in (found, expected))
    assert json.loads((found / "labels.json").read_text())["videos"] == lines
    for line, entry in zip(lines, wanted, strict=True):
        for prediction, other in zip(line.pop("predictions"), entry.pop("predictions"), strict=True):
            assert prediction == {**other, "score": pytest.approx(other["score"], rel=1e-5)}
        assert line == entry
    rows, expected_rows = (list(csv.reader((f / "labels.csv").open(newline=""))) for f in (found, expected))
    assert [row[:5] for row in rows] == [row[:5] for row in expected_rows]


def test_one_run_names_counts_and_keeps_the_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [json.loads(line) for line in (place / "labels.json-lines").open()]
    assert [Path(entry["video"]).name for entry in entries] == [f"video_{i}.mp4" for i in range(COUNT)]
    assert [entry["error"] is None for entry in entries] == [True, False, True, True, True]
    assert main(command(place, place, "--json-lines", "-")) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == entries
    assert err.count("warning: ") == 1
    assert not list(place.glob("*.partial*"))


def test_parts_together_are_the_whole(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("1/2", "2/2", "2/2"):
        assert main(command(place, tmp_path, "--part", part)) == 0
        assert "run the command once without --part" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv.partial", "labels.csv.partial.1"]
    assert main(command(place, tmp_path)) == 1
    assert_same_files(tmp_path, place)


@pytest.mark.slow
def test_ranks_together_are_the_whole(place: Path, tmp_path: Path) -> None:
    assert wait(start_ranks(command_of_rank, *command(place, tmp_path), processes=2)) == [0, 0]
    assert main(command(place, tmp_path)) == 1
    assert_same_files(tmp_path, place)


@pytest.mark.slow
def test_a_killed_job_is_resumed_each_video_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = command(place, out)
    killed_after_rows(2, functools.partial(main, words), tmp_path / "killed.log")
    assert [path.name for path in out.iterdir()] == ["labels.csv.partial"]
    for change in (["--crops", "1"], ["--top", "3"], ["--checkpoint", str(place / "runs/tiny")]):
        assert main([*words, *change]) == 2
        assert "labels.csv.partial: is of a job with another checkpoint" in capsys.readouterr().err
    with (out / "labels.csv.partial").open("a") as file:
        file.write('\n{"path": "/cut/sho')
    added: list[str] = []
    add = Journal.add

    def note(self: Journal, item: str, row: dict[str, Any]) -> None:
        added.append(Path(item).name)
        add(self, item, row)

    monkeypatch.setattr(Journal, "add", note)
    assert main(words) == 1
    assert added == ["video_3.mp4", "video_4.mp4"]
    assert_same_files(out, place)


def test_what_cannot_be_shared_is_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, network = str(place / "video_0.mp4"), ["--checkpoint", str(place / "runs/tiny")]
    shared = ["--part", "1/2", "--csv", str(tmp_path / "a.csv")]
    for options in (shared[:2], [*shared, "--maps", str(tmp_path)], [*shared, "--timeline", "--json-lines", "-"]):
        assert main(["predict", video, *network, *options]) == 2
        assert "part 1/2: parts keep their work beside" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_rows_without_a_file_are_named(place: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("video_0.mp4\nabsent.mp4\nvideo_1.mp4\nvideo_0.mp4\n")
    records, live, refused = find_videos([str(listed)], root=str(place))
    assert [Path(record.path).name for record in records] == ["video_0.mp4", "video_1.mp4"]
    assert not live
    assert [each[1:] for each in refused] == [(str(place / "absent.mp4"), "no such video file")]
    listed.write_text("path,label\nabsent.mp4,0\nabsent_too.mp4,0\n")
    with pytest.raises(DataError, match=r"list.txt:2: .*absent.mp4: no such video file.* \(the first of 2 rows"):
        find_videos([str(listed)], root=str(place))


def test_segments_of_a_list_are_labelled(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("path,start,end,label\nvideo_0.mp4,0.1,0.5,0\nvideo_0.mp4,0.5,0.9,1\n")
    words = ["predict", str(listed), "--root", str(place), "--checkpoint", str(place / "runs/tiny"), "--workers", "0"]
    assert main([*words, "--csv", str(tmp_path / "a.csv"), "--top", "1"]) == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    places = [(row["start"], row["end"], row["rank"]) for row in rows]
    assert places == [("0.100", "0.500", "1"), ("0.500", "0.900", "1")]
    assert rows[0]["score"] != rows[1]["score"]
    assert main([*words, "--timeline"]) == 2
    assert "a timeline is made of whole videos" in capsys.readouterr().err
