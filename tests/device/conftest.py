"""The null GPU, built once for all processes of a test run."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "device" / "null_gpu"
NullGpu = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(place: Path, make: Callable[[], Any]) -> Any:
    """What the first process to ask has made, as JSON in a file for the others."""
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            place.write_text(json.dumps(make()))
    return json.loads(place.read_text())


@pytest.fixture(scope="session")
def null_gpu(common: Path) -> NullGpu:
    """Run a command on the null GPU; its output is text. Skips where the libraries cannot be built."""
    build = common / "null_gpu"

    def built() -> str:
        command = [str(FOLDER / "build.sh"), str(build)]
        done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
        return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]

    if reason := once(common / "null_gpu.json", built):
        pytest.skip(f"the null GPU cannot be built: {reason}")

    def run(*command: str, cwd: Path = ROOT, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NULL_GPU_BUILD": str(build),
            "NULLCUDA_FORK": "1",
            **more,
        }
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def counts(common: Path, null_gpu: NullGpu) -> dict[str, dict[str, float]]:
    """Calls of a training step in each case of ``tests/device/steps.py``, all measured in one process."""
    from tests.device.steps import CASES

    def measured() -> dict[str, dict[str, float]]:
        done = null_gpu(str(FOLDER / "run.sh"), sys.executable, "-m", "tests.device.steps", "--cases", *CASES)
        assert done.returncode == 0, done.stderr[-3000:]
        found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("CASE ")]
        return {case["name"]: case for case in found}

    found: dict[str, dict[str, float]] = once(common / "null_gpu_steps.json", measured)
    return found
