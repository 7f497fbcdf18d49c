"""What a user may name as a video: files, folders, patterns, cameras, standard input; and what is refused, and why."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gcvideo.data.annotations import videos_under

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class Source(NamedTuple):
    """One video to answer; ``reason`` says why it is refused, None where it is not."""

    name: str
    kind: Literal["file", "camera", "stdin"] = "file"
    reason: str | None = None


def find_sources(names: Sequence[str]) -> list[Source]:
    """Resolve what a user typed, in order.

    An existing file or folder is meant as such, whatever its name looks like. Else a whole number is a camera, ``-``
    is standard input, and ``*``, ``?`` and ``[...]`` (and ``**`` for all folders below) make a pattern. Folders give
    the video files inside them and in their subfolders, by name.
    """
    sources: list[Source] = []
    for name in names:
        if os.path.lexists(name):
            sources += _files_in(name) if os.path.isdir(name) else [_checked(name)]
        elif name == "-":
            sources.append(Source(name, "stdin"))
        elif name.isdecimal():
            sources.append(Source(name, "camera"))
        elif URL.match(name):
            sources.append(Source(name, reason="is a URL; gcvideo reads local files: download it first"))
        elif glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True))
            sources += [_checked(path) for path in found if not os.path.isdir(path)]
            if not found:
                sources.append(Source(name, reason="no file matches this pattern"))
        else:
            sources.append(_checked(name))
    return sources


def _files_in(folder: str) -> list[Source]:
    found = [os.path.join(folder, path) for path in videos_under(folder)]
    return [_checked(path) for path in found] or [Source(folder, reason="a folder without video files")]


def _checked(path: str) -> Source:
    """Refuse what is no regular file: a pipe or a device could be waited for without end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return Source(path, reason="a dangling link" if os.path.islink(path) else "no such file")
    except OSError as error:
        return Source(path, reason=error.strerror or "cannot be looked at")
    except ValueError:
        return Source(path, reason="not a valid file name")
    if not stat.S_ISREG(mode):
        return Source(path, reason="not a regular file (to read a pipe, give - and redirect it to standard input)")
    return Source(path)
