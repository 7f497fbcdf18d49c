"""A GC block launches few kernels, and Inductor compiles it and a whole network for the GPU."""

from __future__ import annotations

import json
import sys

import pytest

from tests.device.conftest import FOLDER, NullGpu


@pytest.mark.slow
def test_a_block_is_few_kernels_and_inductor_compiles_it_and_a_network(null_gpu: NullGpu) -> None:
    pytest.importorskip("triton")
    command = (str(FOLDER / "run.sh"), sys.executable, "-m", "tests.device.compiled")
    done = null_gpu(*command, TORCHINDUCTOR_COMPILE_THREADS="1")
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " {" in line)
    assert lines.keys() == {"EAGER", "BLOCK", "NETWORK"}, done.stderr[-3000:]
    eager, block, network = (json.loads(line) for line in lines.values())
    assert 10 < eager["launches"] <= 16  # products of matrices left out
    assert 0 < block["driver_launches"] <= 24  # of Triton
    assert block["launches"] <= 10  # and of torch's own kernels
    assert block["driver_launches"] < network["driver_launches"]
    assert eager["syncs"] == block["syncs"] == block["mallocs"] == network["syncs"] == network["mallocs"] == 0
