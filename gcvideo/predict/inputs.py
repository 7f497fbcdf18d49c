"""Inputs of ``gcvideo predict``: files, folders, patterns, cameras, standard input; or why a name is refused."""

import glob
import os
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gcvideo.data.annotations import videos_under

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class Source(NamedTuple):
    """One video to label, or a name that is refused, with the reason."""

    name: str
    kind: Literal["file", "camera", "stdin", "refused"] = "file"
    reason: str | None = None


def find_sources(names: Sequence[str]) -> list[Source]:
    """Resolve the names on a command line, in order.

    An existing file or folder is taken as such, even if its name looks like something else. Otherwise an integer is
    a camera, ``-`` is standard input, and ``*``, ``?`` and ``[...]`` (and ``**`` for all folders below) make a pattern.
    Folders give the video files inside them and in their subfolders, by name, as in a data set of class folders.
    """
    return [source for name in names for source in _resolve(name)]


def _resolve(name: str) -> list[Source]:
    if os.path.isdir(name):
        found = [Source(os.path.join(name, path)) for path in videos_under(name)]
        return found or [Source(name, "refused", "a folder without video files")]
    if os.path.lexists(name):
        return [Source(name)]
    if name == "-":
        return [Source(name, "stdin")]
    if name.isdecimal():
        return [Source(name, "camera")]
    if URL.match(name):
        return [Source(name, "refused", "is a URL; gcvideo reads local files: download it first")]
    if glob.has_magic(name):
        # A link to a folder above gives its files many names; the shortest one is kept.
        files = sorted(glob.glob(name, recursive=True), key=len, reverse=True)
        unique = {os.path.realpath(path): path for path in files if not os.path.isdir(path)}
        found = [Source(path) for path in sorted(unique.values())]
        return found or [Source(name, "refused", "no file matches this pattern")]
    return [Source(name)]
