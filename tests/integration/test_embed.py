"""``gcvideo embed``, ``gcvideo search`` and ``Predictor.embed``: feature vectors, their files, and search in them."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import gcvideo
from gcvideo.cli import main
from gcvideo.config import TestConfig
from gcvideo.data.annotations import load_records
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ViewDataset, make_views
from gcvideo.data.records import RecordTable
from gcvideo.errors import CheckpointError, ConfigError, DataError, VideoError
from gcvideo.files import Journal
from gcvideo.predict import inputs
from gcvideo.predict.embedding import make_recipe
from gcvideo.predict.predictor import Predictor
from gcvideo.predict.vectors import VectorIndex, file_names
from gcvideo.prepare.synthetic import make_synthetic
from gcvideo.train.checkpoint import load_checkpoint, save_checkpoint
from gcvideo.video import open_video
from tests.browser import visit
from tests.processes import killed_after_rows
from tests.tiny import tiny_checkpoint, tiny_videos
from tests.videos import moving_frames, write_video


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    tiny_videos(folder, 5)
    tiny_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(checkpoint: str) -> Predictor:
    return gcvideo.load(checkpoint, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def index_file(place: Path, checkpoint: str) -> Path:
    embed(checkpoint, place / "val.txt", "--out", place / "vectors.parquet")
    return place / "vectors.parquet"


def embed(checkpoint: str, *arguments: object, expect: int = 0) -> None:
    assert main(["embed", *map(str, arguments), "--checkpoint", checkpoint, "--workers", "0"]) == expect


def views_of(predictor: Predictor, path: Path, test: TestConfig | None = None) -> torch.Tensor:
    """The views of a video as the network takes them, (V, 3, T, H, W)."""
    data = predictor.config.data
    views = ViewDataset(RecordTable.of_files([path]), data=data, test=test or predictor.config.test)[0]
    return normalize(make_views(views), mean=data.mean, std=data.std)


def test_a_vector_is_the_mean_over_all_views(predictor: Predictor, place: Path) -> None:
    path = place / "video_0.mp4"
    with torch.no_grad():
        maps = predictor.model.features(views_of(predictor, path)).numpy()  # (6, C, T', H', W')
    video, clips, views = (predictor.embed(path, pool=pool) for pool in ("video", "clip", "none"))
    np.testing.assert_allclose(video.vectors, maps.mean((0, 2, 3, 4))[None], rtol=1e-4)
    np.testing.assert_allclose(clips.vectors, maps.reshape(2, 3, *maps.shape[1:]).mean((1, 3, 4, 5)), rtol=1e-4)
    np.testing.assert_allclose(views.vectors, maps, rtol=1e-4, atol=1e-5)
    assert (video.starts[0], video.ends[0]) == (clips.starts[0], clips.ends[1])
    np.testing.assert_array_equal(views.starts, clips.starts.repeat(3))
    assert predictor.embed(path, layer="res3").vectors.shape == (1, 8)


def test_windows_are_videos_of_their_own(predictor: Predictor, tmp_path: Path) -> None:
    fps = 20
    path = write_video(tmp_path / "long.mp4", moving_frames(40, seed=3), fps=fps)
    with open_video(path) as video:
        decoded = video.frames(range(40))
    found = predictor.embed(path, window=0.5, step=0.25)
    np.testing.assert_allclose(found.starts, np.arange(7) / 4)
    np.testing.assert_allclose(found.ends, found.starts + 0.5)
    one_crop = TestConfig(**{**vars(predictor.config.test), "crops": 1, "clips": 2})
    own = predictor.embed(path, window=0.5, step=0.25, test=one_crop).vectors[2]
    np.testing.assert_allclose(own, predictor.embed(decoded[10:20], test=one_crop).vectors[0], rtol=1e-5)
    array = predictor.embed(decoded, fps=fps, window=0.5, step=0.25)
    for one, other in zip(found, array, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    clip = 8 / fps  # 4 frames, each second one
    np.testing.assert_allclose(np.diff(predictor.embed(path, step=clip).starts), clip)


@pytest.mark.slow
def test_long_videos_are_read_in_portions(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "long.mp4", moving_frames(50, seed=3), fps=20)
    whole = [predictor.embed(path, window=0.5, step=step) for step in (0.2, 0.5, 0.7)]
    monkeypatch.setattr(inputs, "SECONDS_AT_ONCE", 0.8)
    for step, expected in zip((0.2, 0.5, 0.7), whole, strict=True):
        for one, other in zip(predictor.embed([path, path], window=0.5, step=step)[1], expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(("workers", "batch"), [(0, 1), (2, 5), (0, 16)])
def test_a_vector_does_not_depend_on_its_company(
    predictor: Predictor, place: Path, workers: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = predictor.embed(place / "video_3.mp4")
    monkeypatch.setattr(predictor.config.test, "views_per_batch", batch)
    records = RecordTable.of_files([place / name for name in ("video_1.mp4", "absent.mp4", "video_3.mp4")])
    recipe = make_recipe(predictor.config)
    _, failure, found = predictor.embed_files(records, recipe, workers=workers)
    assert failure.reason == "does not exist"
    np.testing.assert_allclose(found.vectors, alone.vectors, rtol=1e-5)


def test_lists_and_other_kinds_of_videos(predictor: Predictor, place: Path) -> None:
    path = place / "video_0.mp4"
    expected = predictor.embed(path).vectors
    content = path.read_bytes()
    for found in (predictor.embed(content), *predictor.embed([content, path]), *predictor.embed((path,))):
        np.testing.assert_allclose(found.vectors, expected, rtol=1e-6)
    with pytest.raises(VideoError, match=r"absent.mp4: does not exist"):
        predictor.embed(place / "absent.mp4")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layer": "res6"}, "its layers are head, stem, res2, res3, res4, res5"),
        ({"pool": "mean"}, "'mean' is none of video, clip, none"),
        ({"pool": "video", "window": 1.0}, "leave out pool or the windows"),
        ({"window": 0.0}, "window: must be at least 1 ms"),
        ({"step": float("nan")}, "step: must be at least 1 ms"),
    ],
)
def test_options_that_cannot_be_honoured(predictor: Predictor, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        predictor.embed("any.mp4", **options)


@pytest.mark.slow
def test_compiled_and_bf16_networks_give_the_same_vectors(
    checkpoint: str, predictor: Predictor, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # Inductor takes a minute
    expected = predictor.embed(place / "video_0.mp4").vectors
    assert not any(module.training for module in predictor.model.modules())
    for precision, compiled, bound in (("fp32", True, 1e-5), ("bf16", False, 2e-2)):
        other = gcvideo.load(checkpoint, device="cpu", precision=precision, compile=compiled)
        found = other.embed(place / "video_0.mp4").vectors
        assert not any(module.training for module in other.model.modules())
        assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)


def test_vectors_that_are_no_numbers_are_refused(checkpoint: str, place: Path, tmp_path: Path) -> None:
    state = load_checkpoint(checkpoint)
    state["model"]["stem.conv.weight"][0] = float("nan")
    save_checkpoint(tmp_path / "broken.pt", state)
    with pytest.raises(CheckpointError, match=r"broken.pt: its vectors are not finite"):
        gcvideo.load(tmp_path / "broken.pt", device="cpu").embed(place / "video_0.mp4")


def test_a_parquet_file_holds_the_vectors_of_all(checkpoint: str, place: Path, index_file: Path) -> None:
    predictor = gcvideo.load(checkpoint, device="cpu")
    table = pq.read_table(index_file)
    assert table.schema.names == ["path", "start", "end", "vector"]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[32]"
    assert [Path(path).name for path in table["path"].to_pylist()] == [f"video_{i}.mp4" for i in range(5)]
    np.testing.assert_allclose(table["vector"][2].as_py(), predictor.embed(place / "video_2.mp4").vectors[0], rtol=1e-6)
    info = json.loads(table.schema.metadata[b"gcvideo"])
    assert info["checkpoint"] == predictor.describe()
    assert (info["layer"], info["pool"], info["views"]["clips"], info["views"]["stride"]) == ("head", "video", 2, 2)


def test_a_folder_gets_a_file_for_each_video(checkpoint: str, place: Path, tmp_path: Path) -> None:
    for name in ("a/1.mp4", "b/1.mp4", "b/2.mp4", "b/2.MOV"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "video_1.mp4", tmp_path / "set" / name)
    out = tmp_path / "out"
    embed(checkpoint, tmp_path / "set", "--out", out, "--pool", "none", "--layer", "res4", "--clips", 1, "--crops", 1)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        "a/1.npz", "b/1.npz", "b/2.mp4.npz", "b/2.npz"
    ]  # fmt: skip
    with np.load(out / "a/1.npz") as stored:
        assert stored["vectors"].shape == (1, 16, 4, 2, 2)
        assert str(stored["path"]) == str(tmp_path / "set/a/1.mp4")
        assert json.loads(str(stored["info"]))["layer"] == "res4"
        assert stored["starts"].shape == stored["ends"].shape == (1,)


def test_names_of_files_are_unique_and_inside_the_folder() -> None:
    names = file_names(["a.mp4", "../a.mp4", "../../a.mp4", "/x/b.mp4", "b/../c.webm", "d.v2"])
    assert names == ["a", "a.mp4", "a.mp4-2", "x/b", "c", "d.v2"]


def test_what_cannot_be_read_is_named_and_counted(
    checkpoint: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    names = [place / "video_0.mp4", tmp_path / "bad.mp4", tmp_path / "*.avi", "rtsp://me:secret@host/1"]
    embed(checkpoint, *names, "--out", tmp_path / "v.parquet", "--json", tmp_path / "a.json", "--step", 0.3, expect=1)
    out, err = capsys.readouterr()
    assert "vectors of 1 of 4 videos" in out
    assert "bad.mp4: " in err
    assert "no file matches" in err
    assert "host/1: is no file, but has no end" in err
    assert "secret" not in err
    assert len(json.loads((tmp_path / "a.json").read_text())["failures"]) == 3
    embed(checkpoint, *names[1:], "--out", tmp_path / "none.parquet", expect=2)
    assert not (tmp_path / "none.parquet").exists()
    embed(checkpoint, *names, "--out", tmp_path / "v.parquet", "--pool", "none", expect=2)
    embed(checkpoint, *names, "--out", tmp_path / "v.csv", expect=2)
    embed(checkpoint, *names, "--out", tmp_path / "v.npz", expect=2)
    assert capsys.readouterr().err.count("give a folder") == 3


def test_each_video_once_however_it_is_named(checkpoint: str, place: Path, tmp_path: Path) -> None:
    with_segment = tmp_path / "list.csv"
    with_segment.write_text(f"path,start,end,label\n{place}/video_0.mp4,0.1,0.5,0\n")
    embed(checkpoint, place, place / "val.txt", place / "video_2.mp4", with_segment, "--out", tmp_path / "v.parquet")
    index = VectorIndex.load(tmp_path / "v.parquet")
    assert len(index.paths) == 5 + 1
    assert index.rows.starts[-1] >= 0.1
    assert index.rows.ends[-1] <= 0.5 + 1e-9


@pytest.mark.slow
def test_parts_together_are_the_whole(
    checkpoint: str, place: Path, index_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "v.parquet"
    for number in (1, 2):
        embed(checkpoint, place / "val.txt", "--out", out, "--part", f"{number}/3")
    with pytest.raises(DataError, match=r"v.part-3-of-3.parquet: is missing"):
        VectorIndex.load(out)
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    embed(checkpoint, place / "val.txt", "--out", out)
    monkeypatch.undo()
    whole = VectorIndex.load(index_file)
    for name in (out, tmp_path, tmp_path / "v.part-*"):
        index = VectorIndex.load(name)
        order = np.argsort(index.paths)
        assert [index.paths[i] for i in order] == whole.paths
        np.testing.assert_allclose(index.rows.vectors[order], whole.rows.vectors, rtol=1e-5)


def test_a_part_without_videos_is_complete(checkpoint: str, place: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        embed(checkpoint, place / "video_0.mp4", "--out", tmp_path / "v.parquet", "--part", f"{number}/2")
    assert len(VectorIndex.load(tmp_path / "v.parquet").paths) == 1


@pytest.mark.slow
def test_parts_that_were_made_differently_are_refused(checkpoint: str, place: Path, tmp_path: Path) -> None:
    embed(checkpoint, place / "video_0.mp4", "--out", tmp_path / "a.parquet")
    embed(checkpoint, place / "video_1.mp4", "--out", tmp_path / "b.parquet", "--layer", "res5", "--crops", 1)
    with pytest.raises(DataError, match="made with other checkpoints, layers or views"):
        VectorIndex.load(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"b.parquet: not a Parquet file of gcvideo embed"):
        VectorIndex.load(tmp_path)
    with pytest.raises(DataError, match="no such Parquet file"):
        VectorIndex.load(tmp_path / "absent.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("out", ["v.parquet", "folder"])
def test_a_killed_run_is_resumed(
    checkpoint: str, place: Path, index_file: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [str(place / "val.txt"), "--checkpoint", checkpoint, "--workers", "0"]
    command = ["embed", *videos, "--out", str(tmp_path / out)]
    killed_after_rows(2, functools.partial(main, command), tmp_path / "killed.log")
    assert not (tmp_path / "v.parquet").exists()
    added: list[str] = []
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda self, item, row: (added.append(item), add(self, item, row)))
    assert main(command) == 0
    assert added == ["video_2", "video_3", "video_4"], "each video is embedded once"
    whole = VectorIndex.load(index_file)
    if out == "folder":
        stored = np.stack([np.load(tmp_path / f"folder/video_{i}.npz")["vectors"][0] for i in range(5)])
    else:
        stored = VectorIndex.load(tmp_path / out).rows.vectors
    np.testing.assert_allclose(stored, whole.rows.vectors, rtol=1e-5)
    assert not list(tmp_path.rglob("*.partial"))


def search(*arguments: object, expect: int = 0) -> None:
    assert main(["search", *map(str, arguments)]) == expect


def test_search_finds_what_is_alike(place: Path, index_file: Path, tmp_path: Path) -> None:
    """A copy of a video of the index is nearest to it; a video of the index does not find itself."""
    shutil.copy(place / "video_1.mp4", tmp_path / "copy.mp4")
    search(tmp_path / "copy.mp4", "--index", index_file, "--device", "cpu", "--top", 2, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())["found"]
    assert len(found) == 2
    assert found[0]["path"] == str(place / "video_1.mp4")
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-5)
    search(os.path.relpath(place / "video_1.mp4"), "--index", index_file, "--json", tmp_path / "b.json")
    own = json.loads((tmp_path / "b.json").read_text())["found"]
    assert own[0] == pytest.approx(found[1], abs=1e-5)
    assert [row["path"] for row in own] != [str(place / "video_1.mp4")]
    vectors = VectorIndex.load(index_file).rows.vectors.astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(
        sorted(unit[[0, 2, 3, 4]] @ unit[1])[::-1], [row["similarity"] for row in own], atol=1e-6
    )


@pytest.mark.slow
def test_search_for_a_moment(checkpoint: str, place: Path, tmp_path: Path) -> None:
    frames = [moving_frames(16, seed=seed) for seed in (5, 6)]
    write_video(tmp_path / "one.mp4", np.concatenate(frames), fps=20)
    write_video(tmp_path / "two.mp4", np.concatenate(frames[::-1]), fps=20)
    index = tmp_path / "v.parquet"
    embed(checkpoint, tmp_path / "one.mp4", tmp_path / "two.mp4", "--out", index, "--window", 0.8)
    for second, expected in ((0.1, 0.8), (1.2, 0.0)):
        search(tmp_path / "one.mp4", "--index", index, "--at", second, "--json", tmp_path / "a.json")
        best = json.loads((tmp_path / "a.json").read_text())["found"][0]
        assert (Path(best["path"]).name, best["start"]) == ("two.mp4", pytest.approx(expected))
    search(tmp_path / "one.mp4", "--index", index, "--at", 9, expect=2)


@pytest.mark.slow
def test_a_query_needs_the_checkpoint_of_the_index(
    place: Path, index_file: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(place / "video_1.mp4", tmp_path / "query.mp4")
    state = load_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "other.pt", {**state, "step": 11})
    search(tmp_path / "query.mp4", "--index", index_file, "--checkpoint", tmp_path / "other.pt", expect=2)
    assert "other.pt: is not the checkpoint that made" in capsys.readouterr().err
    search(tmp_path / "absent.mp4", "--index", index_file, expect=2)
    assert "absent.mp4: does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_of_a_search(place: Path, index_file: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<script>document.title='owned'<" / "x.mp4"
    evil.parent.mkdir()
    shutil.copy(place / "video_1.mp4", evil)
    page = tmp_path / "page.html"
    search(evil, "--index", index_file, "--top", 3, "--html", page)
    content = page.read_text()
    assert "<script>document" not in content
    assert content.count('<section class="card"') == 4
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', content)) == 4 * 4
    assert "1.000" in content
    document, console = visit(page, tmp_path / "profile")
    assert "<title>Similar videos</title>" in document
    assert not console


@pytest.mark.slow
def test_the_nearest_neighbours_share_the_class(tmp_path: Path) -> None:
    """On videos that the network has not seen; chance is an eighth.

    ``tests/data/synthetic_gc.pt`` is ``configs/demo/synthetic_gc.yaml`` with ``model.width=4 model.dropout=0``, trained
    on ``gcvideo prepare synthetic`` (seed 0) to 72.5 % top-1; its weights are kept in half precision.
    """
    _, annotation = make_synthetic(tmp_path, train=8, val=40, seed=1)
    records = load_records(annotation, root=tmp_path / "val")
    classes = {record.path: record.label for record in records}
    trained = str(Path(__file__).parents[1] / "data/synthetic_gc.pt")
    out = tmp_path / "v.parquet"
    embed(trained, annotation, "--root", tmp_path / "val", "--out", out, "--crops", 1, "--device", "cpu")
    index = VectorIndex.load(out)
    nearest = [index.nearest(vector, top=1, leave_out=[i])[0]["path"] for i, vector in enumerate(index.rows.vectors)]
    shared = np.mean([classes[own] == classes[other] for own, other in zip(index.paths, nearest, strict=True)])
    assert len(nearest) == 40
    assert shared > 0.5
