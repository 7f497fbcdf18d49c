"""Records from every layout, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gcvideo.config import RunConfig, SplitConfig
from gcvideo.data.annotations import load_classes, load_records, videos_under
from gcvideo.data.records import RecordTable
from gcvideo.data.splits import load_split
from gcvideo.errors import ConfigError, DataError
from gcvideo.predict.inputs import find_sources

HEADER = "label,youtube_id,time_start,time_end,split,is_cc"


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def relative(table: RecordTable, root: Path) -> list[str]:
    return [os.path.relpath(record.path, root) for record in table]


# --- Kinetics CSV ---


def test_kinetics_csv_finds_flat_and_class_folder_files_with_any_suffix(tmp_path):
    root = make_files(
        tmp_path / "videos",
        "0wR5jVB-WPk_000417_000427.mp4",
        "air drumming/3caPS4FHFF8_000036_000046.webm",
        "-3B32lodo2M_000059_000069.mkv",
        "0wR5jVB-WPk_000417_000427.txt",
    )
    rows = ["abseiling,0wR5jVB-WPk,417,427,val,0", '"air drumming",3caPS4FHFF8,36,46,val,1']
    rows += ["abseiling,-3B32lodo2M,59.0,69.0,val,0", "zumba,missing-one,1,11,val,0"]
    table = load_records(write(tmp_path / "val.csv", HEADER, *rows, encoding="utf-8-sig"), root=root)
    assert [record.id for record in table] == [
        "0wR5jVB-WPk_000417_000427",
        "3caPS4FHFF8_000036_000046",
        "-3B32lodo2M_000059_000069",
    ]
    assert relative(table, root) == [
        "0wR5jVB-WPk_000417_000427.mp4",
        "air drumming/3caPS4FHFF8_000036_000046.webm",
        "-3B32lodo2M_000059_000069.mkv",
    ]
    assert table.labels.tolist() == [0, 1, 0]
    assert table.classes == ("abseiling", "air drumming", "zumba")
    assert table.missing == ("missing-one_000001_000011",)


def test_kinetics_csv_reads_columns_by_name_in_any_order(tmp_path):
    make_files(tmp_path, "0wR5jVB-WPk_000417_000427.mp4")
    annotation = write(tmp_path / "a.csv", "split,time_end,youtube_id,time_start,label", "val,427,0wR5jVB-WPk,417,b")
    record = load_records(annotation, classes=["a", "b"])[0]
    assert (record.id, record.label) == ("0wR5jVB-WPk_000417_000427", 1)


def test_kinetics_test_csv_has_no_labels(tmp_path):
    make_files(tmp_path, "--6bJUbfpnQ_000017_000027.mp4")
    table = load_records(write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split", "--6bJUbfpnQ,17,27,test"))
    assert table[0].label == -1
    assert table.classes is None


def test_cvdf_replacement_wins_by_its_first_eleven_characters(tmp_path):
    root = make_files(
        tmp_path / "k400",
        "val/0wR5jVB-WPk_000417_000427.mp4",
        "replacement/replacement_for_corrupted_k400/0wR5jVB-WPk_whatever.mp4",
    )
    table = load_records(write(tmp_path / "val.csv", HEADER, "a,0wR5jVB-WPk,417,427,val,0"), root=root)
    assert relative(table, root) == ["replacement/replacement_for_corrupted_k400/0wR5jVB-WPk_whatever.mp4"]


def test_the_same_youtube_id_with_other_times_is_another_clip(tmp_path):
    make_files(tmp_path, "0wR5jVB-WPk_000001_000011.mp4", "0wR5jVB-WPk_000020_000030.mp4")
    table = load_records(write(tmp_path / "a.csv", HEADER, "a,0wR5jVB-WPk,20,30,val,0", "a,0wR5jVB-WPk,40,50,val,0"))
    assert relative(table, tmp_path) == ["0wR5jVB-WPk_000020_000030.mp4"]
    assert table.missing == ("0wR5jVB-WPk_000040_000050",)


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        (
            ["absailing,0wR5jVB-WPk,417,427,val,0"],
            ["abseiling"],
            "a.csv:2: label 'absailing' is an unknown class; did you mean 'ab",
        ),
        (["qqq,0wR5jVB-WPk,417,427,val,0"], ["abseiling"], "a.csv:2: label 'qqq' is an unknown class"),
        (["a,0wR5jVB-WPk,soon,427,val,0"], None, "a.csv:2: expected `label,youtube_id,start,end,split,is_cc`"),
        (["a,0wR5jVB-WPk"], None, "a.csv:2: expected `label,youtube_id,start,end,split,is_cc`"),
        (
            ["a,xxxxxxxxxxx,1,2,val,0"],
            None,
            "a.csv: lists no videos of those in .* named like xxxxxxxxxxx_000001_000002.mp4",
        ),
        ([], None, "lists no videos"),
    ],
)
def test_kinetics_csv_mistakes_are_named_in_one_line(tmp_path, rows, classes, message):
    make_files(tmp_path, "0wR5jVB-WPk_000417_000427.mp4")
    with pytest.raises(DataError, match=message) as caught:
        load_records(write(tmp_path / "a.csv", HEADER, *rows), classes=classes)
    assert "\n" not in str(caught.value)


def test_kinetics_csv_without_times(tmp_path):
    with pytest.raises(DataError, match="it lacks one of the columns youtube_id, time_start and time_end"):
        load_records(write(tmp_path / "a.csv", "label,youtube_id,split", "a,0wR5jVB-WPk,val"))


def test_real_kinetics_annotation_against_real_files(shared):
    root = shared / "videos" / "kinetics400"
    table = load_records(shared / "annotations" / "kinetics" / "kinetics-400_val_8videos.csv", root=root)
    assert len(table) == 4
    assert len(table.missing) == 4
    assert all(os.path.isfile(record.path) for record in table)
    classes = load_classes(shared / "annotations" / "label_maps" / "mmaction2_label_map_k400.txt")
    full = load_records(shared / "annotations" / "kinetics" / "kinetics-400_val.csv", root=root, classes=classes)
    assert len(full) + len(full.missing) == 19_906
    assert {classes[record.label] for record in full} == {"arm wrestling"}


# --- lists ---


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a.mp4 3", "a.mp4", 3),
        ("a.mp4,3", "a.mp4", 3),
        ("a.mp4\t3", "a.mp4", 3),
        ("a.mp4, 3", "a.mp4", 3),
        ("a b/c d.mp4 3", "a b/c d.mp4", 3),
        ("x, y.mp4 3", "x, y.mp4", 3),
        ('"x, y.mp4",3', "x, y.mp4", 3),
        ("a.mp4 120 3", "a.mp4", 3),  # PySlowFast's path, fn, label; mmaction2's path, frames, label
        ("a 7.mp4 3", "a 7.mp4", 3),
        ("take 5 3", "take 5", 3),  # a file without a suffix, whose name ends in a number
        ("a.mp4", "a.mp4", -1),
        ("a 7.mp4", "a 7.mp4", -1),
        ("take 5", "take 5", -1),
        ("  a.mp4   3  ", "a.mp4", 3),
        ("-a.mp4 3", "-a.mp4", 3),
        ("été/ça'.mp4 3", "été/ça'.mp4", 3),
    ],
)
def test_list_rows(tmp_path, line, path, label):
    make_files(tmp_path, path)
    record = load_records(write(tmp_path / "list.txt", line), num_classes=4)[0]
    assert (record.path, record.label, record.id) == (str(tmp_path / path), label, path)


def test_list_with_class_names_and_windows_line_ends(tmp_path):
    make_files(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbfa.mp4,arm wrestling\r\n\r\nb.mp4,abseiling\r\n")
    table = load_records(tmp_path / "list.csv")
    assert table.classes == ("abseiling", "arm wrestling")
    assert table.labels.tolist() == [1, 0]


def test_list_takes_a_root_and_absolute_paths(tmp_path):
    root = make_files(tmp_path / "videos", "a.mp4", "b.mp4")
    annotation = write(tmp_path / "list.txt", "a.mp4 0", f"{root}/b.mp4 1")
    assert [record.path for record in load_records(annotation, root=root)] == [f"{root}/a.mp4", f"{root}/b.mp4"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.mp4 0", "a.mp4 4"], r"list.txt:2: label '4' is outside 0 to 3"),
        (["a.mp4 -2"], r"list.txt:1: label '-2' is outside 0 to 3"),
        (
            ["a.mp4 0", "", "gone.mp4 1"],
            r"list.txt:3: .*/gone.mp4: no such video file; the rows are read as `path label`",
        ),
        (
            ["gone.mp4 0", "a.mp4 0", "also gone.mp4 1"],
            r"list.txt:1: .*no such video file.* \(the first of 2 rows that",
        ),
        (["frames 5 1"], r"list.txt:1: expected .* \(or a folder of numbered pictures\), found 'frames 5 1'"),
        (["what is this"], r"list.txt:1: expected `path label` of a video .*, found 'what is this'"),
        (["a.mp4,jump"], r"list.txt:1: label 'jump' is an unknown class; did you mean 'jumps'"),
        (
            ["b.mp4 0", "", "a.mp4 2", "a.mp4 2", "b.mp4 1"],
            r"list.txt:1: b.mp4 has another label than in line 5; remove one line \('0' here, '1' there\)",
        ),
        (["a.mp4,-1", "b.mp4,jumps", "b.mp4,runs"], r"list.txt:2: b.mp4 has another label than in line 3"),
        ([""], r"list.txt: lists no videos"),
    ],
)
def test_list_mistakes_are_named_in_one_line(tmp_path, lines, message):
    make_files(tmp_path, "a.mp4", "b.mp4", "frames/1.jpg")
    with pytest.raises(DataError, match=message) as caught:
        load_records(write(tmp_path / "list.txt", *lines), classes=["jumps", "runs", "sits", "lies"])
    assert "\n" not in str(caught.value)


def test_a_video_may_be_listed_twice_with_one_label_or_without(tmp_path):
    make_files(tmp_path, "a.mp4", "b.mp4")
    table = load_records(write(tmp_path / "list.txt", "a.mp4 1", "b.mp4 0", "a.mp4 1", "b.mp4 -1"))
    assert table.labels.tolist() == [1, 0, 1, -1]


def test_binary_annotation_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\x93\x00\x00\x9f")
    with pytest.raises(DataError, match=r"no readable annotation .*UnicodeDecodeError"):
        load_records(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["train.txt", "test.txt"])
def test_real_list(shared, name):
    folder = shared / "datasets" / "ucf101_10"
    table = load_records(folder / name, classes=load_classes(folder / "classes.txt"))
    assert len(table) == {"train.txt": 528, "test.txt": 212}[name]
    assert set(table.labels.tolist()) == set(range(10))
    assert table.classes is not None
    assert all(record.id.startswith(table.classes[record.label] + "/") for record in table)


# --- class folders and Parquet ---


def test_class_folders(tmp_path):
    make_files(tmp_path, "jump/b.mp4", "jump/a.avi", "run/deep/c.webm", "run/notes.txt", ".hidden/d.mp4")
    table = load_records(tmp_path)
    assert [(record.id, record.label) for record in table] == [
        ("jump/a.avi", 0),
        ("jump/b.mp4", 0),
        ("run/deep/c.webm", 1),
    ]
    assert table.classes == ("jump", "run")
    assert load_records(tmp_path, classes=["run", "jump"]).labels.tolist() == [1, 1, 0]
    with pytest.raises(DataError, match=r"jump/a.avi: label 'jump' is an unknown class; did you mean 'jumps'"):
        load_records(tmp_path, classes=["jumps", "run"])


def test_videos_beside_class_folders_are_counted_and_named(tmp_path, capsys):
    make_files(tmp_path, "jump/a.mp4", "run/b.mp4", "d.mp4", "c.mp4", "notes.txt", "sit/notes.txt")
    assert [record.id for record in load_records(tmp_path)] == ["jump/a.mp4", "run/b.mp4"]
    said = capsys.readouterr().err
    assert "2 videos lie beside the class folders (c.mp4 ...); left out" in said
    assert "1 class folders hold no videos (sit ...)" in said


def test_a_link_must_not_give_a_video_a_second_class(tmp_path):
    make_files(tmp_path, "set/jump/a.mp4", "set/run/b.mp4", "store/c.mp4")
    (tmp_path / "set/jump/again.mp4").symlink_to("a.mp4")
    (tmp_path / "set/run/c.mp4").symlink_to("../../store/c.mp4")
    assert len(load_records(tmp_path / "set")) == 4
    link = tmp_path / "set/run/a.mp4"
    link.symlink_to("../jump/a.mp4")
    with pytest.raises(DataError, match=f"{tmp_path}/set/jump/a.mp4 and {link} are one, by a link, in two classes"):
        load_records(tmp_path / "set")


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="no such annotation file or folder"):
        load_records(tmp_path / "nowhere")
    with pytest.raises(DataError, match="lists no videos"):
        load_records(tmp_path)
    (tmp_path / "jump").mkdir()
    with pytest.raises(DataError, match="lists no videos"):
        load_records(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder of videos"):
        load_records(write(tmp_path / "list.txt", "a.mp4 0"), root=tmp_path / "nowhere")


def test_parquet_index(tmp_path):
    columns = pa.table({"id": ["x", "y"], "path": ["x.mp4", "/far/y.mp4"], "label": [1, 0], "frames": [10, 20]})
    pq.write_table(columns.replace_schema_metadata({"classes": json.dumps(["a", "b"])}), tmp_path / "index.parquet")
    table = load_records(tmp_path / "index.parquet")
    assert [(record.id, record.path, record.label) for record in table] == [
        ("x", str(tmp_path / "x.mp4"), 1),
        ("y", "/far/y.mp4", 0),
    ]
    assert table.classes == ("a", "b")
    with pytest.raises(DataError, match="other classes"):
        load_records(tmp_path / "index.parquet", classes=["b", "a"])
    with pytest.raises(DataError, match="expected 0 to 0"):
        load_records(tmp_path / "index.parquet", num_classes=1)
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="format index; ArrowInvalid"):
        load_records(tmp_path / "bad.parquet")


# --- class lists ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "a b\nc\n"),
        ("c.txt", "\ufeffa b\r\nc\r\n\r\n"),
        ("c.txt", "0 a b\n1 c\n"),
        ("c.txt", "1 a b\n2 c\n"),
        ("c.json", '{"\\"c\\"": 1, "\\"a b\\"": 0}'),
        ("c.json", '["a b", "c"]'),
    ],
)
def test_load_classes(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert load_classes(tmp_path / name) == ("a b", "c")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "a\nb\na\n", "class 'a' appears twice"),
        ("c.txt", "\n", "holds no class names"),
        ("c.json", '{"a": 5}', "labels are not 0, 1, 2"),
        ("c.json", "{", "not a readable list of classes"),
        ("c.json", "3", "not a readable list of classes"),
    ],
)
def test_load_classes_mistakes(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_classes(tmp_path / name)
    with pytest.raises(DataError, match="not a readable list"):
        load_classes(tmp_path / "nowhere.txt")


def test_published_label_maps_agree(shared):
    maps = shared / "annotations" / "label_maps"
    k400 = load_classes(maps / "mmaction2_label_map_k400.txt")
    assert len(k400) == 400
    paddle = load_classes(maps / "paddlevideo_k400_label_list.txt")  # numbered, with underscores
    assert [name.replace("_", " ") for name in paddle][:20] == list(k400[:20])


# --- the table ---


def make_table(count: int) -> RecordTable:
    ids = [f"{i:011d}_000010_000020" for i in range(count)]
    paths = [f"a class name/{id_}.mp4" for id_ in ids]
    return RecordTable(ids=ids, paths=paths, labels=np.arange(count) % 700, root="/data", source="made")


def test_fingerprint_covers_ids_and_labels_only():
    def table(ids, labels, root="/a"):
        return RecordTable(ids=ids, paths=ids, labels=labels, root=root)

    base = table(["x", "y"], [0, 1]).fingerprint
    assert len(base) == 64
    assert table(["y", "x"], [1, 0], root="/b").fingerprint == base
    assert table(["x", "y"], [1, 0]).fingerprint != base
    assert table(["x", "z"], [0, 1]).fingerprint != base
    assert table(["x"], [0]).fingerprint != base


def test_names_need_not_be_text():
    """A file's name is bytes; Python writes those that are no UTF-8 as lone surrogates."""
    names = [os.fsdecode(b"latin \xfc.mp4"), "utf-8 ü.mp4"]
    table = RecordTable(ids=names, paths=names, labels=[3, 4], root="/data")
    assert [record.id for record in table] == names
    assert table[0].path == f"/data/{names[0]}"
    assert table.find([names[0]]).tolist() == [0]
    assert table.select([0]).fingerprint != table.select([1]).fingerprint
    table.select([1]).require_text()
    with pytest.raises(DataError, match=r"latin \\udcfc\.mp4: .* no UTF-8"):
        table.require_text()


