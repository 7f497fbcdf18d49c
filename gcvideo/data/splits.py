"""The records that a config names, and whether they fit the network."""

from __future__ import annotations

from gcvideo import distributed
from gcvideo.config import RunConfig, SplitConfig
from gcvideo.console import warn
from gcvideo.data.annotations import load_classes, load_records
from gcvideo.data.records import RecordTable
from gcvideo.errors import ConfigError


def load_split(
    config: RunConfig, split: SplitConfig, *, name: str, classes: tuple[str, ...] | None = None
) -> RecordTable | None:
    """The records of one split, None where the config names none.

    Args:
        config: of the run.
        split: ``config.data.train``, ``val`` or ``test``.
        name: of the split, for warnings.
        classes: names in label order, for annotations that give labels by name; ``data.classes`` comes first.

    Raises:
        DataError: the annotation cannot be used.
        ConfigError: it names another number of classes than the network tells apart.
    """
    if split.annotation is None:
        return None
    if config.data.classes is not None:
        classes = load_classes(config.data.classes)
    records = load_records(split.annotation, root=split.root, classes=classes, num_classes=config.model.num_classes)
    found = classes or records.classes
    if found is not None and len(found) != config.model.num_classes:
        raise ConfigError(
            f"model.num_classes: {config.model.num_classes}, but {config.data.classes or records.source} names "
            f"{len(found)} classes; set model.num_classes={len(found)}"
        )
    if records.missing and distributed.is_main():
        examples = ", ".join(records.missing[:3])
        warn(
            f"{records.source}: {len(records.missing):,} {name} videos are not there ({examples} ...); going on without"
        )
    return records


def spread(records: RecordTable, count: int) -> RecordTable:
    """So many records at even distances, as lists often go by class.

    Raises:
        ConfigError: there are not that many.
    """
    if not 1 <= count <= len(records):
        raise ConfigError(f"--overfit {count}: {records.source} has {len(records):,} videos")
    return records.select([round(i * len(records) / count) for i in range(count)])
