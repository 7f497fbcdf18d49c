"""Fixtures of tests that use a tiny trained network."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

import gcvideo
from gcvideo.predict.predictor import Predictor
from tests.processes import savefig_without_svg


@pytest.fixture(autouse=True)
def _empty_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", savefig_without_svg)


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> str:
    """The checkpoint of ``tests.tiny.tiny_checkpoint`` in the folder ``place`` of the test's own file."""
    return str(place / "runs/tiny/checkpoints/best.pt")


@pytest.fixture(scope="module")
def predictor(checkpoint: str) -> Predictor:
    return gcvideo.load(checkpoint, device="cpu")
