"""A data set full of damaged videos, through the loaders: nothing dies, nothing hangs, and every bad file is named.

``GCVIDEO_FUZZ_FILES=3000 pytest tests/integration/test_damaged_data.py`` is the long version.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.dataset import ClipDataset, ViewDataset
from gcvideo.data.loader import epoch_order, eval_loader, train_loader
from gcvideo.data.records import RecordTable
from tests.fuzz import damaged_files

COUNT = int(os.environ.get("GCVIDEO_FUZZ_FILES", "80"))
DATA = DataConfig(frames=4, stride=2, crop=32, short_side=(32, 40), video_timeout=30, worker_memory=2)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> RecordTable:
    folder = tmp_path_factory.mktemp("damaged")
    paths = [str(path) for _, path in damaged_files(folder, COUNT, seed=7)]
    names = [Path(path).name for path in paths]
    return RecordTable(ids=names, paths=paths, labels=range(COUNT), source="damaged.txt")


def test_training_and_testing_name_the_same_bad_files(records, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    dataset = ClipDataset(records, data=DATA, seed=0, quarantine=str(path))
    batches = list(train_loader(dataset, batch_size=8, seed=0, epoch=0, workers=2))
    slots = epoch_order(COUNT, seed=0, epoch=0, global_batch=8).tolist()
    shown = [index for batch in batches for index in batch.indices.tolist()]
    named = {failure.id for batch in batches for failure in batch.failures}
    assert len(shown) == len(slots)
    assert 0 < len(named) < COUNT
    for slot, index in zip(slots, shown, strict=True):
        replaced = [records[i % COUNT].id for i in range(slot, index if index >= slot else index + COUNT)]
        assert set(replaced) <= named  # nothing is replaced without being named
    assert {json.loads(line)["id"] for line in path.read_text().splitlines()} == named

    test = ViewDataset(records, data=DATA, test=TestConfig(clips=2, crops=3, short_side=32, crop=32))
    views = list(eval_loader(test, workers=2))
    assert [video.index for video in views] == list(range(COUNT))
    # Testing looks at more frames than training, so it may find more damage, never less.
    unreadable = {video.id for video in views if video.failure}
    opened = {
        failure.id for batch in batches for failure in batch.failures if "cannot be decoded" not in failure.reason
    }
    assert opened <= unreadable
