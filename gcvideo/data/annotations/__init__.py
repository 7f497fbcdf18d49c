"""Annotations of every format in use, read as one table of records."""

import csv
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from pathlib import Path

from gcvideo.config import import_object
from gcvideo.console import warn
from gcvideo.data.annotations import official
from gcvideo.data.annotations.folders import read_class_folders, videos_under
from gcvideo.data.annotations.labels import PUBLISHED_CLASSES, load_classes, normalize
from gcvideo.data.annotations.lists import find_labels, header_of, read_lines, read_list
from gcvideo.data.annotations.table import SHARD_FILES, Annotation, Readings, Row, find_file, make_table, read_index
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError, DataError

__all__ = ["PUBLISHED_CLASSES", "load_classes", "load_records", "looks_like", "videos_under"]

FORMATS: dict[str, Callable[[Annotation], RecordTable]] = {
    "kinetics": official.read_kinetics_csv,
    "list": read_list,
    "folders": read_class_folders,
    "index": read_index,
    "ucf101": official.read_ucf101,
    "hmdb51": official.read_hmdb51,
    "something_something": official.read_something_something,
    "charades": official.read_charades,
}


def looks_like(path: Path) -> str:
    """The name of the format that an annotation looks like."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
    if path.suffix == ".parquet" or names & SHARD_FILES:
        return "index"
    if path.is_dir():
        hmdb51 = any(name.endswith(official.HMDB51_LIST.format(1)) for name in names)
        return "ucf101" if official.UCF101_CLASSES in names else "hmdb51" if hmdb51 else "folders"
    if official.UCF101_LIST.fullmatch(path.name) and (path.parent / official.UCF101_CLASSES).exists():
        return "ucf101"
    first = next(read_lines(path), (0, ""))[1]
    if first[:1] in ("[", "{") or {*first.split(",")} >= official.CHARADES_COLUMNS:
        return "something_something" if first[:1] in ("[", "{") else "charades"
    header = header_of(path)
    return "kinetics" if header is not None and "youtube_id" in header.columns else "list"


def load_records(
    annotation: str | Path,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    format: str = "auto",
    subset: str | None = None,
    split: int = 1,
    names_only: bool = False,
    leave_out: Container[str] = (),
    several: bool | None = None,
    readings: Readings | None = None,
) -> RecordTable:
    """Read an annotation of any known format.

    The formats:

    - `kinetics`: official Kinetics CSV (`youtube_id` column); ids of videos that the copy lacks are in `missing`.
    - `list`: one video per line, as `path`, `path label`, `path frames label` or `path start end label` (seconds),
      separated by tabs, semicolons, commas or spaces; or with a header line that names columns in any order: `path`,
      `label`, `class` (names), `class_id` (numbers from 0), `labels` (several, as `3,17`, `jump;run` or `jump|run`),
      `start`, `end`, `split`. Every file must exist, and none may have two rows of other labels. Rows `path label label
      ...` are read where their lengths show what they are, or with `several`. `path frames label` needs the header line
      where every number of frames could be a label. A folder of numbered pictures is a video too (see
      `gcvideo.video.frame_folder`); `path frames label` then has the number of its pictures, and `path offset frames
      label` means some of them, from number `offset` on (from 0).
    - `folders`: a folder with a folder of videos for each class; without such folders the videos have no labels. A
      folder of Hugging Face's `datasets` is read by its `metadata.csv` or `metadata.jsonl` (`file_name`, `label`), and
      where it has folders of splits (`train`, `validation`, `test`) by that of the `subset`.
    - `index`: Parquet of `gcvideo prepare index`, or a folder of shards of `gcvideo prepare shard`.
    - `ucf101`, `hmdb51`: the official lists, or (HMDB51: always) the folder of them, by `subset` and `split`.
    - `something_something`: the JSON files of Something-Something V2.
    - `charades`: the official CSV of Charades; the labels of a video are all its actions.
    - `module:read`: your own `read(path, root)`, which yields (path, label) or (path, label, start, end): label a class
      name, a number or None, times in seconds.

    Args:
        annotation: a file or folder.
        root: folder that the videos lie in; by default the annotation's own folder.
        classes: class names in label order; by default the sorted names that the annotation uses.
        num_classes: largest label + 1 that is allowed; by default the number of classes where they are known.
        format: one of these; "auto" is the one that the annotation looks like.
        subset: "train", "val" or "test": the videos to take of an annotation that lists several subsets; or "every".
        split: which of several official splits, from 1.
        names_only: whether numbers are refused as labels, because the order of ``classes`` is in no file.
        leave_out: ids, as ``gcvideo prepare verify`` lists them, of rows that are left out where they cannot be used.
        several: whether rows may have several labels, where an empty cell stands for none of the classes; None: as the
            file shows. The table then has ``sets``.
        readings: filled with how each row was read, where given; all rows that cannot be used are then left out.

    Raises:
        DataError: in one line, naming file and line, what is wrong, and the fix.
        ConfigError: there is no such format.
    """
    path = Path(annotation).expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such annotation file or folder")
    names = tuple(map(normalize, classes)) if classes is not None else None
    limit = num_classes or len(names or ()) or None
    filled = Readings() if readings is None else readings
    try:
        path = find_labels(path, subset)
        folder = Path(root).expanduser() if root is not None else path.parent
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of videos (for {path})")
        source = Annotation(path, folder, root is not None, names, limit, names_only, subset, split, several, filled)
        format = looks_like(path) if format == "auto" else format
        table = FORMATS[format](source) if format in FORMATS else _read_with(source, format)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, csv.Error) as problem:
        if ":" in format and not isinstance(problem, OSError | ValueError):
            raise  # a mistake in the user's own reader
        found = f"no readable annotation (data.format {format}; {type(problem).__name__}: {problem})"
        raise DataError(f"{path}: {found}; a list has lines of `path label`, in UTF-8 or UTF-16") from None
    if readings is not None:
        return table
    if bad := [row for row in filled.refusals if row.id not in leave_out]:
        more = f" (the first of {len(bad):,} rows that cannot be used)" if len(bad) > 1 else ""
        hint = filled.hint if bad[0].kind == "missing" or bad[0].reason.startswith("expected") else ""
        where = f"{path}:{bad[0].line}" if bad[0].line else bad[0].path
        raise DataError(f"{where}: {bad[0].reason}{hint}{more}")
    if not len(table):
        which = f" of those in {folder}; expected files named like {table.missing[0]}.mp4" if table.missing else ""
        raise DataError(f"{path}: lists no videos{which}")
    if filled.refusals:
        warn(f"{path}: {len(filled.refusals):,} rows cannot be used; left out, as the list of bad videos says")
    return table


def _read_with(annotation: Annotation, name: str) -> RecordTable:
    """Records of the user's own reader."""
    if ":" not in name:
        raise ConfigError(f"data.format: {name!r} is not auto, {', '.join(FORMATS)}, nor module:read of your own")
    read = import_object(name, key="data.format")

    def rows() -> Iterator[Row]:
        for number, (path, label, *times) in enumerate(read(annotation.path, annotation.root), start=1):
            yield Row(number, str(path), "" if label is None else str(label), "", *times)

    return make_table(annotation, rows(), find=partial(find_file, annotation.root), several=annotation.several or False)
