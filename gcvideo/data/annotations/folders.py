"""A folder with a folder of videos for each class, and which files in folders are videos."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gcvideo.config.checks import nearest
from gcvideo.data.annotations.table import Annotation, normalize
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError

SUFFIXES = ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
VIDEO_SUFFIXES = frozenset(SUFFIXES.split())


def read_class_folders(annotation: Annotation) -> RecordTable:
    """Records of all videos; the classes are the sorted names of the folders unless they are known.

    Ids are relative to the folder, or to the root where one is given that the folder lies in.

    Raises:
        DataError: there are no folders, or one is no class.
    """
    folder = annotation.path
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: expected a folder of videos for each class, found no folders")
    classes = annotation.classes or tuple(map(normalize, names))
    index = {name: label for label, name in enumerate(classes)}
    for name in names:
        if normalize(name) not in index:
            raise DataError(f"{folder / name}: unknown class{nearest(name, classes)}")
    inside = annotation.root_given and folder.is_relative_to(annotation.root)
    root = annotation.root if inside else folder
    files = [path for path in videos_under(folder) if os.sep in path]
    paths = [os.path.join(folder.relative_to(root), path) for path in files] if root != folder else files
    labels = [index[normalize(path.split(os.sep, 1)[0])] for path in files]
    return RecordTable(ids=paths, paths=paths, labels=labels, root=root, classes=classes, source=str(folder))


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
