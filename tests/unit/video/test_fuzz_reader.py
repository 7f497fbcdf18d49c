"""No damaged file ends the process, hangs, or raises anything but VideoError.

``GCVIDEO_FUZZ=3000`` and ``GCVIDEO_OPENS=5000`` run the long versions.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest

from gcvideo.video import open_video
from tests import fuzz
from tests.videos import moving_frames, write_video

COUNT = int(os.environ.get("GCVIDEO_FUZZ", "100"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return list(fuzz.damaged_files(tmp_path_factory.mktemp("fuzz"), COUNT, seed=0))


@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_damaged_files(files, backend):
    results = fuzz.read_all([path for _, path in files], backend)
    assert len(results) == len(files)
    assert not {path: result for path, result in results.items() if fuzz.is_failure(result)}
    outcomes = {result.split()[0] for result in results.values()}
    assert outcomes == {"frames", "VideoError"}  # else the damage is too light or too heavy to show anything


@pytest.mark.slow
def test_deaths_and_hangs_are_noticed(tmp_path, monkeypatch):
    """The harness itself: a child that dies or sleeps is told from one that replies."""
    monkeypatch.setattr(fuzz.sys, "executable", str(tmp_path / "child"))
    (tmp_path / "child").write_text(
        "#!/bin/sh\nread line\n"
        "case $line in *dies*) kill -SEGV $$;; *sleeps*) exec sleep 60;; esac\n"
        "echo '\"frames\"'\n"
    )
    (tmp_path / "child").chmod(0o755)
    monkeypatch.setattr(fuzz, "SECONDS_PER_FILE", 2.0)
    results = fuzz.read_all([tmp_path / "dies", tmp_path / "sleeps", tmp_path / "lives"], "auto")
    assert [results[str(tmp_path / name)] for name in ("dies", "sleeps", "lives")] == [
        "died with code -11",
        "hung",
        "frames",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "suffix"),
    [("decord", "mp4"), ("pyav", "mp4"), ("pyav", "mkv"), ("pyav", "avi")],
)
def test_memory_does_not_grow(backend, suffix, tmp_path):
    """Less than 20 MB for any number of files opened, without what the allocator keeps for itself."""
    paths = [
        write_video(
            tmp_path / f"{i}.{suffix}", moving_frames(12, 96 + 16 * i, 128), gop=6, options={"preset": "medium"}
        )
        for i in range(4)
    ]
    opens = int(os.environ.get("GCVIDEO_OPENS", "300"))

    def resident() -> int:
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def read(times: int) -> None:
        for number in range(times):
            with open_video(paths[number % len(paths)], backend=backend) as reader:
                reader.frames([3, 8])

    read(100)
    before = resident()
    read(opens)
    grown = (resident() - before) / 1e6
    print(f"{backend}, {suffix}: {grown:.1f} MB after {opens} opens")
    assert grown < 20


def test_closing_frees_the_decoder_at_once(tmp_path):
    """PyAV's containers and streams refer to one another; collection in the background is too late for large frames."""
    path = write_video(tmp_path / "a.mkv", moving_frames(6), gop=3)

    def streams() -> int:
        return sum(type(thing).__name__ == "VideoStream" for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        with open_video(path, backend="pyav") as reader:
            reader.frames([1])
            assert streams() == 1
        assert streams() == 0
    finally:
        gc.enable()
