"""Sharing a job among processes."""

from __future__ import annotations

import argparse

import pytest

from gcvideo.errors import ConfigError
from gcvideo.prepare.jobs import Part

LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


def parse(*arguments: str) -> Part:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part")
    return Part.from_args(parser.parse_args(arguments))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_every_item_is_in_one_part(count):
    items = [f"{i}.mp4" for i in range(10)]
    shares = [Part(number, count).share(items) for number in range(1, count + 1)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_job_is_whole_unless_it_is_told_otherwise():
    assert parse() == Part(1, 1)
    assert parse().is_whole
    assert parse("--part", "1/1").is_whole
    assert parse("--part", "2/4") == Part(2, 4)


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "-1/4", "1/4/2", "a/b", "1 / 4", ""])
def test_a_part_that_is_none_gets_one_line(text):
    with pytest.raises(ConfigError, match="--part: expected I/N with I from 1 to N"):
        parse(f"--part={text}")


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"RANK": "2", "WORLD_SIZE": "4"}, Part(3, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Part(1, 1)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Part(2, 2)),
        ({"SLURM_PROCID": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}, Part(2, 3)),
        # torchrun started by srun on each machine: the ranks of torchrun count
        ({"RANK": "5", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Part(6, 8)),
        # the script of a batch job itself, with `--ntasks=4`: not one of four
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, Part(1, 1)),
    ],
)
def test_launchers_give_each_process_its_part(monkeypatch, environment, part):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse() == part


def test_processes_that_a_launcher_starts_for_one_part_share_it(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for text in ("1/3", "2/3", "3/3"):
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            parts.append(parse("--part", text))
    assert parts == [Part(number, 6) for number in range(1, 7)]


def test_parts_have_files_of_their_own():
    assert str(Part(2, 4).file("out/scores.csv")) == "out/scores.part-2-of-4.csv"
    assert str(Part().file("out/scores.csv")) == "out/scores.csv"
