"""Fixtures of tests that use a tiny trained network."""

from pathlib import Path

import pytest

import gcvideo
from gcvideo.predict.predictor import Predictor


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> str:
    """The checkpoint of ``tests.tiny.tiny_checkpoint`` in the folder ``place`` of the test's own file."""
    return str(place / "runs/tiny/checkpoints/best.pt")


@pytest.fixture(scope="module")
def predictor(checkpoint: str) -> Predictor:
    return gcvideo.load(checkpoint, device="cpu")
