"""Worker processes that may die."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gcvideo.errors import VideoError
from gcvideo.prepare.pool import Limits, run_jobs


def behave(how: str) -> str:
    """One job: does well or badly, as told."""
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(3)
    elif how == "sleep":
        time.sleep(60)
    elif how == "eat":
        bytearray(3 << 30)
    elif how == "video":
        raise VideoError("a.mp4", "is empty")
    elif how == "raise":
        raise ValueError("two\nlines")
    return how.upper()


def process_id(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def test_every_job_has_an_outcome_whatever_becomes_of_its_worker():
    jobs = ["fine", "crash", "exit", "abort", "sleep", "raise", "video", "eat", "well"]
    limits = Limits(seconds=1.5, memory=1 << 30)
    outcomes = {outcome.item: outcome for outcome in run_jobs(behave, jobs, workers=2, limits=limits)}
    assert {item: outcome.error for item, outcome in outcomes.items()} == {
        "fine": None,
        "well": None,
        "crash": "the process that read it died of SIGSEGV",
        "abort": "the process that read it died of SIGABRT",
        "exit": "the process that read it ended with exit code 3",
        "sleep": "took longer than 1.5 s",
        "raise": "ValueError: two lines",
        "video": "is empty",
        "eat": "needs more memory than allowed",
    }
    assert outcomes["fine"].value == "FINE"
    assert outcomes["crash"].value is None


def test_workers_are_kept_from_job_to_job_and_jobs_are_drawn_as_needed():
    drawn = []

    def items():
        for number in range(8):
            drawn.append(number)
            yield number

    outcomes = run_jobs(process_id, items(), workers=2)
    first = next(outcomes)
    assert len(drawn) <= 4  # an endless list of jobs would do
    processes = {outcome.value for outcome in outcomes} | {first.value}
    assert 1 <= len(processes) <= 2
    assert os.getpid() not in processes


def test_workers_end_with_the_loop_that_drew_from_them():
    outcomes = run_jobs(process_id, range(100), workers=1)
    worker = next(outcomes).value
    outcomes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_nothing_outlives_a_command_that_was_killed(tmp_path):
    note = tmp_path / "pid"
    script = (
        "from gcvideo.prepare.pool import Limits, run_jobs\n"
        "from tests.unit.prepare.test_pool import note_and_sleep\n"
        f"list(run_jobs(note_and_sleep, [{str(note)!r}], workers=1, limits=Limits(seconds=1)))\n"
    )
    command = subprocess.Popen([sys.executable, "-c", script])
    _wait_for(note.exists)
    worker = int(note.read_text())
    command.kill()
    command.wait()
    _wait_for(lambda: not os.path.exists(f"/proc/{worker}") or _is_zombie(worker))


def note_and_sleep(note: str) -> None:
    with open(note + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(note + ".part", note)
    time.sleep(60)


def _is_zombie(process: int) -> bool:
    with open(f"/proc/{process}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"


def _wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
