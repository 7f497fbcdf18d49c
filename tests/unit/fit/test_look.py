"""What a look at a user's videos says of them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from gcvideo.errors import DataError
from gcvideo.fit.look import look
from tests.videos import write_video


def test_damaged_files_that_are_equal_are_called_damaged(tmp_path: Path) -> None:
    for place, name in enumerate(("dry", "wet")):
        (tmp_path / name).mkdir()
        for clip in range(2):
            frames = (
                np.random.default_rng([clip, place]).integers(60, 160, (1, 4, 6, 3), dtype=np.uint8).repeat(6, axis=0)
            )
            write_video(tmp_path / name / f"{clip}.mp4", frames.repeat(8, axis=1).repeat(8, axis=2))
        (tmp_path / name / "broken.mp4").write_bytes(b"")
    videos = look(tmp_path, deadline=time.monotonic())
    left_out = videos.notes[-1]
    assert left_out.startswith("2 videos are left out")
    assert left_out.count("broken.mp4: is empty") == 2


def test_labels_beyond_the_names_of_classes_are_refused(tmp_path: Path) -> None:
    """They often count from 1, and then all others have wrong names too."""
    for clip in range(3):
        frames = np.random.default_rng(clip).integers(60, 160, (6, 32, 48, 3), dtype=np.uint8)
        write_video(tmp_path / f"{clip}.mp4", frames)
    (tmp_path / "classes.txt").write_text("run\njump\n")
    (tmp_path / "list.txt").write_text("0.mp4 1\n1.mp4 1\n2.mp4 2\n")
    with pytest.raises(DataError, match=r"list.txt:3: label '2' is outside 0 to 1; if .* subtract 1 .*names 2 classes"):
        look(tmp_path / "list.txt", deadline=time.monotonic())
    (tmp_path / "list.txt").write_text("0.mp4 1\n1.mp4 0\n2.mp4 1\n")
    videos = look(tmp_path / "list.txt", deadline=time.monotonic())
    assert (videos.classes, videos.labels.tolist()) == (("run", "jump"), [1, 0, 1])
