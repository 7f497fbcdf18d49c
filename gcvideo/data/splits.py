"""The records that a config names, and whether they fit the network."""

from itertools import zip_longest
from pathlib import Path

from gcvideo.config import RunConfig, SplitConfig
from gcvideo.console import warn
from gcvideo.data.annotations import PUBLISHED_CLASSES, load_classes, load_records
from gcvideo.data.annotations.labels import normalize
from gcvideo.data.bad_videos import read_bad_videos
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError, DataError


def load_split(
    config: RunConfig, split: SplitConfig, *, name: str, classes: tuple[str, ...] | None = None
) -> RecordTable | None:
    """The records of one split, None where the config names none.

    A video that is listed twice is trained on twice, but validated and tested once. Rows that cannot be used are
    left out where the list ``data.quarantine`` names them.

    Args:
        config: of the run.
        split: ``config.data.train``, ``val`` or ``test``.
        name: of the split: "training", "validation", "val" or "test".
        classes: names in label order that the network was or will be trained with, where known.

    Raises:
        DataError: the annotation cannot be used, or its labels are in another order than those of the network.
        ConfigError: it names another number of classes than the network tells apart, or several labels a video without
            ``model.multi_label``.
    """
    if split.annotation is None:
        return None
    data, num_classes = config.data, config.model.num_classes
    classes = _label_order(data.classes, classes)
    known = read_bad_videos(Path(data.quarantine).expanduser()) if data.quarantine else ()
    records = load_records(
        split.annotation,
        root=split.root,
        classes=classes,
        num_classes=num_classes,
        format=data.format,
        subset={"training": "train", "test": "test"}.get(name, "val"),
        split=data.split,
        names_only=name == "validation" and data.classes is None and classes is not None,
        leave_out={failure.id for failure, *_ in known},
        several=config.model.multi_label or None,
    )
    if records.sets is not None and not config.model.multi_label:
        fix = "set model.multi_label=true, or call the column class in a header line if each cell is one name"
        raise ConfigError(f"model.multi_label: false, but {records.source} gives videos several labels; {fix}")
    source, found = records.source, classes or records.classes
    if found is not None and len(found) != num_classes:
        names = f"{data.classes or source} names {len(found)} classes; set model.num_classes={len(found)}"
        fix = f"data.classes= to a list of all: a file, {', '.join(PUBLISHED_CLASSES)}"
        raise ConfigError(f"model.num_classes: {num_classes}, but {names}, or {fix}")
    if name == "validation" and classes is None and found is not None:
        raise DataError(f"{source}: has class names, but the labels for training are numbers; set data.classes")
    if name == "validation" and not (records.labels >= 0).any():
        raise DataError(f"{source}: has no labels to validate on; leave data.val.annotation unset to do without")
    unique = records if name == "training" else records.without_duplicates()
    if records.missing:
        examples = ", ".join(records.missing[:3])
        warn(f"{source}: {len(records.missing):,} {name} videos are not there ({examples} ...); left out")
    if len(unique) < len(records):
        warn(f"{source}: {len(records) - len(unique):,} rows name a video that is listed before; counted once")
    if name in ("val", "test") and classes is None and found is not None:
        warn(f"{source}: the network has no class names; its labels are taken for the sorted ones of this file")
    labels = records.labels if records.sets is None else records.sets.flatten().to_numpy()
    if name == "training" and (empty := num_classes - len({*labels.tolist()} - {-1})):
        hint = "; do the labels count from 1?" if found is None and 0 not in labels else ""
        warn(f"{source}: {empty} of {num_classes} classes (model.num_classes) have no video{hint}")
    return unique


def _label_order(path: str | None, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Class names in label order: of ``data.classes``, which must be those of the network where both are known."""
    if path is None or (classes and path not in PUBLISHED_CLASSES and not Path(path).expanduser().exists()):
        return classes  # a checkpoint knows its classes, also where their file is not there
    names = load_classes(path)
    for label, (name, trained) in enumerate(zip_longest(names, map(normalize, classes or names))):
        if name != trained:
            raise DataError(f"{path}: class {label} is {name!r}, but the network has {trained!r}; unset data.classes")
    return names


def spread(records: RecordTable, count: int) -> RecordTable:
    """So many records at even distances, as lists often go by class.

    Raises:
        ConfigError: there are not that many.
    """
    if not 1 <= count <= len(records):
        raise ConfigError(f"--overfit {count}: {records.source} has {len(records):,} videos")
    return records.select([round(i * len(records) / count) for i in range(count)])
