"""Fixtures of several files of unit tests."""

import pytest

from tests.reading import write_plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def closed(folder):
    """A file that every backend reads."""
    return write_plain(folder / "plain.mp4")
