"""Verifying a data set: its rows, its videos, and copies among them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from gcvideo.cli import main
from gcvideo.config import RunConfig, SplitConfig
from gcvideo.data.annotations import load_records
from gcvideo.data.bad_videos import Quarantine
from gcvideo.data.splits import load_split
from gcvideo.errors import DataError
from gcvideo.files import Journal
from gcvideo.prepare import verify as verifying
from gcvideo.prepare.jobs import Part, PartDone, stamp_of
from gcvideo.prepare.verify import Finding, report_path, verify, verify_video
from tests.processes import killed_after_rows
from tests.videos import moving_frames, remux, write_video
from tests.zoo import STREAMS


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", noise, gop=12)


def damaged(clip: Path, copy: Path, *pictures: int) -> Path:
    """The same with 60 bytes in the middle of each of these coded pictures overwritten."""
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for number in pictures:
        middle = packets[number].pos + packets[number].size // 2
        content[middle : middle + 60] = bytes(range(60))
    copy.write_bytes(content)
    return copy


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Six videos of different pictures, 0.mp4 to 5.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_video(folder / f"{number}.mp4", moving_frames(25, seed=number))
    return folder


@pytest.fixture
def place(videos, tmp_path) -> Path:
    """A folder of one's own with them."""
    for path in videos.iterdir():
        os.link(path, tmp_path / path.name)
    return tmp_path


def write_list(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def found(findings: list[Finding], kind: str) -> list[tuple[int, str]]:
    return [(finding.line, finding.reason) for finding in findings if finding.kind == kind]


# --- videos ---


def test_a_sound_video_is_sound(clip):
    row = verify_video(str(clip))
    assert (row["kind"], row["frames"], row["pictures"]) == ("sound", 24, [])


@pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "mpeg4"])
def test_sound_videos_of_other_codecs_are_read_by_pyav_and_it_says_why(tmp_path, codec):
    row = verify_video(str(write_video(tmp_path / "clip.mkv", moving_frames(12), codec=codec)))
    assert (row["kind"], row["frames"], row["reason"]) == ("pyav", 12, "not an MP4 file")


