"""Annotations as people have them: each is read in the one way that it can be meant, or refused with the reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gcvideo.data.annotations import load_classes, load_records
from gcvideo.errors import DataError
from tests.unit.data.test_annotations import make_files, write

VIDEOS = ("jump/1.mp4", "run/2.mp4", "walk/3.mp4", "b.mp4", "a b.mp4", "e\u0301/e\u0301.mp4")
CLIP = "AAAAAAAAAAA_000001_000011.mp4"


def rows(place: Path, annotation: Path, **options: Any) -> list[tuple[str, Any]]:
    """Path and label of each record; the name of the label where names are known."""
    table = load_records(annotation, **options)
    names = dict(enumerate(table.classes or ()))
    return [(os.path.relpath(record.path, place), names.get(record.label, record.label)) for record in table]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_files(tmp_path, *VIDEOS, CLIP)


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        (["\tpath\tlabel", "0\tjump/1.mp4\t2", "1\trun/2.mp4\t5"], [2, 5]),  # pandas: tabs, with its index
        (["path\tlabel\tnote", "jump/1.mp4\t2\t", "run/2.mp4\t5\tx"], [2, 5]),  # empty cells at the end
        (["path;label;;", "jump/1.mp4;2;;", "run/2.mp4;5;;"], [2, 5]),
        (["path,label", "jump/1.mp4,0.0", "run/2.mp4,"], [0, -1]),
        (["jump/1.mp4 2", "\ufeffrun/2.mp4 5"], [2, 5]),  # joined by cat
        (['jump/1.mp4, "arm, wrestling"', "run/2.mp4, arm wrestling"], ["arm, wrestling", "arm wrestling"]),
        (['jump/1.mp4,say "hi"', 'run/2.mp4,say "hi'], ['say "hi"', 'say "hi']),
        (['"jump/1.mp4 2"', '"run/2.mp4 5"'], [2, 5]),
        (["path,class", "jump/1.mp4,1.5", "run/2.mp4,2.5"], ["1.5", "2.5"]),
        (["path,label,class_id", "jump/1.mp4,jump,7", "run/2.mp4,run,3"], ["jump", "run"]),
        (["path,start,end,label,start_frame", "jump/1.mp4,1,2,0,30", "run/2.mp4,2,3,1,60"], [0, 1]),
        (["path,startTime,endTime,label", "jump/1.mp4,1,2,0", "run/2.mp4,2,3,1"], [0, 1]),
        (["./jump/1.mp4 2", "run//2.mp4 5"], [2, 5]),
        (["sep=;", "path;label", "jump/1.mp4;2", "run/2.mp4;5"], [2, 5]),  # Excel
        (["sep=,", "jump/1.mp4,2", "run/2.mp4,5"], [2, 5]),
    ],
)
def test_messy_lists_are_read(root, lines, labels):
    assert rows(root, write(root / "list", *lines)) == list(zip(("jump/1.mp4", "run/2.mp4"), labels, strict=True))


def test_names_of_files_are_found_in_either_unicode_form(root):
    assert rows(root, write(root / "list", "\u00e9/\u00e9.mp4 2")) == [("e\u0301/e\u0301.mp4", 2)]
    make_files(root, "\u00e9/\u00e9.mp4")  # both exist: each is its own file
    lines = ["\u00e9/\u00e9.mp4 2", "e\u0301/e\u0301.mp4 1"]
    assert [label for _, label in rows(root, write(root / "list", *lines))] == [2, 1]


def test_a_path_in_another_spelling_has_the_same_id(root):
    table = load_records(write(root / "list", "./jump/1.mp4 2", "jump//1.mp4 2"))
    assert [record.id for record in table] == ["jump/1.mp4", "jump/1.mp4"]


NO_NAME = "is neither a whole number nor one name; leave the cell empty"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        # one file under several names
        (["jump/1.mp4 0", "./jump/1.mp4 1"], "list:1: jump/1.mp4 has another label than in line 2"),
        (["jump/1.mp4 0", "jump//1.mp4 1"], "list:1: jump/1.mp4 has another label than in line 2"),
        (["jump/1.mp4 0", "run/../jump/1.mp4 1"], "list:1: jump/1.mp4 has another label than in line 2"),
        (["jump/1.mp4 0", "{root}/jump/1.mp4 1"], "list:1: jump/1.mp4 has another label than in line 2"),
        # columns
        (["path,label,label", "jump/1.mp4,0,1"], "list:1: several columns mean 'label': 'path,label,label'; leave"),
        (["path,label,label_2", "jump/1.mp4,0,1"], "list:1: several columns mean 'label'"),
        (["path,label,set", "jump/1.mp4,0,test", "run/2.mp4,1,val"], "has rows of test, val, but train is asked for"),
        (["file,path,label", "jump/1.mp4,run/2.mp4,0"], "list:1: several columns mean 'path'"),
        (["path,label,start_frame,end_frame", "jump/1.mp4,0,1,9"], "list:1: 'start_frame' is no known column; call"),
        (["path,label,begin,stop", "jump/1.mp4,0,1,9"], "list:1: 'begin' is no known column; call times in seconds"),
        (["path,t0,t1,label", "jump/1.mp4,0,1,0"], "list:1: 't0' is no known column"),
        (["path,startFrame,endFrame,label", "jump/1.mp4,0,1,0"], "list:1: 'startframe' is no known column"),
        (["path,start,label", "jump/1.mp4,1,0"], "list:2: expected `path,start,label`"),
        (["path,start,end,label", "jump/1.mp4,2,1,0"], "other rows .seconds, start before end., found"),
        (
            ["jump/1.mp4,0,", "run/2.mp4,1,"],
            "list:1: expected `path,frames,label` .*, found 'jump/1.mp4,0,'.*header line",
        ),
        (["label path", "0 a b.mp4", "0 a b.mp4"], "list:2: expected `label path` as in the other rows, found '0 a"),
        (["Datei;Klasse", "jump/1.mp4;jump"], "list:1: .*Datei: no such video .* need a header line: path,label or"),
        (["path,label", "jump/1.mp4,0", "path,label", "run/2.mp4,1"], "list:3: .*path: no such video file"),
        (["jump/1.mp4 0", "run/2.mp4,1"], "list:2: expected `path label` as in the other rows"),
        (["path,label,split", "jump/1.mp4,0,train", "run/2.mp4,1,", "b.mp4,2,val"], "has rows of no split, train, val"),
        # labels
        (["path,label", "jump/1.mp4,jump", "run/2.mp4,nan"], f"list:3: label 'nan' {NO_NAME}"),
        (["path,class", "jump/1.mp4,jump", "run/2.mp4,nan"], f"list:3: label 'nan' {NO_NAME}"),
        (["path,label", "jump/1.mp4,0.5", "run/2.mp4,1.5"], f"list:2: label '0.5' {NO_NAME}"),
        (["jump/1.mp4 1.", "run/2.mp4 0."], f"list:1: label '1.' {NO_NAME}"),
        (["jump/1.mp4 +1", "run/2.mp4 +0"], rf"list:1: label '\+1' {NO_NAME}"),
        (["jump/1.mp4 1e0", "run/2.mp4 0e0"], f"list:1: label '1e0' {NO_NAME}"),
        (["jump/1.mp4 0 0.9", "run/2.mp4 1 0.8"], f"list:1: label '0.9' {NO_NAME}"),
        (["path,label", "jump/1.mp4,[1 0 0]", "run/2.mp4,[0 1 0]"], rf"list:2: label '\[1 0 0\]' {NO_NAME}"),
        (["path,label", 'jump/1.mp4,"[0, 2]"', 'run/2.mp4,"[1]"'], rf"list:2: label '\[0, 2\]' {NO_NAME}"),
        (["path,label", "jump/1.mp4,jump|run", "run/2.mp4,run"], rf"list:2: label 'jump\|run' {NO_NAME}"),
        (["jump/1.mp4 99999999999", "run/2.mp4 1"], "list:1: label '99999999999' is outside 0, 1, 2"),
        (["jump/1.mp4 2147483648", "run/2.mp4 1"], "list:1: label '2147483648' is outside 0, 1, 2"),
    ],
)
def test_messy_lists_are_refused_with_the_reason(root, lines, message):
    with pytest.raises(DataError, match=message) as caught:
        load_records(write(root / "list", *(line.format(root=root) for line in lines)), subset="train")
    assert "\n" not in str(caught.value)


def test_known_classes_may_have_odd_names(root):
    annotation = write(root / "list", "jump/1.mp4,nan", "run/2.mp4,1.5")
    assert rows(root, annotation, classes=["1.5", "nan"]) == [("jump/1.mp4", "nan"), ("run/2.mp4", "1.5")]


# --- Kinetics ---


@pytest.mark.parametrize(
    ("header", "label", "want"),
    [("class", "jump", "jump"), ("class_name", "jump", "jump"), ("label_id", "3", 3), ("label", "jump", "jump")],
)
def test_kinetics_labels_in_a_column_of_any_known_name(root, header, label, want):
    annotation = write(root / "k.csv", f"youtube_id,{header},time_start,time_end", f"AAAAAAAAAAA,{label},1,11")
    assert rows(root, annotation) == [(CLIP, want)]


def test_kinetics_columns_that_contradict(root):
    annotation = write(root / "k.csv", "label,youtube_id,time_start,time_end,label", "a,AAAAAAAAAAA,1,11,b")
    with pytest.raises(DataError, match=r"k.csv:1: several columns mean 'label'"):
        load_records(annotation)


# --- class folders ---


@pytest.mark.parametrize("names", [("train", "val"), ("training", "Testing", "validation"), ("train",)])
def test_folders_of_splits_are_no_classes(tmp_path, names):
    make_files(tmp_path, *(f"{name}/{label}/1.mp4" for name in names for label in ("jump", "run")))
    with pytest.raises(DataError, match=rf"holds folders of splits \(.*\); give {tmp_path}/\w+$"):
        load_records(tmp_path)
    make_files(tmp_path, "bus/1.mp4")  # train is a vehicle, too
    assert "bus" in (load_records(tmp_path).classes or ())


# --- indexes ---


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0.5, 1.7]}, "no readable annotation .*Float value 0.5.* truncated converting to int32"),
        ({"label": ["jump", "run"]}, "Failed to parse string: 'run' as a scalar of type int32"),
        (
            {"label": pa.array(["jump", "run"]).dictionary_encode()},
            "Failed to parse string: 'run' as a scalar of type int32",
        ),
        ({"label": pa.array([1, None])}, "Casting field .label. with null values"),
        ({"label": [2**40, 0]}, "Integer value 1099511627776 not in range"),
        ({"path": pa.array(["jump/1.mp4", None])}, "Casting field .path. with null values"),
        ({"path": ["jump/1.mp4", "jump/1.mp4"]}, "one video has two labels"),
        ({"path": ["jump/1.mp4"] * 2, "label": [[0, 1], [0, 2]]}, "one video has two labels"),
    ],
)
def test_indexes_of_others_are_refused_with_the_column(root, columns, message):
    table = {"id": ["a", "b"], "path": ["jump/1.mp4", "run/2.mp4"], "label": [0, 1], **columns}
    pq.write_table(pa.table(table), root / "a.parquet")
    with pytest.raises(DataError, match=message):
        load_records(root / "a.parquet")


def test_sets_of_labels_have_no_order_in_an_index(root):
    table = {"id": ["a", "b"], "path": ["b.mp4"] * 2, "label": [[0, 1], [1, 0]]}
    pq.write_table(pa.table(table), root / "a.parquet")
    assert len(load_records(root / "a.parquet")) == 2


def test_segments_of_one_video_may_have_several_labels_in_an_index(root):
    table = {
        "id": ["a", "b", "c"],
        "path": ["b.mp4"] * 3,
        "label": [0, 1, -1],
        "start": [0.0, 5, 5],
        "end": [5.0, 9, 9],
    }
    pq.write_table(pa.table(table), root / "a.parquet")
    assert load_records(root / "a.parquet").labels.tolist() == [0, 1, -1]


# --- official lists ---


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.avi 3", "lists:1: wave_test_split1.txt: expected a video and 0, 1 or 2, found 'a.avi 3'"),
        ("a.avi", "lists:1: wave_test_split1.txt: expected a video and 0, 1 or 2, found 'a.avi'"),
        ("a.avi\t1\t", None),
        ("a.avi 1\r", None),
    ],
)
def test_hmdb51_rows(tmp_path, row, message):
    make_files(tmp_path / "videos", "wave/a.avi", "run/b.avi")
    lists = tmp_path / "lists"
    lists.mkdir()
    write(lists / "wave_test_split1.txt", row)
    write(lists / "run_test_split1.txt", "b.avi 1")
    options: dict[str, Any] = {"root": tmp_path / "videos", "subset": "train"}
    if message is None:
        assert [label for _, label in rows(tmp_path, lists, **options)] == ["run", "wave"]
    else:
        with pytest.raises(DataError, match=message):
            load_records(lists, **options)
    with pytest.raises(DataError, match="holds no lists of split 2"):
        load_records(lists, split=2, **options)


def test_ucf101_numbers_must_be_those_of_the_folders(tmp_path):
    root = make_files(tmp_path, "Zumba/v_g01.avi", "Archery/v_g01.avi")
    annotation = tmp_path / "trainlist01.txt"
    write(tmp_path / "classInd.txt", "1\tZumba", "2\tArchery")
    write(annotation, "Zumba\\v_g01.avi 1", "Archery/v_g01.avi\t2")
    assert [label for _, label in rows(root, annotation)] == ["Zumba", "Archery"]
    write(annotation, "Zumba/v_g01.avi 2")
    with pytest.raises(
        DataError, match=r"trainlist01.txt:1: 'Zumba/v_g01.avi 2': .*classInd.txt calls class 2 'Archery'"
    ):
        load_records(annotation)


def test_something_something_without_templates_is_no_unlabelled_set(tmp_path):
    make_files(tmp_path, "1.webm", "2.webm")
    for entries in (
        [{"id": "1", "label": "jump"}, {"id": "2", "label": "run"}],
        [{"id": "1", "template": "A [x]"}, {"id": "2", "label": "b"}],
    ):
        (tmp_path / "a.json").write_text(json.dumps(entries))
        with pytest.raises(DataError, match=r"format something_something; KeyError: 'template'"):
            load_records(tmp_path / "a.json")


# --- class lists ---


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0\tabseiling\n1\tzumba\n", ["abseiling", "zumba"]),
        ("0,abseiling\n1,zumba\n", ["abseiling", "zumba"]),
        ("1: abseiling\n2: zumba\n", ["abseiling", "zumba"]),
        ('id,name\n0,"abseiling"\n1,zumba\n', ["abseiling", "zumba"]),
        ("name,id\nabseiling,0\nzumba,1\n", ["abseiling", "zumba"]),
        ("abseiling 0\nzumba 1\n", ["abseiling", "zumba"]),
        ('"abseiling"\r\n"arm, wrestling"\t\r\n', ["abseiling", "arm, wrestling"]),
        ("level 1\nlevel 2\n", ["level 1", "level 2"]),
        ("2 legs\n4 legs\n", ["2 legs", "4 legs"]),
        ("0\n1\n10\n2\n", ["0", "1", "10", "2"]),
        ('{"0": "zumba", "1": "abseiling"}', ["zumba", "abseiling"]),
    ],
)
def test_class_lists_with_labels_in_them(tmp_path, text, names):
    path = tmp_path / ("c.json" if text.startswith("{") else "c.txt")
    path.write_bytes(text.encode())
    assert load_classes(path) == tuple(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 abseiling\n0 zumba\n", "its lines are in another order than its numbers; sort them by number"),
        ("abseiling,1\nzumba,0\n", "its lines are in another order than its numbers"),
        ("name,id\nabseiling,2\nzumba,1\n", "its lines are in another order than its numbers"),
        ('[{"id": 0, "name": "abseiling"}]', "it lists other values than names"),
        ('["abseiling", null]', "it lists other values than names"),
        ('{"abseiling": 0.5, "zumba": 1.2}', "not a readable list of classes"),
    ],
)
def test_class_lists_in_doubt_are_refused(tmp_path, text, message):
    path = tmp_path / ("c.json" if text[0] in "[{" else "c.txt")
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_classes(path)
