"""Which videos are not to be read again, and why: shared by all worker processes and kept in the run folder."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gcvideo.data.annotations import RecordTable
from gcvideo.errors import DataError

SOUND, SUSPECT, BAD = 0, 1, 2


class Failure(NamedTuple):
    """A video that could not be read, and why."""

    id: str
    path: str
    reason: str


class Quarantine:
    """The state of every record, visible to all processes, and a file that remembers the bad ones.

    A record is SOUND at first. One that took a worker process down with it is SUSPECT: it gets one more chance, on the
    other decoder. One that no decoder reads is BAD, and no longer touched. Only the main process changes states; worker
    processes, forked from it, see the changes at once.

    The file has one JSON object a line (id, path, reason), only ever grows, and is honoured at the next start; delete
    lines to give videos another chance.

    Args:
        records: the data set.
        path: the file; None keeps everything in memory.

    Raises:
        DataError: the file holds something else.
    """

    def __init__(self, records: RecordTable, path: str | Path | None = None) -> None:
        self.records = records
        self.path = Path(path) if path is not None else None
        self.state = np.frombuffer(mmap.mmap(-1, max(len(records), 1)), dtype=np.uint8)
        self.reasons: dict[str, str] = {}  # of bad records, by id
        if self.path is not None and self.path.exists():
            self.reasons = _read(self.path)
            self.state[self.records.find(self.reasons)] = BAD

    def __len__(self) -> int:
        return int((self.state == BAD).sum())

    def failure(self, index: int) -> Failure:
        """The failure of a BAD record."""
        record = self.records[index]
        return Failure(record.id, record.path, self.reasons.get(record.id, "quarantined"))

    def strike(self, index: int, reason: str) -> None:
        """A worker process died on this record: SUSPECT the first time, BAD the second time."""
        if self.state[index] == SOUND:
            self.state[index] = SUSPECT
        else:
            record = self.records[index]
            self.add(Failure(record.id, record.path, reason))

    def add(self, failure: Failure) -> Failure:
        """Declare a record BAD, in the file too; returns the failure with the reason that was found first."""
        if failure.id not in self.reasons:
            self.reasons[failure.id] = failure.reason
            self.state[self.records.find([failure.id])] = BAD
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(failure._asdict()) + "\n")
        return failure._replace(reason=self.reasons[failure.id])


def _read(path: Path) -> dict[str, str]:
    """Id -> reason. A last line cut short by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            entries[entry["id"]] = entry["reason"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise DataError(f"{path}:{number}: expected a JSON object with id, path and reason") from None
    return entries
