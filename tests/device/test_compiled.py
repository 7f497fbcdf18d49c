"""Inductor compiles a GC block for the GPU."""

from __future__ import annotations

import json
import sys

import pytest

from tests.device.conftest import FOLDER, NullGpu


@pytest.mark.slow
def test_inductor_compiles_a_gc_block_to_triton_kernels(null_gpu: NullGpu) -> None:
    pytest.importorskip("triton")
    command = (str(FOLDER / "run.sh"), sys.executable, "-m", "tests.device.compiled")
    done = null_gpu(*command, TORCHINDUCTOR_COMPILE_THREADS="1")
    line = next((line for line in done.stdout.splitlines() if line.startswith("COMPILED ")), None)
    assert line is not None, done.stderr[-3000:]
    found = json.loads(line[9:])
    assert 0 < found["driver_launches"] <= 24  # of Triton
    assert found["launches"] <= 10  # and of torch's own kernels
    assert found["syncs"] == found["mallocs"] == 0
