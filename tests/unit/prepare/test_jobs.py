"""Jobs in worker processes that may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gcvideo.errors import DataError, VideoError
from gcvideo.prepare.jobs import run_jobs


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
    elif how == "data":
        raise DataError("a.mp4: is empty")
    elif how == "raise":
        raise ValueError("two\nlines")
    return how.upper()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_gives_one_result_even_if_its_worker_dies(workers):
    jobs = ["fine", "crash", "exit", "abort", "sleep", "raise", "video", "data", "eat", "well"]
    limits = {"seconds": 0.5, "memory": 1 << 30}
    results = list(run_jobs(behave, jobs, title="test", workers=workers, **limits))
    assert len(results) == len(jobs)
    assert {item: error for item, _, error in results} == {
        "fine": None,
        "well": None,
        "crash": "its process died of SIGSEGV",
        "abort": "its process died of SIGABRT",
        "exit": "its process ended with exit code 3",
        "sleep": "took longer than 0.5 s",
        "raise": "ValueError: two lines",
        "video": "is empty",
        "data": "a.mp4: is empty",
        "eat": "needs more memory than a worker process may use",
    }
    assert {item: value for item, value, _ in results if value} == {"fine": "FINE", "well": "WELL"}


def test_a_slow_job_does_not_hold_up_the_others(tmp_path):
    gate = tmp_path / "gate"

    def job(number: int) -> int:
        while number == 0 and not gate.exists():
            time.sleep(0.01)
        return number

    finished = []
    for number, _, _ in run_jobs(job, range(20), title="test", workers=2):
        finished.append(number)
        if len(finished) == 19:
            gate.touch()
    assert finished == [*range(1, 20), 0]


def test_workers_end_with_the_loop_over_their_results():
    results = run_jobs(lambda number: os.getpid(), range(100), title="test", workers=1)
    _, worker, _ = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.slow
def test_nothing_outlives_a_command_that_was_killed(tmp_path):
    note = tmp_path / "pid"
    script = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from gcvideo.prepare.jobs import run_jobs\n"
        "def note_and_sleep(note):\n"
        "    Path(note + '.part').write_text(str(os.getpid()))\n"
        "    os.rename(note + '.part', note)\n"
        "    time.sleep(60)\n"
        f"list(run_jobs(note_and_sleep, [{str(note)!r}], title='test', workers=1, seconds=1))\n"
    )
    command = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    _wait_for(note.exists)
    worker = int(note.read_text())
    command.kill()
    command.wait()
    _wait_for(lambda: not os.path.exists(f"/proc/{worker}") or _is_zombie(worker))


def _is_zombie(process: int) -> bool:
    with open(f"/proc/{process}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"


def _wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