@pytest.mark.parametrize("pictures", [(3,), (7, 15), (23,)])
def test_damaged_pictures_are_numbered(clip, tmp_path, pictures):
    row = verify_video(str(damaged(clip, tmp_path / "damaged.mp4", *pictures)))
    assert row["kind"] == "damaged"
    assert set(pictures) <= set(row["pictures"])
    others = set(range(24)) - {after for number in pictures for after in range(number, 12 * (number // 12 + 1))}
    assert not others & set(row["pictures"])  # before the damage, and from the next key picture on
    assert f"is damaged at frame{'s' * (len(row['pictures']) > 1)} {pictures[0]}" in row["reason"]


def test_damaged_pictures_have_the_numbers_of_the_order_shown(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (13, 48, 64, 3), dtype=np.uint8)
    options = {"preset": "medium", "x264-params": "cabac=0:scenecut=0:bframes=2:b-adapt=0:b-pyramid=0:threads=1"}
    clip = write_video(tmp_path / "clip.mp4", noise, gop=13, options=options)
    with av.open(str(clip)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    shown = sorted(times).index(times[2])
    assert shown != 2
    assert verify_video(str(damaged(clip, tmp_path / "damaged.mp4", 2)))["pictures"] == [shown]


def test_a_file_that_ends_early_and_one_that_cannot_be_opened(clip, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert verify_video(str(tmp_path / "empty.mp4")) == {"kind": "refused", "reason": "is empty"}
    assert verify_video(str(tmp_path / "gone.mp4")) == {"kind": "missing", "reason": "does not exist"}


@pytest.mark.parametrize("name", ["short_1_h264.flv", "short_1_h264_fragments.mp4", "late_start_hevc.ts"])
def test_recordings_that_begin_or_end_in_a_picture_are_sound_as_readers_leave_it_out(name, tmp_path):
    STREAMS[name].make(tmp_path)
    assert verify_video(str(tmp_path / name))["kind"] == "pyav"


@pytest.mark.parametrize("picture", [0, 23])
def test_damage_at_the_ends_of_a_whole_file_counts(clip, tmp_path, picture):
    row = verify_video(str(damaged(clip, tmp_path / "damaged.mp4", picture)))
    assert (row["kind"], picture in row["pictures"]) == ("damaged", True)


def test_a_cover_picture_is_not_the_video(tmp_path):
    clip = write_video(tmp_path / "clip.mkv", moving_frames(12), codec="mpeg4")
    with av.open(str(clip)) as old, av.open(str(tmp_path / "covered.mp4"), "w") as new:
        cover = new.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        copy = new.add_stream_from_template(old.streams.video[0])
        picture = av.VideoFrame.from_ndarray(moving_frames(1)[0], format="rgb24").reformat(format="yuvj420p")
        new.mux(cover.encode(picture))
        new.mux(cover.encode(None))
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    row = verify_video(str(tmp_path / "covered.mp4"))
    assert (row["kind"], row["frames"]) == ("pyav", 12)


@pytest.mark.parametrize(
    "name", ["concat:a|b.mp4", "-x.mp4", "http:.mp4", "file:x.mp4", "pipe:0", "x%03d.mp4", "subfile,,start,0,end,9,,:x"]
)
def test_names_that_look_like_something_else_are_file_names(clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, tmp_path / name)
    assert verify_video(name)["frames"] == 24


def test_real_videos(shared):
    """A file that its makers call corrupted is not sound; one from a camera, in an old codec, is."""
    assert verify_video(str(shared / "videos" / "decord" / "corrupted.mp4"))["pictures"] == [30, 34]
    hmdb = "RATRACE_wave_f_nm_np1_fr_goo_37.avi"
    assert verify_video(str(shared / "videos" / "torchvision" / hmdb))["kind"] == "pyav"


def test_ranges_of_numbers():
    assert verifying._ranges([3, 7, 8, 9, 11]) == "3, 7-9, 11"
    assert verifying._ranges(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14 ..."


# --- rows ---


def test_a_messy_list_is_reported_whole_and_training_then_takes_it(place, clip):
    damaged(clip, place / "damaged.mp4", 3)
    (place / "empty.mp4").write_bytes(b"")
    rows = ["0.mp4 0", "1.mp4 1", "gone.mp4 1", "2.mp4 0", "garbage", "2.mp4 1", "3.mp4 jump", "damaged.mp4 1"]
    rows += ["", "empty.mp4 0", "also gone.mp4 0", "4.mp4 1", "4.mp4 1", "5.mp4 0,1"]
    messy = write_list(place / "list.txt", *rows)
    result = verify([messy], place / "bad.jsonl", workers=1)
    assert (result.rows, result.sound, len(result.problems)) == (13, 3, 9)
    kinds = Counter(finding.kind for finding in result.findings)
    assert kinds == {"missing": 2, "row": 3, "conflict": 2, "damaged": 1, "refused": 1, "repeated": 1}
    assert [line for line, _ in found(result.findings, "missing")] == [3, 11]
    reasons = dict(found(result.findings, "row"))
    assert reasons[5] == "expected `path label` as in the other rows, found 'garbage'"
    assert reasons[7].startswith("label 'jump' is a name among numbers")
    assert "is neither a whole number nor one name" in reasons[14]
    assert dict(found(result.findings, "conflict")) == {
        4: "2.mp4 has another label than in line 6; remove one line ('0' here, '1' there)",
        6: "2.mp4 has another label than in line 4; remove one line ('1' here, '0' there)",
    }
    assert [json.loads(line) for line in report_path(place / "bad.jsonl").read_text().splitlines()] == [
        finding._asdict() for finding in result.findings
    ]
    with pytest.raises(DataError, match=r"list.txt:3: .*no such video file.* \(the first of "):
        load_records(messy)
    config = RunConfig()
    config.model.num_classes, config.data.quarantine = 2, str(place / "bad.jsonl")
    records = load_split(config, SplitConfig(annotation=str(messy)), name="training")
    bad = Quarantine(records, known=config.data.quarantine, training=True)
    assert [record.id for index, record in enumerate(records) if not bad.is_bad(index, 0)] == [
        "0.mp4",
        "1.mp4",
        "4.mp4",
        "4.mp4",
    ]


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (["0.mp4 jump", "1.mp4 run", "2.mp4 0", "3.mp4 run"], [3]),
        (["0.mp4 0", "1.mp4 run", "2.mp4 0", "3.mp4 run", "4.mp4 run"], [1, 3]),  # most rows decide, not the first
        (["0.mp4 0 1", "1.mp4 0", "2.mp4 1"], [1]),
        (["0.mp4 7 x 1", "1.mp4 250 0", "2.mp4 250 1"], [1]),
    ],
)
def test_the_odd_row_is_the_one_that_differs_from_most(place, rows, lines):
    result = verify([write_list(place / "list.txt", *rows)], place / "bad.jsonl", workers=1)
    assert [finding.line for finding in result.problems] == lines


def test_a_link_to_itself_hides_no_other_file(place):
    os.symlink("loop.mp4", place / "loop.mp4")
    rows = write_list(place / "list.txt", "0.mp4 0", "loop.mp4 0", "1.mp4 1")
    result = verify([rows], place / "bad.jsonl", workers=1)
    assert [(finding.kind, finding.line) for finding in result.findings] == [("missing", 2)]


def test_many_rows_of_one_video_are_compared_by_kind_and_not_by_pairs(place, monkeypatch):
    rows = [f"0.mp4 {label}" for label in [*[0] * 500, 1]] + ["1.mp4 1"] * 500
    (place / "one.txt").write_text("\n".join(rows[500:]) + "\n")
    (place / "two.txt").write_text("\n".join(rows[:500]) + "\n")
    calls = []
    compare = verifying._compare
    monkeypatch.setattr(verifying, "_compare", lambda *args: calls.append(args) or compare(*args))
    result = verify([place / "one.txt", place / "two.txt"], place / "bad.jsonl", workers=1)
    assert Counter(finding.kind for finding in result.findings) == {"conflict": 501, "repeated": 998, "leak": 1}
    assert len(calls) == 1


@pytest.mark.slow
def test_videos_that_kill_or_stall_the_decoder_are_named(place, monkeypatch):
    def behave(path: str) -> dict[str, object]:
        if "1.mp4" in path:
            os.kill(os.getpid(), 11)
        if "2.mp4" in path:
            time.sleep(60)
        return verify_video(path)

    monkeypatch.setattr(verifying, "verify_video", behave)
    rows = write_list(place / "list.txt", "0.mp4 0", "1.mp4 0", "2.mp4 0")
    result = verify([rows], place / "bad.jsonl", workers=1, seconds=1)
    assert found(result.findings, "failed") == [
        (2, "its process died of SIGSEGV"),
        (3, "took longer than 1 s"),
    ]
    assert result.sound == 1


def test_names_that_are_no_utf8_stay_what_they_are(place):
    os.rename(place / "0.mp4", os.fsencode(place / "caf") + b"\xe9.mp4")
    (place / "set").mkdir()
    os.rename(os.fsencode(place / "caf") + b"\xe9.mp4", os.fsencode(place / "set" / "caf") + b"\xe9.mp4")
    (place / "set" / "empty").mkdir()
    with open(os.fsencode(place / "set" / "bad") + b"\xe9.mp4", "wb"):
        pass
    (place / "classes").mkdir()
    os.rename(place / "set", place / "classes" / "set")
    verify([place / "classes"], place / "bad.jsonl", workers=1)
    records = load_records(place / "classes")
    bad = Quarantine(records, known=place / "bad.jsonl")
    assert [bad.is_bad(index, 0) for index in range(2)] == [True, False]


def test_segments_that_lie_beyond_the_end_overlap_or_say_other_times(place):
    rows = ["path,start,end,label", "0.mp4,0,0.9,0", "0.mp4,5,9,0", "1.mp4,0,0.8,0", "1.mp4,0.1,0.9,1"]
    rows += ["2.mp4,0,0.5,0", "2.mp4,0.5,1,1", "3.mp4,0,0.8,1", "3.mp4,0,0.9,1", "4.mp4,0,1,1", "4.mp4,0,1,1"]
    result = verify([write_list(place / "list.txt", *rows)], place / "bad.jsonl", workers=1)
    assert found(result.findings, "segment") == [(3, "its segment from 5 to 9 s lies beyond its end (1.00 s)")]
    conflicts = dict(found(result.findings, "conflict"))
    assert sorted(conflicts) == [4, 5, 9]  # and of rows that agree but for their times, the first one stays
    assert conflicts[4].endswith("list.txt:5, label '0' here, '1' there")
    assert conflicts[9].endswith("list.txt:8 with other times, 0 to 0.9 s here, 0 to 0.8 s there")
    assert [line for line, _ in found(result.findings, "repeated")] == [11]
    assert result.videos == 5


def test_kinetics_rows_without_videos_are_missing(place):
    os.rename(place / "0.mp4", place / "AAAAAAAAAAA_000001_000011.mp4")
    rows = ["label,youtube_id,time_start,time_end,split", "a,AAAAAAAAAAA,1,11,train", "a,BBBBBBBBBBB,1,11,train"]
    result = verify([write_list(place / "k.csv", *rows)], place / "bad.jsonl", workers=1)
    assert [(finding.kind, finding.line, finding.id) for finding in result.findings] == [
        ("missing", 3, "BBBBBBBBBBB_000001_000011")
    ]


# --- copies ---


def test_copies_of_test_videos_are_left_out_of_training_only(place):
    shutil.copy(place / "1.mp4", place / "same bytes.mp4")
    remux(place / "2.mp4", place / "container.mkv")
    frames = moving_frames(25, seed=3)[:, ::2, ::2]
    options = {"crf": "30", "threads": "1"}
    write_video(place / "small.webm", frames, codec="libvpx-vp9", options={"deadline": "realtime", **options})
    train = write_list(place / "train.txt", "0.mp4 0", "same bytes.mp4 1", "container.mkv 0", "small.webm 1", "4.mp4 0")
    test = write_list(place / "test.txt", "1.mp4 1", "2.mp4 0", "3.mp4 1", "5.mp4 0", "4.mp4 0")
    result = verify([train, test], place / "bad.jsonl", workers=1)
    leaks = [(Path(f.list).name, f.line, f.reason.split(" as ")[0]) for f in result.findings if f.kind == "leak"]
    assert leaks == [
        ("train.txt", 2, "the same clip"),
        ("train.txt", 3, "the same pictures"),
        ("train.txt", 4, "the same pictures"),
        ("train.txt", 5, "the same clip"),
    ]
    assert len(result.problems) == 4
    known = place / "bad.jsonl"
    trained, tested = (Quarantine(load_records(path), known=known, training=path is train) for path in (train, test))
    assert [trained.is_bad(row, 0) for row in range(5)] == [False, True, True, True, True]
    assert not any(tested.is_bad(row, 0) for row in range(5))  # 4.mp4 stands in both


def test_a_bad_video_is_not_mistaken_for_one_of_the_same_name_in_another_split(place, clip, capsys):
    for split in ("train", "val"):
        (place / split / "jump").mkdir(parents=True)
    damaged(clip, place / "train/jump/1.mp4", 7)
    os.rename(place / "1.mp4", place / "val/jump/1.mp4")
    assert main(["prepare", "verify", f"{place}/train", "--out", str(place / "bad.jsonl"), "--workers", "1"]) == 1
    assert f"damaged: {place}/train: jump/1.mp4: is damaged" in capsys.readouterr().out
    train, val = (Quarantine(load_records(place / s), known=place / "bad.jsonl") for s in ("train", "val"))
    assert (train.is_bad(0, 0), val.is_bad(0, 0)) == (True, False)
    assert f"1 videos of {place / 'val'} only have the names of bad ones" in capsys.readouterr().err
    os.rename(place / "train", place / "moved")
    assert Quarantine(load_records(place / "moved"), known=place / "bad.jsonl").is_bad(0, 0)


def test_a_split_column_gives_the_lists(place):
    rows = ["path,label,split", "0.mp4,0,test", "0.mp4,0,train", "1.mp4,1,train"]
    result = verify([write_list(place / "list.csv", *rows)], place / "bad.jsonl", workers=1)
    assert [(finding.kind, finding.line) for finding in result.findings] == [("leak", 3)]


def test_a_class_that_no_training_list_has_is_named(place):
    train, test = (
        write_list(place / "train.txt", "0.mp4 jump"),
        write_list(place / "test.txt", "1.mp4 jump", "2.mp4 jmp"),
    )
    result = verify([train, test], place / "bad.jsonl", workers=1)
    assert found(result.findings, "row") == [(2, "no earlier list has the class 'jmp'")]
    assert result.sound == 2


def test_one_video_with_two_labels_in_two_lists_or_under_two_names(place):
    shutil.copy(place / "1.mp4", place / "again.mp4")
    write_video(place / "encoded.mkv", moving_frames(25, seed=2), codec="mpeg4")
    one = write_list(place / "one.txt", "0.mp4 0", "1.mp4 0", "again.mp4 1", "2.mp4 0", "encoded.mkv 1")
    two = write_list(place / "two.txt", "0.mp4 1")
    result = verify([one, two], place / "bad.jsonl", workers=1)
    places = [(finding.kind, Path(finding.list).name, finding.line) for finding in result.findings]
    assert ("conflict", "one.txt", 1) in places
    assert ("conflict", "two.txt", 1) in places
    assert {("conflict", "one.txt", 2), ("conflict", "one.txt", 3)} < set(places)
    assert {("alike", "one.txt", 4), ("alike", "one.txt", 5)} < set(places)
    listed = [json.loads(line)["id"] for line in (place / "bad.jsonl").read_text().splitlines()]
    assert "encoded.mkv" not in listed  # it only looks the same
    assert {"0.mp4", "1.mp4", "again.mp4"} <= set(listed)


def test_official_folders_are_two_lists(place):
    for name in ("Jump", "Run"):
        (place / name).mkdir()
    os.rename(place / "0.mp4", place / "Jump" / "a.mp4")
    shutil.copy(place / "Jump" / "a.mp4", place / "Run" / "b.mp4")
    write_list(place / "classInd.txt", "1 Jump", "2 Run")
    write_list(place / "trainlist01.txt", "Jump/a.avi 1")
    write_list(place / "testlist01.txt", "Run/b.avi")
    result = verify([place], place / "bad.jsonl", root=place, workers=1)
    assert Counter(finding.kind for finding in result.findings) == {"conflict": 2, "leak": 1}


@pytest.mark.parametrize("seed", range(3))
def test_different_videos_are_not_alike(place, seed):
    for number in range(6):
        (place / f"{number}.mp4").unlink()
        write_video(place / f"{number}.mp4", moving_frames(25, seed=100 * seed + number))
    still = np.repeat(moving_frames(1, seed=seed), 25, axis=0)
    black = np.zeros((25, 48, 64, 3), np.uint8)
    write_video(place / "still.mp4", still)
    write_video(place / "black.mp4", black)
    write_video(place / "black.mkv", black + 1, codec="mpeg4")
    names = [path.name for path in sorted(place.iterdir())]
    train = write_list(place / "train.txt", *(f"{name} 0" for name in names[::2]))
    test = write_list(place / "test.txt", *(f"{name} 0" for name in names[1::2]))
    assert verify([train, test], place / "bad.jsonl", workers=1).problems == []


# --- the command ---


def test_exit_codes_and_json(place, capsys):
    good = write_list(place / "good.txt", "0.mp4 0", "1.mp4 1")
    bad = write_list(place / "bad.txt", "0.mp4 0", "1.mp4 1", *(f"gone{i}.mp4 0" for i in range(7)))
    tail = ["--workers", "1", "--json", str(place / "j.json")]
    assert main(["prepare", "verify", str(good), *tail]) == 0
    assert json.loads((place / "j.json").read_text())["findings"] == []
    assert (place / "good.txt.quarantine.jsonl").read_text() == ""
    capsys.readouterr()
    assert main(["prepare", "verify", str(bad), *tail]) == 1
    note = json.loads((place / "j.json").read_text())
    assert (note["rows"], note["sound"], note["problems"], note["kinds"]["missing"]) == (9, 2, 7, 7)
    assert len(note["findings"]) == 7
    printed = capsys.readouterr().out
    assert "no such file      7" in printed
    assert f"missing: {bad}:3: gone0.mp4" in printed
    assert "missing: and 2 more, see" in printed
    assert main(["prepare", "verify", str(place / "nowhere.txt")]) == 2
    assert main(["prepare", "verify", str(good), "--part", "3/2"]) == 2


# --- parts ---


def outputs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("launcher", ["--part", "torchrun", "srun"])
def test_parts_put_together_are_one_run_and_each_video_is_decoded_once(place, clip, monkeypatch, launcher):
    damaged(clip, place / "damaged.mp4", 3)
    rows = write_list(place / "list.txt", *(f"{i}.mp4 0" for i in range(6)), "damaged.mp4 1", "gone.mp4 0", "0.mp4 1")
    test = write_list(place / "test.txt", "1.mp4 0", "damaged.mp4 1")
    log = place / "log"

    def noting(path: str) -> dict[str, object]:
        with log.open("a") as file:
            file.write(f"{Path(path).name}\n")
        return verify_video(path)

    monkeypatch.setattr(verifying, "verify_video", noting)
    call = ["prepare", "verify", str(rows), str(test), "--workers", "1", "--out"]
    assert main([*call, str(place / "whole" / "bad.jsonl"), "--json", str(place / "whole.json")]) == 1
    log.unlink()
    names = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_PROCID", "SLURM_NTASKS")}.get(launcher, ())
    out = [str(place / "parts" / "bad.jsonl")]
    for number in range(3):
        part = ["--part", f"{number + 1}/3"] if launcher == "--part" else []
        with monkeypatch.context() as patch:
            for name, value in zip(names, (number, 3)):  # noqa: B905
                patch.setenv(name, str(value))
            assert main([*call, *out, *part, "--json", str(place / "p.json")]) == 0
        assert not (place / "parts" / "bad.jsonl").exists()
    assert json.loads((place / "p.part-2-of-3.json").read_text()) == {"part": 2, "of": 3, "videos": 2, "failed": 0}
    assert sorted(log.read_text().split()) == [*(f"{i}.mp4" for i in range(1, 6)), "damaged.mp4"]
    assert main([*call, *out, "--json", str(place / "parts.json")]) == 1
    assert len(log.read_text().split()) == 6  # nothing was decoded again
    assert outputs(place / "parts") == outputs(place / "whole")
    whole, parts = (json.loads((place / f"{name}.json").read_text()) for name in ("whole", "parts"))
    assert {**whole, "quarantine": 0, "report": 0} == {**parts, "quarantine": 0, "report": 0}


def test_a_part_that_was_killed_resumes(place, tmp_path):
    rows, out = write_list(place / "list.txt", *(f"{i}.mp4 0" for i in range(6))), place / "bad.jsonl"
    killed_after_rows(1, partial(verify, [rows], out, workers=1, part=Part(1, 2)), tmp_path / "said.txt")
    assert len(Journal(f"{out}.partial", {"format": 2}).rows()) == 1
    first = load_records(rows)[0].path
    Journal(f"{out}.partial", {"format": 2}).add(first, {"kind": "sound", "frames": 1, "seconds": 0.0}, stamp_of(first))
    for number in (1, 2):
        with pytest.raises(PartDone, match=rf"part {number}/2 is done \(3 videos, 0 failed\)"):
            verify([rows], out, workers=1, part=Part(number, 2))
    result = verify([rows], out, workers=1)
    assert (result.videos, result.sound) == (6, 6)
    assert result.frames == 5 * 25 + 1  # the first one was not decoded again


def test_the_whole_job_does_what_a_part_left(place):
    rows = write_list(place / "list.txt", *(f"{i}.mp4 0" for i in range(6)))
    with pytest.raises(PartDone):
        verify([rows], place / "bad.jsonl", workers=1, part=Part(2, 2))
    assert verify([rows], place / "bad.jsonl", workers=1).frames == 150
    assert not list(place.glob("bad.jsonl.partial*"))
