"""Exports of Label Studio, CVAT and VIA 3 in their real structure become lists that are read as they are."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gcvideo import cli
from gcvideo.data.annotations import load_records
from gcvideo.data.annotations.exports import Mark, read_export, write_label_list
from gcvideo.errors import DataError
from tests.videos import moving_frames, write_frames, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 2 s at 10 frames a second, one of them in a folder, and a folder of 20 frames."""
    root = tmp_path_factory.mktemp("videos")
    (root / "day 1").mkdir()
    write_video(root / "a.mp4", moving_frames(20, 32, 32), fps=10)
    write_video(root / "day 1/b.mp4", moving_frames(20, 32, 32), fps=10)
    write_frames(root / "c", moving_frames(20, 32, 32), name="frame_{:06d}.png", first=0)
    return root


def convert(videos: Path, name: str, content: Any, *options: str, code: int = 0) -> list[tuple[str, str]]:
    """Id and class of the records of the list that the command makes."""
    export = videos.parent / name
    export.write_text(content if isinstance(content, str) else json.dumps(content))
    out = videos.parent / "made/list.csv"
    assert cli.main(["prepare", "labels", str(export), "--videos", str(videos), "--out", str(out), *options]) == code
    if code == 2:
        return []
    table = load_records(out)
    prefix = f"../{videos.name}/"
    assert all(record.id.startswith(prefix) and table.classes for record in table)
    return [(record.id.removeprefix(prefix), (table.classes or ())[record.label]) for record in table]


def task(number: int, video: str, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A task of Label Studio's JSON with one annotation, https://labelstud.io/guide/task_format."""
    annotation = {
        "id": 1000 + number,
        "completed_by": 1,
        "result": list(results),
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2024-03-09T22:16:08.728353Z",
        "updated_at": "2024-03-09T22:16:08.728378Z",
        "lead_time": 4.288,
        "prediction": {},
        "result_count": 1,
        "task": number,
        **more,
    }
    return {
        "id": number,
        "annotations": [annotation],
        "file_upload": "3a5f8e21-a.mp4",
        "drafts": [],
        "predictions": [],
        "data": {"video": video, "title": "What is it?"},
        "meta": {},
        "created_at": "2024-03-09T21:52:49.513742Z",
        "updated_at": "2024-03-09T22:16:08.746926Z",
        "project": 83,
    }


def choice(*labels: str, name: str = "action") -> dict[str, Any]:
    value = {"choices": list(labels)}
    return {"value": value, "id": "VxQ", "from_name": name, "to_name": "video", "type": "choices", "origin": "manual"}


def timeline(label: str, start: int, end: int) -> dict[str, Any]:
    value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]}
    return {"value": value, "id": "Nd1", "from_name": "what", "to_name": "video", "type": "timelinelabels"}


