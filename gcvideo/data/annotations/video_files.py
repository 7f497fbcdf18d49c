"""Video files of a folder: which files count as videos, in which order they are found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
VIDEO_SUFFIXES = frozenset(SUFFIXES.split())


def videos_under(root: str | Path) -> Iterator[str]:
    """Paths of the video files in a folder and its subfolders, relative to ``root``, in sorted order.

    Names with a leading dot are skipped (``.ipynb_checkpoints``, the ``._1.mp4`` that macOS writes beside ``1.mp4``).
    Links to folders are followed, but every real folder is visited once.
    """
    top = os.path.realpath(root)
    seen = {top}

    def is_new(folder: str) -> bool:
        real = os.path.realpath(folder)
        inside = real.startswith(os.path.join(top, "")) and f"{os.sep}." not in real[len(top) :]
        if real in seen or (inside and os.path.islink(folder)):  # what lies inside is visited under its own name
            return False
        seen.add(real)
        return True

    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in sorted(subfolders) if name[0] != "." and is_new(os.path.join(folder, name))]
        relative = os.path.relpath(folder, root)
        for name in sorted(names):
            if name[0] != "." and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield name if relative == "." else os.path.join(relative, name)
