"""No wrong label: every input is read in the one way that it can be meant, or refused with the line and the reason."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gcvideo.config import RunConfig, SplitConfig
from gcvideo.data.annotations import PUBLISHED_CLASSES, load_classes, load_records
from gcvideo.data.records import RecordTable
from gcvideo.data.splits import load_split
from gcvideo.errors import ConfigError, DataError
from tests.unit.data.test_annotations import HEADER, make_files, write

VIDEOS = ("jump/1.mp4", "run/2.mp4", "walk/3.mp4")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_files(tmp_path, *VIDEOS)


def rows(table: RecordTable, root: Path) -> list[tuple[str, int]]:
    return [(os.path.relpath(record.path, root), record.label) for record in table]


WANT = [("jump/1.mp4", 0), ("run/2.mp4", 1), ("walk/3.mp4", 2)]


@pytest.mark.parametrize(
    "lines",
    [
        ["jump/1.mp4\t0.0", "run/2.mp4\t1.0", "walk/3.mp4\t2.0"],
        ["jump/1.mp4 0.0", "run/2.mp4 1.0", "walk/3.mp4 2.0"],
        ["jump/1.mp4;0", "run/2.mp4;1", "walk/3.mp4;2"],
        ["jump\\1.mp4,0", "run\\2.mp4,1", "walk\\3.mp4,2"],
        ["path,label", "jump/1.mp4,0", "run/2.mp4,1", "walk/3.mp4,2"],
        ["path,label", "jump/1.mp4,jump", "run/2.mp4,run", "walk/3.mp4,walk"],
        ["label\tfile", "0\tjump/1.mp4", "1\trun/2.mp4", "2\twalk/3.mp4"],
        ["label;video_path", "jump;jump/1.mp4", "run;run/2.mp4", "walk;walk/3.mp4"],
        [",path,label", "0,jump/1.mp4,jump", "1,run/2.mp4,run", "2,walk/3.mp4,walk"],  # as pandas writes its index
        ["file,label,label_id,bytes", "jump/1.mp4,jump,5,9", "run/2.mp4,run,6,9", '"walk/3.mp4","walk",7,9'],
        ["path,frames,label", "jump/1.mp4,2,0", "run/2.mp4,2,1", "walk/3.mp4,2,2"],
        ["jump/1.mp4 250 0", "run/2.mp4 300 1", "walk/3.mp4 2 2"],
    ],
)
def test_variants_of_lists(root, lines):
    assert rows(load_records(write(root / "list.csv", *lines)), root) == WANT
    (root / "utf16.csv").write_bytes("\r\n".join(lines).encode("utf-16"))
    assert rows(load_records(root / "utf16.csv"), root) == WANT


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        # one number of columns in all rows
        (["jump/1.mp4 0 2", "run/2.mp4 1"], r"list:1: the rows may be `path frames label` or `path,labels`"),
        (
            ["jump/1.mp4 0 2", "run/2.mp4 3 1", "run/2.mp4 1 2"],  # labels that are not sorted
            r"list:1: the rows may be `path frames label` or `path,labels`",
        ),
        (
            ["jump/1.mp4 0", "run/2.mp4 1 2"],
            r"list:2: .*run/2.mp4 1: no such video file; the rows are read as `path label`; other columns need a",
        ),
        (["jump/1.mp4,0", "run/2.mp4,1,2"], r"list:2: .*run/2.mp4,1: no such video file; the rows are read as"),
        (["jump/1.mp4 0 2", "run/2.mp4 1 2"], r"list:1: the rows may be `path frames label` or `path,labels`"),
        (["jump/1.mp4,0,2", "run/2.mp4,1,2"], r"list:1: the rows may be `path,frames,label` or `path,labels`"),
        (
            ["jump/1.mp4 0 1 2", "run/2.mp4 0 1 1"],
            r"list:1: the rows may be `path start end label` or `path,labels`",
        ),
        (["jump/1.mp4 0 1 2 2", "run/2.mp4 0"], r"list:1: expected `path label`"),
        (["jump/1.mp4 0", "run/2.mp4"], r"list:2: expected `path label` as in the other rows, found 'run/2.mp4'"),
        (["jump/1.mp4", "run/2.mp4 0"], r"list:2: .*run/2.mp4 0: no such video file; the rows are read as `path`"),
        (["path,label", "jump/1.mp4,0,1"], r"list:2: .*jump/1.mp4,0: no such video file"),
        # one kind of label
        (["jump/1.mp4\t0", "run/2.mp4\t0,2"], r"list:2: label '0,2' is neither a whole number nor one name"),
        (
            ["jump/1.mp4\t0", "run/2.mp4\trun"],
            r"list:2: label 'run' is a name among numbers; use",
        ),
        (["jump/1.mp4\tjump", "run/2.mp4\t1"], r"list:1: label 'jump' is a name among numbers"),
        (["path,class_id", "jump/1.mp4,jump"], r"list:2: label 'jump' is outside 0, 1, 2 ..."),
        # a first row that begins as a header could
        (["video 1.mp4 0", "run/2.mp4 x"], r"list:2: label 'x' is a name among numbers"),
        # two readings of a row
        (
            ["take 5 3"],
            r"list:1: expected `path label` .*, found 'take 5 3'; set root if its paths begin elsewhere; other columns",
        ),
        # what the file looks like
        (
            ["0 jump/1.mp4"],
            r"list:1: expected `path label` of a video file in .*, found '0 jump/1.mp4'; set root .*; other columns",
        ),
        (["0,jump/1.mp4,jump"], r"list:1: expected `path label` .*, found '0,jump/1.mp4,jump'"),
        (["jump,jump/1.mp4"], r"list:1: expected `path label` .*, found 'jump,jump/1.mp4'"),
        (["jump,AAAAAAAAAAA,1,11,val,0"], r"list:1: expected .* header line: .* or label,youtube_id,"),
        (['{"jump/1.mp4": 0}'], r"list: no readable annotation .data.format something_something; TypeError"),
        (
            ['[{"video_dir": "a", "label": 1}]'],
            r"list: no readable annotation .data.format something_something; KeyError: 'template'",
        ),
        # segments
        (["path,start,end,label", "jump/1.mp4,4,2,0"], r"list:2: expected `path,start,end,label` as in the other rows"),
        (["jump/1.mp4 0.5 2 0", "run/2.mp4 3 2 1"], r"list:2: expected `path start end label` as in the other rows"),
        # subsets
        (
            ["path,split", "jump/1.mp4,train", "run/2.mp4,val"],
            r"list: has rows of train, val, but no subset is asked",
        ),
    ],
)
def test_what_is_ambiguous_or_no_list_is_refused_with_the_line(root, lines, message):
    make_files(root, "take 5", "take", "video 1.mp4")
    with pytest.raises(DataError, match=message) as caught:
        load_records(write(root / "list", *lines))
    assert "\n" not in str(caught.value)


def test_numbers_that_are_class_names_too(root):
    """Folders 0 to 10 sort as 0, 1, 10, 2 ...: a label 10 may be the class named 10 or the last one."""
    classes = sorted(str(number) for number in range(11))
    make_files(root / "set", *(f"{name}/a.mp4" for name in classes))
    assert load_records(root / "set").classes == tuple(classes)
    labels = {"jump/1.mp4": 10, "run/2.mp4": 2}
    lines = [f"{path},{label}" for path, label in labels.items()]
    with pytest.raises(
        DataError, match=r"list:1: label '10' may be the name of class 2 or a number; call the column class"
    ):
        load_records(write(root / "list", *lines), classes=classes)
    by_name = load_records(write(root / "list", "path,class", *lines), classes=classes)
    assert by_name.labels.tolist() == [2, 3]
    by_number = load_records(write(root / "list", "path,class_id", *lines), classes=classes)
    assert by_number.labels.tolist() == [10, 2]
    # unambiguous: both readings agree; only the names fit; only the numbers fit
    assert load_records(write(root / "list", "jump/1.mp4,0"), classes=classes).labels.tolist() == [0]
    assert load_records(write(root / "list", "jump/1.mp4,30"), classes=["10", "20", "30"]).labels.tolist() == [2]
    assert load_records(write(root / "list", "jump/1.mp4,0"), classes=["1", "2", "3"]).labels.tolist() == [0]
    padded = ["001", "002", "003"]
    with pytest.raises(DataError, match=r"label '1' may be the name of class 0 or a number"):
        load_records(write(root / "list", "jump/1.mp4,1", "run/2.mp4,2"), classes=padded)
    assert load_records(write(root / "list", "jump/1.mp4,1", "run/2.mp4,3"), classes=padded).labels.tolist() == [0, 2]
    write(root / "list", "path,class", "jump/1.mp4,1.0", "run/2.mp4,01")
    assert load_records(root / "list", classes=["01", "1"]).labels.tolist() == [1, 0]
    assert load_records(write(root / "list", "jump/1.mp4,7"), classes=["7", "jump"], num_classes=2).labels.tolist() == [
        0
    ]


def test_labels_that_count_from_1(root):
    lines = ["jump/1.mp4 1", "run/2.mp4 2", "walk/3.mp4 3"]
    with pytest.raises(DataError, match=r"list:3: label '3' is outside 0 to 2; if the labels count from 1, subtract"):
        load_records(write(root / "list", *lines), num_classes=3)
    assert load_records(root / "list", num_classes=4).labels.tolist() == [1, 2, 3]


def test_class_names_are_compared_in_one_unicode_form(root):
    composed, decomposed = "\u00e9t\u00e9", "e\u0301te\u0301"
    annotation = write(root / "list.csv", f"jump/1.mp4,{decomposed}", f"run/2.mp4,{composed}", "walk/3.mp4,a")
    assert load_records(annotation, classes=[composed, "a"]).labels.tolist() == [0, 0, 1]
    assert load_records(annotation, classes=[decomposed, "a"]).labels.tolist() == [0, 0, 1]
    assert load_records(annotation).classes == ("a", composed)
    make_files(root / "set", f"{decomposed}/1.mp4")
    assert load_records(root / "set", classes=[composed]).labels.tolist() == [0]
    assert load_classes(write(root / "classes.txt", decomposed, "a")) == (composed, "a")


def test_a_root_makes_ids_relative_to_it_in_lists_and_folders(tmp_path):
    root = make_files(tmp_path, "val/jump/1.mp4", "val/run/2.mp4")
    ids = ["val/jump/1.mp4", "val/run/2.mp4"]
    absolute = write(tmp_path / "list", *(f"{root / path} {label}" for label, path in enumerate(ids)))
    relative = write(tmp_path / "list2", *(f"{path} {label}" for label, path in enumerate(ids)))
    tables = [load_records(name, root=root) for name in (root / "val", absolute, relative)]
    assert [[record.id for record in table] for table in tables] == [ids] * 3
    assert len({table.fingerprint for table in tables}) == 1
    assert [record.id for record in load_records(root / "val")] == ["jump/1.mp4", "run/2.mp4"]


# --- segments ---


@pytest.mark.parametrize(
    "lines",
    [
        ["path,start,end,label", "jump/1.mp4,0,10,0", "jump/1.mp4,10.5,20,1", "run/2.mp4,,,1"],
        ["jump/1.mp4,0,10,0", "jump/1.mp4,10.5,20,1", "run/2.mp4,0,1,1"],
        ["jump/1.mp4 0 10 0", "jump/1.mp4 10.5 20 1", "run/2.mp4 0 1 1"],
        ["video;start_time;end_time;class", "jump/1.mp4;0;10;a", "jump/1.mp4;10.5;20;b", "run/2.mp4;;;b"],
    ],
)
def test_segments_of_lists(root, lines):
    table = load_records(write(root / "list", *lines))
    assert [(r.start, r.end, r.label) for r in table][:2] == [(0.0, 10.0, 0), (10.5, 20.0, 1)]
    assert [record.id for record in table][:2] == ["jump/1.mp4#t=0,10", "jump/1.mp4#t=10.5,20"]
    assert table[2].label == 1
    assert not table[0].may_be_cut


def test_kinetics_rows_of_whole_videos_are_segments(tmp_path):
    make_files(tmp_path, "AAAAAAAAAAA.mp4", "BBBBBBBBBBB.mp4", "CCCCCCCCCCC_000001_000011.mp4", "CCCCCCCCCCC.mp4")
    times = ["a,AAAAAAAAAAA,10,20,val,0", "b,AAAAAAAAAAA,50,60,val,0", "a,BBBBBBBBBBB,1,11,val,0"]
    table = load_records(write(tmp_path / "k.csv", HEADER, *times, *times[2:], "b,CCCCCCCCCCC,1,11,val,0"))
    found = [(os.path.basename(r.path), r.id, r.start, r.end, r.label, r.may_be_cut) for r in table]
    assert found[:3] == [
        ("AAAAAAAAAAA.mp4", "AAAAAAAAAAA_000010_000020", 10.0, 20.0, 0, False),
        ("AAAAAAAAAAA.mp4", "AAAAAAAAAAA_000050_000060", 50.0, 60.0, 1, False),
        ("BBBBBBBBBBB.mp4", "BBBBBBBBBBB_000001_000011", 1.0, 11.0, 0, True),
    ]
    assert found[3] == found[2]
    assert found[4] == ("CCCCCCCCCCC_000001_000011.mp4", "CCCCCCCCCCC_000001_000011", None, None, 1, False)


# --- Kinetics ---


def test_kinetics_csv_with_other_separators_and_replacements_by_name_only(tmp_path):
    ids = ["AAAAAAAAAAA", "BBBBBBBBBBB"]
    root = make_files(
        tmp_path,
        "video/hip replacement/AAAAAAAAAAA_000001_000011.mp4",
        "video/x/AAAAAAAAAAA_000021_000031.mp4",
        "video/x/BBBBBBBBBBB_000001_000011.mp4",
        "video/replacement_for_corrupted_k600/BBBBBBBBBBB.mp4",
    )
    lines = ["label,youtube_id,time_start,time_end", f"a,{ids[0]},21,31", f"a,{ids[1]},1,11"]
    for separator in ",;\t":
        annotation = write(tmp_path / "k.csv", *(line.replace(",", separator) for line in lines))
        paths = [os.path.relpath(r.path, root / "video") for r in load_records(annotation, root=root / "video")]
        assert paths == ["x/AAAAAAAAAAA_000021_000031.mp4", "replacement_for_corrupted_k600/BBBBBBBBBBB.mp4"]


def test_a_kinetics_clip_with_two_labels_is_refused(tmp_path):
    make_files(tmp_path, "AAAAAAAAAAA_000001_000011.mp4")
    lines = ["a,AAAAAAAAAAA,1,11,val,0", "b,AAAAAAAAAAA,1,11,val,0"]
    with pytest.raises(DataError, match=r"k.csv:2: AAAAAAAAAAA_000001_000011 has another label than in line 3"):
        load_records(write(tmp_path / "k.csv", HEADER, *lines))


def test_the_split_column_is_honoured_where_it_names_several(tmp_path):
    ids = ["AAAAAAAAAAA", "BBBBBBBBBBB", "CCCCCCCCCCC"]
    make_files(tmp_path, *(f"{id_}_000001_000011.mp4" for id_ in ids))
    splits = ["train", "validate", "test"]
    lines = [f"a,{id_},1,11,{split},0" for id_, split in zip(ids, splits, strict=True)]
    annotation = write(tmp_path / "k.csv", HEADER, *lines)
    for id_, subset in zip(ids, ("train", "val", "test"), strict=True):
        assert [r.id[:11] for r in load_records(annotation, subset=subset)] == [id_]
    with pytest.raises(DataError, match="has rows of test, train, validate, but no subset"):
        load_records(annotation)
    one = write(tmp_path / "val.csv", HEADER, *lines[1:2])
    assert len(load_records(one, subset="train")) == 1  # the user named this file


# --- official lists ---


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    names = ["ApplyLipstick", "Archery", "Zumba"]  # the numbers of classInd.txt are what counts
    make_files(tmp_path / "videos", *(f"{name}/v_{name}_g0{g}_c01.avi" for name in names for g in (1, 8)))
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    write(lists / "classInd.txt", "1 Zumba", "2 ApplyLipstick", "3 Archery")
    number = {"Zumba": 1, "ApplyLipstick": 2, "Archery": 3}
    write(lists / "trainlist01.txt", *(f"{name}/v_{name}_g08_c01.avi {number[name]}" for name in names))
    write(lists / "testlist01.txt", *(f"{name}/v_{name}_g01_c01.avi" for name in names))
    write(lists / "trainlist02.txt", f"Archery/v_Archery_g01_c01.avi {number['Archery']}")
    return lists


def test_ucf101_lists_are_read_as_they_come(ucf101):
    root = ucf101.parent / "videos"
    for annotation, subset in (("trainlist01.txt", None), ("testlist01.txt", None), ("", "train"), ("", "val")):
        table = load_records(ucf101 / annotation, root=root, subset=subset)
        assert table.classes == ("Zumba", "ApplyLipstick", "Archery")
        assert table.labels.tolist() == [1, 2, 0]
        assert all(table.classes[record.label] in record.path for record in table)
    assert len(load_records(ucf101, root=root, subset="train", split=2)) == 1
    for path in root.glob("*/*.avi"):
        path.rename(path.with_suffix(".mp4"))  # a transcoded copy
    assert load_records(ucf101 / "testlist01.txt", root=root)[0].path.endswith("v_ApplyLipstick_g01_c01.mp4")
    with pytest.raises(DataError, match="lists training and test videos"):
        load_records(ucf101, root=root)


def test_hmdb51_lists_are_read_as_they_come(tmp_path):
    root = make_files(tmp_path / "hmdb51", "wave/a b.avi", "wave/c;(1).avi", "cartwheel/d.avi", "cartwheel/e.avi")
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    write(lists / "wave_test_split1.txt", "a b.avi 1 ", "c;(1).avi 2 ")
    write(lists / "cartwheel_test_split1.txt", "d.avi 0 ", "e.avi 1 ")
    write(lists / "wave_test_split2.txt", "a b.avi 2 ", "c;(1).avi 1 ")
    write(lists / "cartwheel_test_split2.txt", "d.avi 2 ", "e.avi 0 ")
    train = load_records(lists, root=root, subset="train")
    assert train.classes == ("cartwheel", "wave")
    assert rows(train, root) == [("cartwheel/e.avi", 0), ("wave/a b.avi", 1)]
    assert rows(load_records(lists, root=root, subset="test"), root) == [("wave/c;(1).avi", 1)]
    assert rows(load_records(lists, root=root, subset="val", split=2), root) == [
        ("cartwheel/d.avi", 0),
        ("wave/a b.avi", 1),
    ]


def test_something_something_json_is_read_as_it_comes(tmp_path):
    make_files(tmp_path / "videos", "11.webm", "12.mp4")
    entries = [
        {"id": "11", "label": "holding a cup next to a book", "template": "Holding [something] next to [something]"},
        {"id": "12", "label": "closing a box", "template": "Closing [something]", "placeholders": ["a box"]},
    ]
    (tmp_path / "something-something-v2-train.json").write_text(json.dumps(entries))
    (tmp_path / "something-something-v2-test.json").write_text('[{"id": "11"}]')
    annotation, root = tmp_path / "something-something-v2-train.json", tmp_path / "videos"
    table = load_records(annotation, root=root)
    assert table.classes == ("Closing something", "Holding something next to something")
    assert [(r.id, os.path.basename(r.path), r.label) for r in table] == [("11", "11.webm", 1), ("12", "12.mp4", 0)]
    labels = {"Holding something next to something": "0", "Closing something": "1", "Opening something": "2"}
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps(labels))
    assert load_records(annotation, root=root).labels.tolist() == [0, 1]
    assert load_records(tmp_path / "something-something-v2-test.json", root=root).labels.tolist() == [-1]


def test_published_class_lists(shared):
    assert PUBLISHED_CLASSES == ("kinetics400", "kinetics600", "kinetics700")
    for name in PUBLISHED_CLASSES:
        classes = load_classes(name)
        assert len(classes) == int(name.removeprefix("kinetics"))
        assert list(classes) == sorted(classes)
    map_ = shared / "annotations" / "label_maps" / "mmaction2_label_map_k400.txt"
    assert load_classes("kinetics400") == load_classes(map_)


# --- own readers ---


def test_an_own_reader_by_dotted_path(root, monkeypatch):
    (root / "my_format.py").write_text(
        "def read(path, root):\n"
        "    for line in path.read_text().split():\n"
        "        name, video, *times = line.split('|')\n"
        "        yield video, name, *map(float, times)\n"
    )
    monkeypatch.syspath_prepend(root)
    annotation = write(root / "mine", "run|run/2.mp4|1.5|4", "jump|jump/1.mp4")
    table = load_records(annotation, format="my_format:read")
    assert [(r.id, r.label, r.start) for r in table] == [("run/2.mp4#t=1.5,4", 1, 1.5), ("jump/1.mp4", 0, None)]
    assert table.classes == ("jump", "run")
    with pytest.raises(DataError, match=r"mine:1: .*gone.mp4: no such video file"):
        load_records(write(root / "mine", "run|gone.mp4"), format="my_format:read")
    with pytest.raises(ConfigError, match=r"data.format: 'lists' is not auto, kinetics, list, folders, index, ucf101"):
        load_records(annotation, format="lists")


# --- label order of the splits of a run ---


def make_config(root: Path, num_classes: int, **splits: str) -> RunConfig:
    config = RunConfig(name="a")
    config.model.num_classes = num_classes
    for name, annotation in splits.items():
        setattr(config.data, name, SplitConfig(annotation=str(root / annotation)))
    return config


def test_a_video_listed_twice_is_tested_once(root, capsys):
    write(root / "list", "jump/1.mp4 0", "run/2.mp4 1", "run/../jump/1.mp4 0", f"{root.resolve()}/run/2.mp4 1")
    config = make_config(root, 2, train="list", val="list")
    train = load_split(config, config.data.train, name="training")
    assert train is not None
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert "twice" not in capsys.readouterr().err
    val = load_split(config, config.data.val, name="validation")
    assert val is not None
    assert val.labels.tolist() == [0, 1]
    assert "2 rows name a video that is listed before; counted once" in capsys.readouterr().err


def test_a_subset_of_the_classes_names_the_key_for_all_of_them(root):
    write(root / "list", "jump/1.mp4,jump", "run/2.mp4,run")
    config = make_config(root, 400, train="list")
    with pytest.raises(ConfigError, match=r"names 2 classes; set model.num_classes=2, or data.classes= .*kinetics400"):
        load_split(config, config.data.train, name="training")


def test_label_order_is_one_fact_for_all_splits(root):
    write(root / "numbers", "jump/1.mp4 0", "run/2.mp4 1", "walk/3.mp4 2")
    write(root / "names", "jump/1.mp4,jump", "run/2.mp4,run", "walk/3.mp4,walk")
    config = make_config(root, 3, train="numbers", val="names")
    assert load_split(config, config.data.train, name="training").classes is None
    with pytest.raises(DataError, match=r"names: has class names, but the labels for training are numbers"):
        load_split(config, config.data.val, name="validation")
    config.data.train, config.data.val = config.data.val, config.data.train
    names = load_split(config, config.data.train, name="training").classes
    with pytest.raises(
        DataError, match=r"numbers:1: label '0' is an unknown class; set data.classes to the names in the order of the"
    ):
        load_split(config, config.data.val, name="validation", classes=names)
    index = pa.table({"id": ["a"], "path": ["jump/1.mp4"], "label": [0]})
    pq.write_table(index, root / "index.parquet")
    config.data.val = SplitConfig(annotation=str(root / "index.parquet"))
    with pytest.raises(DataError, match=r"index.parquet: has no class names; set data.classes to the names"):
        load_split(config, config.data.val, name="validation", classes=names)
    config.data.val = SplitConfig(annotation=str(root / "names"))
    config.data.classes = str(write(root / "classes.txt", "walk", "run", "jump"))
    assert load_split(config, config.data.val, name="validation").labels.tolist() == [2, 1, 0]
    trained = ("walk", "jump", "run")
    with pytest.raises(
        DataError, match=r"classes.txt: class 1 is 'run', but the network has 'jump'; unset data.classes"
    ):
        load_split(config, config.data.val, name="test", classes=trained)
    config.data.classes = str(root / "gone.txt")
    assert load_split(config, config.data.val, name="test", classes=trained).labels.tolist() == [1, 2, 0]


def test_training_labels_without_0_are_mentioned(root, capsys):
    write(root / "list", "jump/1.mp4 1", "run/2.mp4 2", "walk/3.mp4 3")
    config = make_config(root, 4, train="list")
    load_split(config, config.data.train, name="training")
    assert "1 of 4 classes (model.num_classes) have no video; do the labels count from 1?" in capsys.readouterr().err


def test_without_duplicates():
    table = RecordTable(ids=["a", "b", "a"], paths=["a", "b", "a"], labels=[0, 1, 0])
    assert table.without_duplicates().labels.tolist() == [0, 1]
    assert np.array_equal(table.select([0, 1]).without_duplicates().labels, [0, 1])


def test_random_lists_are_read_rightly_or_refused(tmp_path):
    """Names with separators in them, and every layout: never another label than the one that was written."""
    rng = random.Random(0)
    pieces = ["a", "b 1", "c,2", "d;3", "7", "video", "label, z", "take", "take 5", "take 5 3", "x\ty", 'q"r']
    read = 0
    for trial in range(200):
        root = tmp_path / str(trial)
        suffix, classes = rng.choice([".mp4", ""]), rng.choice([None, "vwxyz"])
        names = {
            f"{rng.choice(['', 'f/', 'g 2/', 'h,1/'])}{rng.choice(pieces)}{suffix}" for _ in range(rng.randint(1, 5))
        }
        make_files(root, *names)
        separator, layout = rng.choice([" ", "\t", ",", ";"]), rng.choice(["label", "frames", "segment", "path"])
        columns = {"label": ["path", "label"], "frames": ["path", "frames", "label"]}.get(layout, [])
        lines, want = [separator.join(columns)] if rng.random() < 0.3 and columns else [], []
        for name in sorted(names):
            label, start = rng.randrange(5), rng.randrange(20)
            between = {"frames": [str(rng.randrange(400))], "segment": [str(start), str(start + 3)]}.get(layout, [])
            lines.append(
                name
                if layout == "path"
                else separator.join([name, *between, classes[label] if classes else str(label)])
            )
            want.append((name, -1 if layout == "path" else label))
        try:
            table = load_records(write(root / "list", *lines), num_classes=5, classes=classes)
        except DataError:
            continue
        read += 1
        assert rows(table, root) == want, lines
    assert read > 120
