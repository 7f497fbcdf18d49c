"""``gcvideo analyze`` from the command line, on tiny videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gcvideo.analysis import attention
from gcvideo.cli import main
from gcvideo.layers.non_local import INSTANTIATIONS
from tests.tiny import tiny_checkpoint, tiny_videos


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyze")
    tiny_videos(folder, count=4)
    (folder / "broken.mp4").write_bytes(b"this is no video")
    with (folder / "val.txt").open("a") as file:
        file.write("broken.mp4 1\n")
    return folder


def checkpoint(place: Path, kind: str, **context: Any) -> str:
    name = "_".join([kind, *map(str, context.values())])
    path = place / f"{name}.pt"
    if not path.exists():
        context = {"kind": kind, "stages": {"res2": [1], "res3": "all"}, **context}
        tiny_checkpoint(place, model={"context": context}).rename(path)
    return str(path)


def analyze(place: Path, *arguments: str) -> dict[str, Any]:
    out = place / "out.json"
    assert main(["analyze", *arguments, "--json", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_attention_of_every_instantiation(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(attention, "MOST_PAIRS", 500)
    path = checkpoint(place, "nl", instantiation=kind)
    found = analyze(place, "attention", path, "data.stride=1", "test.crop=36")
    shown = capsys.readouterr().out
    assert [row["block"] for row in found["blocks"]] == ["res2.1.context", "res3.0.context", "res3.1.context"]
    assert found["protocol"] == "1 clips x 1 crops of 36"
    assert found["config"]["data"]["stride"] == 1
    assert len(found["clips"]) == 4
    assert [failure["id"] for failure in found["failures"]] == ["broken.mp4"]
    softmax = kind in ("gaussian", "embedded_gaussian")
    for row in found["blocks"]:
        inputs = [clip["blocks"][row["block"]]["input"] for clip in found["clips"]]
        assert row["input"] == pytest.approx(np.mean(inputs))
        assert 0 < row["input"] < 1
        assert 0 <= row["output"] < 1
        assert (row["jsd"] is not None) == softmax
    assert found["blocks"][0]["jsd_sampled"] == (True if softmax else None)
    assert found["average"]["attention"] == pytest.approx(np.mean([row["attention"] for row in found["blocks"]]))
    assert "from memory and not verified" in shown
    assert found["paper_from_memory_unverified"][kind]["output"] < 0.1
    assert ("500 pairs drawn" in shown) == softmax


def test_the_same_videos_are_drawn_every_time(place: Path) -> None:
    path = checkpoint(place, "nl")
    one, other = (
        analyze(place, "attention", path, "--videos", "2", f"data.test.annotation={place / 'val.txt'}") for _ in "ab"
    )
    assert one["videos"] == 2
    assert one["clips"] == other["clips"]


def test_a_context_block_has_one_map_and_no_distances(place: Path) -> None:
    gc = analyze(place, "attention", checkpoint(place, "gc"))
    assert {row["kind"] for row in gc["blocks"]} == {"shared attention"}
    assert gc["average"] is None


def test_simplify_reports_what_sharing_the_maps_costs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = analyze(place, "simplify", checkpoint(place, "nl"), "--each", "test.crops=1")
    assert [len(row["blocks"]) for row in found["simplified"]] == [3, 1, 1, 1]
    for row in found["simplified"]:
        assert row["videos"] == row["mcnemar"]["videos"] == 4
        assert row["top1_lost"] == pytest.approx(found["original"]["video"]["top1"] - row["accuracy"]["video"]["top1"])
    assert found["protocol"] == "2 clips x 1 crops of 32"
    assert "McNemar p" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "{gc}", "--videos", "0"], "--videos: must be at least 1, not 0"),
        (["attention", "{gc}", "--json", "{gc}/a.json"], "cannot be written"),
        (["attention", "{gc}", "test.crip=3"], "crip"),
        (["attention", "{gc}", "config.yaml"], "write key=value"),
        (["attention", "{none}"], "neither non-local nor context blocks"),
        (["attention", "{gc}", "data.test.annotation=absent.txt"], "absent.txt"),
        (["attention", "{gc}", "data.test.annotation={bad}"], "no video can be read"),
        (["simplify", "{gc}"], "no non-local block"),
        (["simplify", "{sets}"], "a network of several labels a video has not"),
        (["simplify", "{place}/absent.pt"], "no such checkpoint"),
    ],
)
def test_a_wrong_command_gets_one_line_and_exit_code_2(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (place / "bad.txt").write_text("broken.mp4 1\n")
    several = {"context": {"kind": "nl", "stages": {"res3": "all"}}, "multi_label": True}
    tiny_checkpoint(place, model=several).rename(place / "sets.pt")
    names = {
        "gc": checkpoint(place, "gc"),
        "none": checkpoint(place, "none", stages={}),
        "sets": str(place / "sets.pt"),
        "bad": str(place / "bad.txt"),
        "place": str(place),
    }
    assert main(["analyze", *(argument.format(**names) for argument in arguments)]) == 2
    error = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("gcvideo")]
    assert len(error) == 1
    assert message in error[0]
