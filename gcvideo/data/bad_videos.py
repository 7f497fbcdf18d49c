"""List of bad videos: skipped on read, appended to on failure; shared by all processes, kept in the run folder."""

import itertools
import json
import mmap
import os
from pathlib import Path

import numpy as np

from gcvideo import distributed
from gcvideo.console import warn
from gcvideo.data.records import Failure, RecordTable
from gcvideo.errors import DataError
from gcvideo.files import write_atomically

ALWAYS, NEVER = 0, np.iinfo(np.int32).max


class Quarantine:
    """Which records are bad, visible to all processes, and the file that keeps this.

    - A record that killed a worker process is suspect: it is read once more, with the other decoder. If it kills again,
      it is bad at once. Both hold from the epoch that was read on, as the one before may still be under way.
    - A record that no decoder could read is bad from the epoch *after the next* on, as the next one is being read by
      then. Some videos are damaged in places: one clip of them can be read and another cannot. As a record's state
      never changes within an epoch, an epoch is the same whenever, and on whichever process, the damage is found; so a
      resumed run sees exactly the clips of a run that was never interrupted.

    The file has one JSON object a line (id, path, reason, from_epoch) and only ever grows. Loaders read it before every
    epoch, and processes tell each other what they found; only rank 0 writes. Delete lines to try videos again.

    A second list, such as the output of ``gcvideo prepare verify`` (or the file of an earlier run), names records that
    are bad from the start. It is only read. Videos of two folders may have the same id (``train/jump/1.mp4`` and
    ``val/jump/1.mp4``), so where the folder of a file that the list names exists, only that file is bad. Entries that
    are ``training_only`` (copies of test videos) do not count in tests.

    Only the main process changes anything; worker processes, forked from it, see the changes at once.

    Args:
        records: the data set.
        path: the file; None keeps everything in memory.
        known: the list of what is bad from the start.
        training: whether the records are trained on.

    Raises:
        DataError: the list cannot be read, or is none.

    Attributes:
        bad_from: int32 (len(records),), the epoch from which each record is bad.
        suspect_from: int32 (len(records),), the epoch from which each record is read by the other decoder.
        reasons: of bad records, by id.
        listed: the records that the list names.
    """

    def __init__(
        self,
        records: RecordTable,
        path: str | Path | None = None,
        *,
        known: str | Path | None = None,
        training: bool = False,
    ) -> None:
        self.records = records
        self._training = training
        self.path = Path(path) if path is not None else None
        count = max(len(records), 1)
        self.bad_from, self.suspect_from = np.frombuffer(mmap.mmap(-1, 8 * count), dtype=np.int32).reshape(2, -1)
        self.bad_from[:] = self.suspect_from[:] = NEVER
        self.reasons: dict[str, str] = {}
        self.listed: list[Failure] = []
        self._found: list[tuple[Failure, int]] = []  # what the other processes have not been told
        if known is not None:
            rows = self._read(Path(known).expanduser(), whole=True)
            self.bad_from[rows] = ALWAYS
            self.listed = [self.failure(row) for row in rows]

    def share(self) -> None:
        """Take in what the file says and the other processes have found, which rank 0 writes into the file.

        Every process must call it.

        Raises:
            DataError: the file cannot be read, or is no list of bad videos.
        """
        if self.path is not None and self.path.exists():
            self._read(self.path, whole=False)
        found, self._found = self._found, []  # a thread may add to it
        for failure, from_epoch in itertools.chain(*distributed.gather_objects(found)):
            self.add(failure, from_epoch=from_epoch)

    def is_bad(self, index: int, epoch: int) -> bool:
        """Whether a record is to be skipped in this epoch."""
        return bool(self.bad_from[index] <= epoch)

    def is_suspect(self, index: int, epoch: int) -> bool:
        """Whether a record killed a process in this epoch or before."""
        return bool(self.suspect_from[index] <= epoch)

    def failure(self, index: int) -> Failure:
        """The failure of a bad record."""
        record = self.records[index]
        return Failure(record.id, record.path, self.reasons.get(record.id, "quarantined"))

    def strike(self, place: int, reason: str) -> None:
        """Note that a worker process died on the record at a place of all epochs: ``epoch * len(records) + index``."""
        epoch, index = divmod(place, len(self.records))
        if self.is_suspect(index, epoch):
            self.add(self.failure(index)._replace(reason=reason), from_epoch=epoch)
        self.suspect_from[index] = min(self.suspect_from[index], epoch)

    def add(self, failure: Failure, *, from_epoch: int) -> Failure:
        """Declare a record bad, in the file too; returns the failure with the reason that was found first."""
        self.reasons.setdefault(failure.id, failure.reason)
        rows = self.records.find([failure.id])
        if self.bad_from[rows].max() > from_epoch:  # not known yet, or only from a later epoch on
            self.bad_from[rows] = from_epoch
            self._found.append((failure, from_epoch))
            if self.path is not None and distributed.is_main():
                lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
                if lines and not lines[-1].endswith("}"):  # was cut short, as on a full disk
                    lines.pop()
                lines.append(json.dumps({**failure._asdict(), "from_epoch": from_epoch}) + "\n")
                write_atomically(self.path, "\n".join(lines).encode())
        return failure._replace(reason=self.reasons[failure.id])

    def _read(self, path: Path, *, whole: bool) -> list[int]:
        """Take in the entries of a file; returns the indices of their records."""
        entries: dict[str, list[tuple[Failure, int]]] = {}  # and from which epoch on, by id
        for failure, epoch, training_only in read_bad_videos(path, whole=whole):
            if self._training or not training_only:
                entries.setdefault(failure.id, []).append((failure, epoch))
        rows: list[int] = []
        found: list[int] = self.records.find(entries).tolist()
        for index in found:
            record = self.records[index]
            own = [entry for entry in entries[record.id] if not (whole and _is_another(entry[0].path, record.path))]
            if own:
                rows.append(index)
                self.bad_from[index] = min(self.bad_from[index], *(epoch for _, epoch in own))
                self.reasons.setdefault(record.id, own[0][0].reason)
        if len(rows) < len(found):
            others = f"{len(found) - len(rows):,} videos of {self.records.source} only have the names of bad ones"
            warn(f"{path}: {others} in another folder; not left out. Run gcvideo prepare verify on copies again")
        return rows


def _is_another(listed: str, path: str) -> bool:
    """Whether a list names another file than this one, in a folder that is there; lists may come from elsewhere."""
    return os.path.isdir(os.path.dirname(listed)) and os.path.realpath(listed) != os.path.realpath(path)


def read_bad_videos(path: Path, *, whole: bool = True) -> list[tuple[Failure, int, bool]]:
    """Entries of a list of bad videos: which, from which epoch on, and whether in training only.

    Unless the file must be ``whole``, a last line that was cut short by a kill is ignored.

    Raises:
        DataError: the list cannot be read, or is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list of bad videos ({error})") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            failure = Failure(str(row["id"]), str(row.get("path", "")), str(row["reason"]))
            entries.append((failure, int(row.get("from_epoch", ALWAYS)), bool(row.get("training_only"))))
        except (ValueError, KeyError, TypeError, AttributeError):
            if whole or number < len(lines):
                raise DataError(f"{path}:{number}: expected a JSON object with id, path and reason") from None
    return entries
