"""Fixtures of the whole suite."""

import os
from pathlib import Path

# Before torch is imported, and inherited by every process that a test starts: the tensors of tests are so small that
# several threads only wait for each other, above all where as many tests run side by side as there are cores.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real videos and reference data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference videos in {SHARED.name}/ beside the checkout, which are not here")
    return SHARED


@pytest.fixture(autouse=True)
def _few_threads():
    """Tiny tensors are slower on many threads than on one. No test inherits the flushing that a training set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