def test_label_studio_choices(videos):
    skipped = task(3, "/data/upload/83/0b2c9b11-gone.mp4", choice("run"), was_cancelled=True)
    box = {
        "value": {"framesCount": 20, "sequence": [], "labels": ["man"]},
        "from_name": "box",
        "type": "videorectangle",
    }
    export = [
        task(1, "/data/upload/83/3a5f8e21-a.mp4", choice("jump rope"), box, {"from_id": "VxQ", "type": "relation"}),
        task(2, "/data/local-files/?d=clips/day%201/b.mp4", choice("run")),
        skipped,
    ]
    expected = [("a.mp4", "jump rope"), ("day 1/b.mp4", "run")]
    assert convert(videos, "project.json", export) == expected
    assert (videos.parent / "made/list.csv").read_text().splitlines()[0] == "path,start,end,class"
    small = [
        {"video": "s3://bucket/a.mp4", "id": 1, "action": "jump rope", "annotator": 1, "annotation_id": 7},
        {
            "video": "https://host/x/day%201/b.mp4?X-Amz=1&k=2",
            "id": 2,
            "action": "run",
            "annotator": 1,
            "annotation_id": 8,
        },
    ]
    times = {"created_at": "2024-03-09T22:16:08Z", "updated_at": "2024-03-09T22:16:08Z", "lead_time": 4.2}
    data = {"rate": 25.0, "tags": ["x"], "none": None}  # of the task
    assert convert(videos, "min.json", [{**row, **times, **data} for row in small]) == expected
    small = [{**row, "was_cancelled": False} for row in small] + [{**small[0], "action": "x", "was_cancelled": True}]
    for name, separator in (("project.csv", ","), ("project.tsv", "\t")):
        text = io.StringIO()
        columns = [
            "action",
            "annotation_id",
            "annotator",
            "created_at",
            "id",
            "lead_time",
            "updated_at",
            "video",
            "was_cancelled",
        ]
        writer = csv.DictWriter(text, columns, delimiter=separator, quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows({**row, **times} for row in small)
        assert convert(videos, name, text.getvalue()) == expected


def test_label_studio_timelines(videos, capsys):
    """Frames are counted from 1, and both ends belong to the range."""
    parts = [timeline("jump", 1, 5), timeline("run", 6, 20), timeline("jump", 11, 15)]
    expected = [("a.mp4#t=0,0.5", "jump"), ("a.mp4#t=1,1.5", "jump"), ("a.mp4#t=0.5,2", "run")]
    assert sorted(convert(videos, "p.json", [task(1, "/data/upload/83/3a5f8e21-a.mp4", *parts)])) == sorted(expected)
    assert (videos.parent / "made/list.csv").read_text().splitlines()[0] == "path,start,end,class"
    value = [{"ranges": [{"start": 11, "end": 15}], "timelinelabels": ["jump"]}]
    row = {"video": "a.mp4", "id": 1, "what": value, "annotator": 1, "annotation_id": 7}
    assert convert(videos, "min.json", [row]) == [("a.mp4#t=1,1.5", "jump")]
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted(row), quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerow({**row, "what": json.dumps(value)})
    assert convert(videos, "p.csv", text.getvalue()) == [("a.mp4#t=1,1.5", "jump")]
    late = [task(1, "a.mp4", timeline("jump", 13, 24)), task(2, "b.mp4", choice("run", name="what"))]
    assert convert(videos, "p.json", late, "--fps", "24")[0] == ("a.mp4#t=0.5,1", "jump")
    assert convert(videos, "p.json", late, code=1) == [("day 1/b.mp4", "run")]
    assert "a.mp4: has 20 frames, not 24; counted at another rate (--fps)?" in capsys.readouterr().err


def test_label_studio_parts_in_seconds(videos):
    """Of the template for videos with their sound; what is said of a part stands for no more than it."""
    part = {"start": 0.5, "end": 1.25, "channel": 0}
    region = {"id": "r", "original_length": 2.0, "to_name": "audio"}
    results = [
        {**region, "value": {**part, "labels": ["jump"]}, "from_name": "what", "type": "labels"},
        {**region, "value": {**part, "choices": ["fast"]}, "from_name": "speed", "type": "choices"},
        {**region, "value": {"rating": 4}, "from_name": "stars", "type": "rating"},
        {**region, "value": {**part, "text": "x", "labels": ["word"]}, "from_name": "words", "type": "labels"},
    ]
    export = [task(1, "a.mp4", *results), {"id": 2, "data": {"text": "unlabelled"}, "annotations": []}]
    del export[0]["annotations"][0]["id"]
    assert convert(videos, "p.json", export, "--field", "what") == [("a.mp4#t=0.5,1.25", "jump")]
    assert convert(videos, "p.json", export, "--field", "speed") == [("a.mp4#t=0.5,1.25", "fast")]


def test_names_and_labels_with_signs_that_separate(videos, capsys):
    names = ("it's c=d.mp4", "run; jump, sit.mp4", "d.mp4")
    for name in names:
        (videos / name).hardlink_to(videos / "a.mp4")
    paths = [f"/data/upload/3/ab12cd34-{names[0]}", f"/data/local-files/?d={names[1]}", "/data/local-files/?d=d.mp4"]
    labels = ["tie, bow tie", "bow tie", "tie"]
    export = [task(i, path, choice(label)) for i, (path, label) in enumerate(zip(paths, labels, strict=True))]
    assert convert(videos, "p.json", export) == list(zip(names, labels, strict=True))
    export.append(task(9, "a.mp4", choice("[b] c", 'say "hi"')))
    convert(videos, "p.json", export, code=2)
    assert "some videos have several labels, which | separates in lists" in capsys.readouterr().err


def test_several_labels(videos):
    export = [task(1, "a.mp4", choice("jump", "run")), task(2, "b.mp4", choice("run"))]
    (videos.parent / "p.json").write_text(json.dumps(export))
    out = videos.parent / "several.csv"
    words = ["--videos", str(videos), "--out", str(out)]
    assert cli.main(["prepare", "labels", str(videos.parent / "p.json"), *words]) == 0
    assert list(csv.reader(out.open())) == [
        ["path", "start", "end", "class_names"],
        [f"{videos.name}/a.mp4", "", "", "jump|run"],
        [f"{videos.name}/day 1/b.mp4", "", "", "run"],
    ]
    table = load_records(out)
    assert (table.classes, table.sets is not None) == (("jump", "run"), True)
    row = {"video": "a.mp4", "id": 1, "action": {"choices": ["jump", "run"]}, "annotator": 1, "annotation_id": 7}
    (videos.parent / "min.json").write_text(json.dumps([row]))
    assert [mark.label for mark in read_export(videos.parent / "min.json")] == ["jump", "run"]


META = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>5</id>
      <name>my task</name>
      <size>20</size>
      <mode>interpolation</mode>
      <overlap>0</overlap>
      <bugtracker></bugtracker>
      <created>2024-03-09 11:51:51.000000+00:00</created>
      <updated>2024-03-09 11:51:51.000000+00:00</updated>
      <subset>default</subset>
      <start_frame>0</start_frame>
      <stop_frame>19</stop_frame>
      <frame_filter>{filter}</frame_filter>
      <segments><segment><id>1</id><start>0</start><stop>19</stop><url>http://localhost/api/jobs/1</url></segment></segments>
      <owner><username>me</username><email></email></owner>
      <assignee></assignee>
      <labels><label><name>jump</name><color>#fa3253</color><type>any</type><attributes></attributes></label></labels>
      <original_size><width>32</width><height>32</height></original_size>
      <source>a.mp4</source>
    </task>
    <dumped>2024-03-09 12:00:00.000000+00:00</dumped>
  </meta>
"""


def track(label: str, *shapes: tuple[int, int]) -> str:
    place = 'xtl="1.00" ytl="2.00" xbr="3.00" ybr="4.00" z_order="0"'
    box = f'<box frame="{{}}" keyframe="1" outside="{{}}" occluded="0" {place}>'
    boxes = "".join(f"    {box.format(*shape)}\n    </box>\n" for shape in shapes)
    return f'  <track id="0" label="{label}" source="manual">\n{boxes}  </track>\n'


def image(number: int, name: str, *labels: str) -> str:
    tags = "".join(f'    <tag label="{label}" source="manual">\n    </tag>\n' for label in labels)
    return f'  <image id="{number}" name="{name}" width="32" height="32">\n{tags}  </image>\n'


def test_cvat_for_video(videos):
    """A track is there from a shape to the next one that is outside, or to its last shape."""
    tracks = (
        track("jump", (0, 0), (5, 0), (10, 1))
        + track("run", (12, 0), (13, 0), (14, 0))
        + track("jump", (8, 0), (12, 1))
        + track("sit")
    )
    export = META.format(filter="") + tracks + "</annotations>\n"
    expected = [("a.mp4#t=0,1.2", "jump"), ("a.mp4#t=1.2,1.5", "run")]
    assert convert(videos, "annotations.xml", export) == expected
    with zipfile.ZipFile(videos.parent / "task.zip", "w") as archive:
        archive.writestr("annotations.xml", export)
    marks = read_export(videos.parent / "task.zip")
    assert [(mark.video, mark.label, mark.part) for mark in marks] == [
        ("a.mp4", "jump", range(12)),
        ("a.mp4", "run", range(12, 15)),
    ]


def test_attributes_of_cvat_are_fields(videos):
    """Those of a track hold always, those of its shapes from one to the next; labels are taken unless one is named."""
    how = '<attribute name="how">{}</attribute></box>'
    walk = track("man", (0, 0), (5, 0), (10, 1)).replace("\n    </box>", how.format("fast"), 1)
    walk = walk.replace("\n    </box>", how.format("slow")).replace(
        "  </track>", '<attribute name="who">me</attribute></track>'
    )
    export = META.format(filter="") + walk + "</annotations>\n"
    assert convert(videos, "a.xml", export) == [("a.mp4#t=0,1", "man")]
    assert convert(videos, "a.xml", export, "--field", "how") == [("a.mp4#t=0,0.5", "fast"), ("a.mp4#t=0.5,1", "slow")]
    assert convert(videos, "a.xml", export, "--field", "who") == [("a.mp4#t=0,1", "me")]
    tag = image(0, "frame_000000", "man").replace("\n    </tag>", '<attribute name="how">slow</attribute></tag>')
    export = META.format(filter="") + tag + "</annotations>\n"
    assert convert(videos, "a.xml", export, "--field", "how") == [("a.mp4", "slow")]


def test_cvat_for_images(videos):
    frames = [image(i, f"frame_{i:06d}", *(["jump"] * (i < 5) + ["run"] * (i >= 3))) for i in range(20)]
    export = META.format(filter="") + "".join(frames) + "</annotations>\n"
    assert convert(videos, "annotations.xml", export) == [("a.mp4#t=0,0.5", "jump"), ("a.mp4#t=0.3,2", "run")]
    export = META.format(filter="step=5") + image(5, "frame_000005", "jump") + image(10, "frame_000010", "jump")
    assert convert(videos, "annotations.xml", export + "</annotations>\n") == [("a.mp4#t=0.5,1.5", "jump")]
    export = META.format(filter="step=3") + image(18, "frame_000018", "run") + track("jump", (15, 0), (18, 0))
    expected = [("a.mp4#t=1.8,2", "run"), ("a.mp4#t=1.5,2", "jump")]  # the last frame shown stands for the last two
    assert sorted(convert(videos, "annotations.xml", export + "</annotations>\n")) == sorted(expected)
    one = META.format(filter="") + image(0, "frame_000000", "jump") + image(1, "frame_000001") + "</annotations>\n"
    assert convert(videos, "annotations.xml", one) == [("a.mp4", "jump")]
    pictures = [image(i, f"set/c/frame_{i:06d}.png", *(["jump"] * (2 <= i < 6))) for i in range(20)]
    export = META.format(filter="").replace("<source>a.mp4</source>", "") + "".join(pictures) + "</annotations>\n"
    assert convert(videos, "annotations.xml", export) == [("c#frames=2,6", "jump")]
    # A task of some pictures, sorted as text, and called as their folder: their numbers count.
    write_frames(videos / "my task", moving_frames(12, 32, 32), name="{}.png")
    pictures = [image(i, f"{n}.png", *["jump"] * (n > 8)) for i, n in enumerate((10, 11, 12, 8, 9))]
    export = META.format(filter="").replace("<source>a.mp4</source>", "") + "".join(pictures) + "</annotations>\n"
    assert convert(videos, "annotations.xml", export) == [("my task#frames=8,12", "jump")]
    assert convert(videos, "annotations.xml", export.replace("12.png", "13.png"), code=2) == []


def test_cvat_project(videos):
    names = {5: "a.mp4", 6: "b.mp4"}
    tasks = "".join(f"<task><id>{i}</id><name>t{i}</name><source>{name}</source></task>" for i, name in names.items())
    export = f"<annotations><version>1.1</version><meta><project><id>1</id><tasks>{tasks}</tasks></project></meta>"
    export += "".join(track("run", (0, 0), (10, 1)).replace('id="0"', f'id="0" task_id="{i}"') for i in names)
    expected = [("a.mp4#t=0,1", "run"), ("day 1/b.mp4#t=0,1", "run")]
    assert convert(videos, "annotations.xml", export + "</annotations>") == expected


def via(metadata: dict[str, Any]) -> dict[str, Any]:
    """A project file of VIA 3, as of its documentation."""
    attribute = {"anchor_id": "FILE1_Z2_XY0", "type": 4, "desc": "", "default_option_id": ""}
    return {
        "project": {
            "pid": "__VIA_PROJECT_ID__",
            "rev": "1",
            "pname": "x",
            "created": 1730137889755,
            "vid_list": ["1", "2"],
        },
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}, "ui": {}},
        "attribute": {
            "1": {"aname": "TEMPORAL-SEGMENTS", **attribute, "options": {"1": "jump rope", "2": "run"}},
            "2": {"aname": "box", **attribute, "anchor_id": "FILE1_Z1_XY1", "options": {"0": "man"}},
            "3": {"aname": "TEMPORAL-SEGMENTS", **attribute, "type": 2, "options": {"7": "outdoors", "8": "night"}},
        },
        "file": {
            "1": {"fid": "1", "fname": "a.mp4", "type": 4, "loc": 1, "src": ""},
            "2": {"fid": "2", "fname": "b.mp4", "type": 4, "loc": 2, "src": "http://host/b.mp4"},
        },
        "metadata": metadata,
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
    }


def test_via(videos):
    metadata = {
        "1_j5sJvB9h": {"vid": "1", "flg": 0, "z": [0.25, 1.5], "xy": [], "av": {"1": "1"}},
        "1_zYQJk2sM": {"vid": "1", "flg": 0, "z": [0.4], "xy": [2, 1, 1, 5, 5], "av": {"2": "0"}},
        "2_vL68gsEX": {"vid": "2", "flg": 0, "z": [], "xy": [], "av": {"1": "run"}},
    }
    assert convert(videos, "via.json", via(metadata)) == [("a.mp4#t=0.25,1.5", "jump rope"), ("day 1/b.mp4", "run")]
    metadata["1_j5sJvB9h"]["z"] = [1.5, 0.25]
    assert convert(videos, "via.json", via(metadata), code=1) == [("day 1/b.mp4", "run")]
    metadata = {"1_x": {"vid": 1, "flg": 0, "z": [0, 1], "xy": [], "av": {"1": 2, "9": "deleted"}}}
    project = via(metadata) | {"view": {"1": {"fid_list": [1]}}}  # as scripts write it
    assert convert(videos, "via.json", project) == [("a.mp4#t=0,1", "run")]
    boxes = {"1_j5sJvB9h": {"vid": "1", "flg": 0, "z": [0.25, 1.5], "xy": [], "av": {"3": "7,8"}}}
    (videos.parent / "via.json").write_text(json.dumps(via(boxes)))
    assert [mark.label for mark in read_export(videos.parent / "via.json")] == ["outdoors", "night"]


def test_names_that_are_numbers_stay_names_of_several_labels(videos):
    marks = [Mark("a.mp4", "3"), Mark("a.mp4", "17"), Mark("b.mp4", "17")]
    assert write_label_list(marks, videos.parent / "list.csv", videos=videos)["rows"] == 2
    table = load_records(videos.parent / "list.csv")
    assert (table.classes, [record.label for record in table]) == (("17", "3"), [(0, 1), (0,)])


def test_a_segment_beyond_the_end_of_its_video_is_named(videos, capsys):
    def marks(*ends: float) -> dict[str, Any]:
        times = {
            f"1_{n}": {"vid": "1", "flg": 0, "z": [1, end], "xy": [], "av": {"1": "1"}} for n, end in enumerate(ends)
        }
        return via(times)

    assert convert(videos, "via.json", marks(2.1)) == [("a.mp4#t=1,2.1", "jump rope")]  # sound may last longer
    assert convert(videos, "via.json", marks(2, 9), code=1) == [("a.mp4#t=1,2", "jump rope")]
    assert "a.mp4: has a segment from 1 to 9 s, and lasts 2 s" in capsys.readouterr().err


def test_what_cannot_be_used_is_named(videos, capsys):
    export = [task(1, "a.mp4", choice("jump")), task(2, "x/gone.mp4", choice("run"))]
    assert convert(videos, "p.json", export, code=1) == [("a.mp4", "jump")]
    assert "left out: x/gone.mp4: not the name of one video in" in capsys.readouterr().err
    two = task(1, "a.mp4", choice("jump"))
    two["annotations"] += task(9, "a.mp4", choice("run"))["annotations"]
    assert convert(videos, "p.json", [two, task(2, "b.mp4", choice("run"))], code=1) == [("day 1/b.mp4", "run")]
    assert "a.mp4: 2 annotations of it differ; keep one" in capsys.readouterr().err
    fields = [task(1, "a.mp4", choice("jump"), choice("night", name="light"))]
    convert(videos, "p.json", fields, code=2)
    assert "several questions or attributes: choose by --field: action, light" in capsys.readouterr().err
    assert convert(videos, "p.json", fields, "--field", "light") == [("a.mp4", "night")]
    convert(videos, "p.json", [task(1, "gone.mp4", choice("run"))], code=2)
    assert "no labelled video of the export is in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("path,label\na.mp4,0\n", "a task names no video|no labels|annotation_id"),
        ("{}", "KeyError: 'metadata'"),
        ("[1, 2]", "AttributeError"),
        (
            '[{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [{"value": {}}]}]}]',
            "ValueError: a task names no video",
        ),
        ("<html></html>", "ValueError: there are no labels in it"),
        ("<annotations>", "ParseError"),
        ('[{"id": 1', "JSONDecodeError"),
        ("\x00\xff", "no labels"),
    ],
)
def test_other_files_are_refused_with_what_was_expected(tmp_path, content, reason):
    (tmp_path / "export").write_text(content)
    with pytest.raises(DataError, match=rf"(?s)export: expected JSON, JSON-MIN, CSV or TSV of Label Studio.*{reason}"):
        read_export(tmp_path / "export")
