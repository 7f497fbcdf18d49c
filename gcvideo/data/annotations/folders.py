"""A folder with a folder of videos for each class, and which files and folders are videos."""

import os
from collections import defaultdict
from pathlib import Path

from gcvideo.console import printable, warn
from gcvideo.data.annotations.labels import normalize
from gcvideo.data.annotations.table import SUBSETS, Annotation, Find, Row, make_table
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError
from gcvideo.video.frame_folder import FLOW, find_pictures

SUFFIXES = ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"
VIDEO_SUFFIXES = frozenset(SUFFIXES.split())


def read_class_folders(annotation: Annotation) -> RecordTable:
    """Records of all videos; the classes are the sorted names of the folders unless they are known.

    Where no class folder holds a video, those that lie in the folder itself come without labels. Ids are relative to
    the folder, or to the root where one is given that the folder lies in.

    Raises:
        DataError: the folders are splits, or a link gives a video two classes.
    """
    folder = annotation.path
    names = sorted(name for name in os.listdir(folder) if (folder / name).is_dir() and not name.startswith("."))
    if names and not annotation.classes and {name.lower() for name in names} <= SUBSETS.keys():
        raise DataError(f"{folder}: holds folders of splits ({', '.join(names)}); give {folder / names[0]}")
    found = videos_under(folder)
    owners = {path: path.split(os.sep)[0] for path in found if os.sep in path}
    loose = [path for path in found if path not in owners] if owners else []
    empty = sorted({*names} - {*owners.values()}) if owners else []
    for text, left in (("videos lie beside the class folders", loose), ("class folders hold no videos", empty)):
        if left:
            warn(f"{folder}: {len(left):,} {text} ({printable(left[0])} ...); left out")
    paths = [os.path.join(folder, path) for path in (*names, *owners)]
    first: dict[str, str] = {}  # by the real path, which is needed only where there are links
    for path in paths if any(map(os.path.islink, paths)) else ():
        other = first.setdefault(os.path.realpath(path), path)
        if Path(path).relative_to(folder).parts[0] != Path(other).relative_to(folder).parts[0]:
            raise DataError(f"{other} and {path} are one, by a link, in two classes; remove one of them")
    inside = annotation.root_given and folder.is_relative_to(annotation.root)
    classes = annotation.classes or (tuple(dict.fromkeys(map(normalize, names))) if owners else None)
    annotation = annotation._replace(root=annotation.root if inside else folder, classes=classes)
    rows = [Row(0, os.path.join(os.path.abspath(folder), path), owners.get(path, "")) for path in owners or found]
    return make_table(annotation, rows, kind="names")


def videos_under(root: str | Path, *, files_only: bool = False) -> list[str]:
    """Paths of the videos in a folder and its subfolders, relative to ``root``, sorted folder by folder.

    Unless ``files_only``, a subfolder that holds numbered pictures and no video files is a video. Names with a leading
    dot are skipped (``.ipynb_checkpoints``, the ``._1.mp4`` that macOS writes beside ``1.mp4``). Links to
    folders are followed, but every real folder is visited once, under its own name where it has one.
    """
    top = os.path.join(root, "")
    found: list[str] = []
    seen: set[str] = set()
    links = [top]
    for link in links:
        for folder, subfolders, names in os.walk(link):
            real = os.path.realpath(folder)
            subfolders[:] = [name for name in sorted(subfolders) if name[0] != "." and real not in seen]
            links += [path for path in (os.path.join(folder, name) for name in subfolders) if os.path.islink(path)]
            if real not in seen:
                videos = (name for name in names if name[0] != "." and Path(name).suffix.lower() in VIDEO_SUFFIXES)
                files = [os.path.join(folder, name)[len(top) :] for name in videos]
                flow = FLOW.fullmatch(os.path.basename(folder))
                if not (files or files_only or folder == top) and len(find_pictures(names)) > 1:
                    files, subfolders[:] = [] if flow else [folder[len(top) :]], []
                found += files
            seen.add(real)
    return sorted(found, key=lambda path: (path.split(os.sep)[:-1], path))


def find_by_stem(root: Path) -> Find:
    """Finds videos with any suffix, as transcoded copies have, by as many of the last parts of a path as one has."""
    places: dict[str, dict[str, str]] = defaultdict(dict)  # the last parts of paths, without the suffix -> their stems

    def tails(path: str) -> list[str]:
        stem, suffix = os.path.splitext(path)
        parts = (stem if suffix.lower() in VIDEO_SUFFIXES else path).split("/")
        return ["/".join(parts[first:]) for first in range(len(parts))]

    for path in videos_under(root):  # a file comes behind the folder of its frames
        for tail in tails(path):
            places[tail][tails(path)[0]] = path

    def find(path: str) -> str | None:
        found = next((found for tail in tails(path) if (found := places.get(tail))), {})
        return next(iter(found.values())) if len(found) == 1 else None

    return find
