"""Folders of Hugging Face's ``datasets``: metadata.csv, metadata.jsonl, class folders, and folders of splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from gcvideo.data.annotations import load_records
from gcvideo.errors import DataError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def rows(root: Path, **options: object) -> list[tuple[str, int]]:
    return [(record.id, record.label) for record in load_records(root, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata(tmp_path, name):
    make(tmp_path, "b.mp4", "in/a, 1.mp4", "c.mp4")
    table = 'file_name,caption,label\nb.mp4,"one, two",run\n"in/a, 1.mp4",,jump\nc.mp4,x,\n'
    lines = """{"file_name": "b.mp4", "caption": "one \\"two\\"", "label": "run"}
{"file_name": "in/a, 1.mp4", "label": "jump"}
{"file_name": "c.mp4", "label": null}
"""
    (tmp_path / name).write_text(table if name == "metadata.csv" else lines)
    expected = [("b.mp4", 1), ("in/a, 1.mp4", 0), ("c.mp4", -1)]
    assert rows(tmp_path) == rows(tmp_path / name) == expected
    assert load_records(tmp_path).classes == ("jump", "run")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.mp4", "label": 0}\n{"file_name": "c.mp4", "label": 1}\n')
    assert rows(tmp_path / "metadata.jsonl") == [("b.mp4", 0), ("c.mp4", 1)]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.mp4"}\n\n{"file_name": "c.mp4", "label": 1}\n')
    assert rows(tmp_path / "metadata.jsonl") == [("b.mp4", -1), ("c.mp4", 1)]  # the first row lacks a label
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "gone.mp4", "label": 0}\n{"file_name": "b.mp4", "label": 1}'
    )
    with pytest.raises(DataError, match=r"metadata.jsonl:1: .*gone.mp4: no such video file"):
        load_records(tmp_path / "metadata.jsonl")
    lists = '{"file_name": "b.mp4", "labels": ["run", "jump"]}\n{"file_name": "c.mp4", "labels": ["sit"]}\n'
    (tmp_path / "metadata.jsonl").write_text(lists)
    table = load_records(tmp_path / "metadata.jsonl")
    assert table.sets is not None
    assert (table.classes, table.sets.to_pylist()) == (("jump", "run", "sit"), [[0, 1], [2]])
    (tmp_path / "metadata.jsonl").write_text("{")
    for path in (tmp_path, tmp_path / "metadata.jsonl"):
        (tmp_path / "metadata.csv").unlink(missing_ok=True)
        with pytest.raises(DataError, match=r"metadata.jsonl:1: expected a JSON object, found '{'"):
            load_records(path)


def test_folders_of_splits(tmp_path):
    names = ["train/cat/1.mp4", "train/dog/2.mp4", "validation/dog/3.mp4", "test/cat/4.mp4", ".cache/x/5.mp4"]
    make(tmp_path, *names)
    assert rows(tmp_path, subset="train") == [("cat/1.mp4", 0), ("dog/2.mp4", 1)]
    assert rows(tmp_path, subset="val", classes=["cat", "dog"]) == [("dog/3.mp4", 1)]
    assert rows(tmp_path, subset="test") == [("cat/4.mp4", 0)]
    with pytest.raises(DataError, match="holds folders of splits"):
        load_records(tmp_path)
    (tmp_path / "train/metadata.csv").write_text("file_name,label\ncat/1.mp4,animal\ndog/2.mp4,pet\n")
    assert load_records(tmp_path, subset="train").classes == ("animal", "pet")
    (tmp_path / "train/metadata.csv").write_text("file_name,caption\ncat/1.mp4,animal\n")  # no labels in it
    assert load_records(tmp_path, subset="train").classes == ("cat", "dog")
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/cat/1.mp4,x\nvalidation/dog/3.mp4,y\n")
    assert rows(tmp_path, subset="train") == [("train/cat/1.mp4", 0)]
    assert rows(tmp_path, subset="val", classes=["x", "y"]) == [("validation/dog/3.mp4", 1)]
