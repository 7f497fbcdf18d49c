"""Several labels a video: every usual form is read, what could be a slip is refused, and tables of them stay small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gcvideo.config import SplitConfig, config_from_dict
from gcvideo.data.annotations import load_classes, load_records
from gcvideo.data.annotations.table import Readings
from gcvideo.data.records import RecordTable
from gcvideo.data.splits import load_split
from gcvideo.errors import ConfigError, DataError
from gcvideo.prepare.index import make_index, write_shards
from gcvideo.prepare.transcode import copy_annotation
from tests.unit.data.test_annotations import make_files, write

VIDEOS = ("jump/1.mp4", "run/2.mp4", "my take.mp4", "walk/3.mp4")
CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_files(tmp_path, *VIDEOS)


def labels(table: RecordTable) -> list[object]:
    assert table.sets is not None
    return [record.label for record in table]


NUMBERS = [(3, 17), (0,), (0, 3)]
NAMES = [(0, 1), (1,), (0, 2)]  # jump, run, walk


@pytest.mark.parametrize(
    ("lines", "want"),
    [
        (["jump/1.mp4\t3,17", "run/2.mp4\t0", "my take.mp4\t3,0"], NUMBERS),
        (["jump/1.mp4 3,17", "run/2.mp4 0", "my take.mp4 0,3"], NUMBERS),
        (["jump/1.mp4,3;17", "run/2.mp4,0", "my take.mp4,0;3"], NUMBERS),
        (["jump/1.mp4\t[3, 17]", "run/2.mp4\t[0]", "my take.mp4\t[0, 3]"], NUMBERS),
        (["path,labels", "jump/1.mp4,3,17", "run/2.mp4,0", "my take.mp4,0,3"], NUMBERS),
        (["path labels", "jump/1.mp4 3 17", "run/2.mp4 0", "my take.mp4 0 3"], NUMBERS),
        (["file\tframes\tlabel_ids", "jump/1.mp4\t9\t3\t17"], [(3, 17)]),
        (["path frames labels", "jump/1.mp4 9 3 17", "run/2.mp4 9 0", "my take.mp4 9 0 3"], NUMBERS),
        (["path,start,end,labels", "jump/1.mp4,,,3,17", "run/2.mp4,,,0", "my take.mp4,,,0,3"], NUMBERS),
        # mmaction2's: no single label with stray columns gives rows of three lengths, nor of so many numbers
        (["jump/1.mp4 1 4 7", "run/2.mp4 2", "my take.mp4 0 3"], [(1, 4, 7), (2,), (0, 3)]),
        (["jump/1.mp4 1 4 7 8", "run/2.mp4 2 3 4 5"], [(1, 4, 7, 8), (2, 3, 4, 5)]),
        (["jump/1.mp4\tjump,run", "run/2.mp4\trun", "my take.mp4\tjump,walk", "walk/3.mp4\twalk"], [*NAMES, (2,)]),
        (["path,labels", 'jump/1.mp4,"jump;run"', "run/2.mp4,run", "my take.mp4,jump;walk"], NAMES),
        (["path,labels", 'jump/1.mp4,"jump|run"', "run/2.mp4,run", "my take.mp4,jump|walk|jump"], NAMES),
        (["path;tags", 'jump/1.mp4;"jump, run"', "run/2.mp4;run", 'my take.mp4;["jump", "walk"]'], NAMES),
        (["path,label", 'jump/1.mp4,"jump;run"', "run/2.mp4,run", "my take.mp4,jump;walk"], NAMES),
        # none of the classes; unknown
        (["path,labels", "jump/1.mp4,1;2", "run/2.mp4,", "my take.mp4,-1"], [(1, 2), (), -1]),
    ],
)
def test_lists_of_several_labels(root, lines, want):
    annotation = write(root / "list", *lines)
    assert labels(load_records(annotation)) == want
    assert labels(load_records(annotation, several=True)) == want


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["jump/1.mp4 1 4", "run/2.mp4 2"],
            "list:1: the rows may be .* header line, path,frames,label or path,labels",
        ),
        (
            ["jump/1.mp4 1 4", "run/2.mp4 2 5"],
            "list:1: the rows may be .* header line, path,frames,label or path,labels, and",
        ),
        (
            ["jump/1.mp4\t0", "run/2.mp4\t0,2"],
            r"list:2: label '0,2' is neither .* \(path,labels\), or set",
        ),
        (
            ["path,labels", "jump/1.mp4,[0 1 0]", "run/2.mp4,1"],
            r"list:2: label '0 1 0' is neither a whole number nor one name",
        ),
        (
            ["path,labels", "jump/1.mp4,jump;1", "run/2.mp4,jump;run"],
            "list:2: label '1' is a number among names",
        ),
        (["path,labels", "jump/1.mp4,0;1", "run/2.mp4,2;-1"], "list:3: label '2;-1'"),
        (["path,labels", "jump/1.mp4,0;1", "jump/1.mp4,1"], "list:2: jump/1.mp4 has another label than in line 3"),
        (["path,labels", "jump/1.mp4", "run/2.mp4,1"], "list:2: expected `path,labels`"),
    ],
)
def test_what_could_be_a_slip_is_refused_with_the_line_and_the_header(root, lines, message):
    with pytest.raises(DataError, match=message) as caught:
        load_records(write(root / "list", *lines))
    assert "\n" not in str(caught.value)


def test_frame_folders_with_their_number_of_pictures(root):
    """mmaction2's rawframes list with ``multi_class``: folder, total, labels."""
    make_files(root, *(f"{name}/img_{i:05d}.jpg" for name in "abc" for i in range(1, 4)))
    lines = ["a 3 4 0", "b 3 1", "c 3 2 0 7"]
    assert labels(load_records(write(root / "list", *lines))) == [(0, 4), (1,), (0, 2, 7)]
    for header in ([], ["path frames labels"]):
        table = load_records(write(root / "list", *header, *lines[:2]), several=True)
        assert labels(table) == [(0, 4), (1,)]
    with pytest.raises(DataError, match="list:1: the rows may be `path offset frames label`"):
        load_records(write(root / "list", "a 4 5 0", "b 4 1", "c 4 2 0 7"))
    with pytest.raises(DataError, match="list:3: b: has 3 pictures, but the row says 4"):
        load_records(write(root / "list", "path frames labels", "a 3 4 0", "b 4 1"))