def test_table_is_a_sequence():
    table = make_table(10)
    assert table[-1] == table[9]
    assert [record.label for record in table.select(range(2, 5))] == [2, 3, 4]
    assert [record.label for record in table.select([7, 3])] == [7, 3]
    assert table.find([table[4].id, "nobody"]).tolist() == [4]
    assert len(list(table)) == 10
    with pytest.raises(IndexError):
        table[10]
    assert pickle.loads(pickle.dumps(table))[3] == table[3]


def test_records_stay_small():
    """Kinetics-700 in columns: the table itself takes tens of megabytes, and reading it makes no lasting objects."""
    table = make_table(65_000)
    assert table._ids.nbytes + table._paths.nbytes + table.labels.nbytes < 6.4 * 2**20
    tracemalloc.start()
    for index in range(0, 65_000, 100):
        assert table[index].label == index % 700
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 2**20


# --- the splits of a config ---


def test_a_split_takes_root_and_classes_from_the_config(tmp_path, capsys):
    root = make_files(tmp_path / "videos", "0wR5jVB-WPk_000417_000427.mp4")
    rows = ["abseiling,0wR5jVB-WPk,417,427,train,0", "zumba,missing-one,1,11,train,0"]
    (tmp_path / "lists").mkdir()
    annotation = write(tmp_path / "lists" / "t.csv", HEADER, *rows)
    write(tmp_path / "classes.txt", "zumba", "yoga", "abseiling")
    config = RunConfig(name="a")
    config.model.num_classes, config.data.classes = 3, str(tmp_path / "classes.txt")
    config.data.train = SplitConfig(annotation=str(annotation), root=str(root))
    records = load_split(config, config.data.train, name="training")
    assert records is not None
    assert [(record.path, record.label) for record in records] == [(f"{root}/0wR5jVB-WPk_000417_000427.mp4", 2)]
    assert "1 training videos are not there (missing-one" in capsys.readouterr().err
    assert load_split(config, config.data.val, name="validation") is None
    config.data.classes = None
    config.model.num_classes = 2
    records = load_split(config, config.data.train, name="training", classes=("abseiling", "zumba"))
    assert records is not None
    assert records.labels.tolist() == [0]
    config.model.num_classes = 400
    with pytest.raises(ConfigError, match=r"model.num_classes: 400, but .*t\.csv names 2 classes; set model"):
        load_split(config, config.data.train, name="training")


