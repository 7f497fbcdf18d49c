"""A folder with a folder of videos for each class, and which files and folders are videos."""

import os
from collections.abc import Sequence
from pathlib import Path

from gcvideo.config.checks import nearest
from gcvideo.console import printable, warn
from gcvideo.data.annotations.table import SUBSETS, UNKNOWN, Annotation, normalize
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
        DataError: the folders are splits, one is no class, or a link gives a video two classes.
    """
    folder = annotation.path
    names = sorted(name for name in os.listdir(folder) if (folder / name).is_dir() and not name.startswith("."))
    if names and not annotation.classes and {name.lower() for name in names} <= SUBSETS.keys():
        raise DataError(f"{folder}: holds folders of splits ({', '.join(names)}); give {folder / names[0]}")
    found = videos_under(folder)
    files = [path for path in found if os.sep in path]
    names = names if files or not found else []
    files = files if names else found
    classes = annotation.classes or tuple(map(normalize, names)) or None
    index = {name: label for label, name in enumerate(classes or ())}
    for name in names:
        if normalize(name) not in index:
            raise DataError(f"{folder / name}: unknown class{nearest(name, classes or ())}")
    inside = annotation.root_given and folder.is_relative_to(annotation.root)
    root = annotation.root if inside else folder
    if loose := sorted({*found} - {*files}):
        warn(f"{folder}: {len(loose):,} videos lie beside the class folders ({printable(loose[0])} ...); left out")
    paths = [os.path.join(folder, path)[len(os.path.join(root, "")) :] for path in files]
    labels = [index[normalize(path.split(os.sep, 1)[0])] if names else UNKNOWN for path in files]
    _require_one_class(folder, names, range(len(names)))
    _require_one_class(folder, files, labels)
    used = {*labels}
    if empty := [name for name in names if index[normalize(name)] not in used]:
        warn(f"{folder}: {len(empty):,} class folders hold no videos of their own ({printable(empty[0])} ...)")
    return RecordTable(ids=paths, paths=paths, labels=labels, root=root, classes=classes, source=str(folder))


def _require_one_class(folder: Path, paths: Sequence[str], labels: Sequence[int]) -> None:
    places = [os.path.join(folder, path) for path in paths]
    first: dict[str, int] = {}  # by the real path, which is needed only where there are links
    for index, place in enumerate(places) if any(map(os.path.islink, places)) else ():
        other = first.setdefault(os.path.realpath(place), index)
        if labels[index] != labels[other]:
            raise DataError(f"{places[other]} and {place} are one, by a link, in two classes; remove one of them")


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