def test_what_is_one_label_stays_one(root):
    names = ["tie, bow tie", "run", "tie, bow tie", "walk; stop"]
    for header in ("path\tlabel", "path\tclass"):
        rows = (f"{path}\t{name}" for path, name in zip(VIDEOS, names, strict=True))
        table = load_records(write(root / "list", header, *rows))
        assert table.sets is None
        assert table.labels.tolist() == [1, 0, 1, 2]
    known = load_records(write(root / "list", "path\tlabels", "jump/1.mp4\ta,b", "run/2.mp4\tc"), classes=["c", "a,b"])
    assert labels(known) == [(1,), (0,)]


def test_a_label_outside_names_its_line_and_the_row_is_refused_once(root):
    found = Readings()
    annotation = write(root / "list", "path,labels", "jump/1.mp4,0;5", "run/2.mp4,1;2")
    assert labels(load_records(annotation, num_classes=3, readings=found)) == [(1, 2)]
    assert [(row.line, row.reason) for row in found.refusals] == [(2, "label '5' is outside 0 to 2")]


@pytest.fixture
def charades(tmp_path: Path) -> Path:
    make_files(tmp_path, "46GP8.mp4", "N11GT.avi", "0KZ7P.mp4")
    write(tmp_path / "Charades_v1_classes.txt", *(f"c{code:03d} Class {code}, tidying" for code in range(157)))
    script = '"A person cooks, ""happily"";\nthen eats."'
    return write(
        tmp_path / "Charades_v1_train.csv",
        CHARADES,
        f"46GP8,HR43,Kitchen,6,7,Yes,{script},food,A person.,c092 11.90 21.20;c147 0.00 12.60;c092 1.00 2.00,24.83",
        "N11GT,0KZ7,Stairs,6,7,Yes,A person,broom,,c098 5.30 9.20,18.33",
        "0KZ7P,0KZ7,Stairs,6,7,No,A person,,,,18.33",
    )