# --- which files are videos ---


def test_hidden_files_and_link_loops_are_no_data(tmp_path):
    root = make_files(tmp_path / "set", "jump/1.mp4", "jump/._1.mp4", "run/2.mp4", "jump/.ipynb_checkpoints/1-c.mp4")
    make_files(tmp_path / "elsewhere", "3.mp4")
    (root / "jump" / "loop").symlink_to(".")
    (root / "jump" / "up").symlink_to("../..")
    (root / "walk").symlink_to(tmp_path / "elsewhere")
    (root / "walk_again").symlink_to(tmp_path / "elsewhere")
    make_files(root / ".store" / "hop", "4.mp4")
    (root / "hop").symlink_to(".store/hop")
    found = list(videos_under(root / "jump"))  # and all that ``up`` leads to, once
    assert len({os.path.realpath(root / "jump" / path) for path in found}) == len(found) == 4
    (root / "jump" / "up").unlink()
    assert list(videos_under(root)) == ["hop/4.mp4", "jump/1.mp4", "run/2.mp4", "walk/3.mp4"]
    with pytest.raises(DataError, match=r"walk and .*walk_again are one, by a link"):
        load_records(root)
    (root / "walk_again").unlink()
    assert [record.id for record in load_records(root)] == ["hop/4.mp4", "jump/1.mp4", "run/2.mp4", "walk/3.mp4"]
    assert [source.path for source in find_sources(str(root))] == [f"{root}/{path}" for path in videos_under(root)]