def test_charades_as_it_comes(charades):
    table = load_records(charades)
    assert labels(table) == [(92, 147), (98,), ()]
    assert [record.id for record in table] == ["46GP8", "N11GT", "0KZ7P"]
    assert table[1].path.endswith("N11GT.avi")
    assert table.classes is not None
    assert table.classes[147] == "Class 147, tidying"
    assert load_classes(charades.with_name("Charades_v1_classes.txt")) == table.classes
    charades.with_name("Charades_v1_classes.txt").unlink()
    assert labels(load_records(charades, num_classes=157)) == [(92, 147), (98,), ()]
    assert labels(load_records(charades, classes=table.classes, names_only=True)) == [(92, 147), (98,), ()]
    with pytest.raises(DataError, match=r"train.csv:3: label '92' is outside 0 to 50"):
        load_records(charades, num_classes=51)


@pytest.mark.parametrize("known", [True, False])
def test_actions_of_charades_in_another_form_are_refused(charades, known):
    charades.write_text(charades.read_text().replace("c098 5.30 9.20", "c98 5.30 9.20"))
    if not known:
        charades.with_name("Charades_v1_classes.txt").unlink()
    with pytest.raises(DataError, match=r"train.csv:4: label 'c98' "):
        load_records(charades)
    with pytest.raises(DataError, match=r"list: no readable annotation .data.format charades; KeyError: 'actions'"):
        load_records(write(charades.with_name("list"), "path,labels", "46GP8.mp4,1"), format="charades")


def test_index_shards_and_lists_of_copies_keep_all_labels(root):
    annotation = write(root / "list", "path,labels", "jump/1.mp4,jump;run", "run/2.mp4,", "walk/3.mp4,-1")
    records = load_records(annotation)
    make_index(annotation, root / "index.parquet", workers=0)
    write_shards(annotation, root / "shards", workers=0)
    for table in (load_records(root / "index.parquet"), load_records(root / "shards")):
        assert labels(table) == [(0, 1), (), -1]
        assert (table.classes, table.fingerprint) == (records.classes, records.fingerprint)
    with pytest.raises(DataError, match="has labels from 0 to 1, expected 0 to 0"):
        load_records(root / "index.parquet", num_classes=1)
    copies = make_files(root / "copies", *VIDEOS)
    assert labels(load_records(copy_annotation(annotation, root, copies))) == [(0, 1), (), -1]


def test_the_config_says_whether_scores_are_of_several_labels(root):
    several = write(root / "several", "path,labels", "jump/1.mp4,0;1", "run/2.mp4,")
    single = write(root / "single", "jump/1.mp4 1", "run/2.mp4 0")

    def load(path: Path, multi_label: bool) -> RecordTable | None:
        model = {"num_classes": 2, "multi_label": multi_label}
        config = config_from_dict({"name": "run", "model": model}, where="the test")
        return load_split(config, SplitConfig(annotation=str(path)), name="training")

    with pytest.raises(
        ConfigError, match=r"model.multi_label: false, but .*several gives videos several labels; set mod"
    ):
        load(several, False)
    assert labels(load(several, True)) == [(0, 1), ()]
    for multi_label in (True, False):
        found = load(single, multi_label)
        assert found is not None
        assert [record.label for record in found] == ([(1,), (0,)] if multi_label else [1, 0])


def test_tables_are_compact_and_keep_their_sets():
    count, each = 650_000, 7
    flat = pa.array(np.arange(count * each, dtype=np.int32) % 157)
    sets = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * each, flat)
    table = RecordTable(ids=pa.array(["a"] * count), paths=pa.array(["a"] * count), labels=sets)
    assert table.sets.nbytes < 4 * count * (each + 1) + count
    chosen = table.select([count - 1, 0])
    assert [record.label for record in chosen] == [table[count - 1].label, tuple(range(7))]
    assert chosen.labels.tolist() == [7, 7]
