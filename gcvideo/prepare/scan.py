"""One job a video, over thousands of videos: in disposable processes, with progress, resumed where it was cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from gcvideo.console import Progress
from gcvideo.prepare.pool import Limits, default_workers, run_jobs
from gcvideo.video.tar_members import parse_member

Row = dict[str, Any]  # JSON values; {"error": reason} for a video on which the job failed


def scan(
    function: Callable[[str], Row],
    paths: Sequence[str],
    *,
    journal: Journal,
    title: str,
    limits: Limits | None = None,
    workers: int | None = None,
) -> dict[str, Row]:
    """Apply ``function`` to every video that the journal does not know yet.

    Args:
        function: path -> row; importable by its module and name.
        paths: of the videos.
        journal: what earlier runs found; every new row goes there at once.
        title: for the progress bar.
        limits: what one video may use.
        workers: processes at a time; by default one a core.

    Returns:
        path -> row, in the order of ``paths``. A job that failed gives ``{"error": reason}``.
    """
    rows = {path: row for path in paths if (row := journal.find(path)) is not None}
    waiting = [path for path in paths if path not in rows]
    if waiting:
        failed = 0
        with Progress(title, total=len(paths), unit="videos", start=len(rows)) as progress:
            for outcome in run_jobs(
                function, waiting, workers=min(workers or default_workers(), len(waiting)), limits=limits
            ):
                row = outcome.value if outcome.error is None else {"error": outcome.error}
                assert row is not None
                rows[outcome.item] = row
                journal.add(outcome.item, row)
                failed += "error" in row
                progress.advance(failed=failed)
    return {path: rows[path] for path in paths}


class Journal:
    """Rows found so far, in a file that grows by a line of JSON for each video; a context manager.

    A row counts as long as its video has the same size and time of change. A last line cut short by a kill is left out.

    Args:
        path: the file; made when the first row is added.
        key: what the rows depend on besides the videos; a file with another key starts over.

    Attributes:
        fits: whether the file was there and had this key.
    """

    def __init__(self, path: str | Path, key: Row) -> None:
        self.path = Path(path)
        self._key = json.dumps(key, sort_keys=True)
        self._file: IO[str] | None = None
        self._rows: dict[str, Row] = {}
        self.fits = self._read()

    def find(self, path: str) -> Row | None:
        """The row of a video, if there is one and the video has not changed since."""
        found = self._rows.get(path)
        return found["row"] if found is not None and found["stamp"] == _stamp(path) else None

    def forget(self, path: str) -> None:
        """Take a row for lost."""
        self._rows.pop(path, None)

    def add(self, path: str, row: Row) -> None:
        """Keep a row; it survives the end of this process, however that comes."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a" if self.fits else "w", encoding="utf-8")
            self._file.write("\n" if self.fits else f"{self._key}\n")  # a torn last line must not swallow the next one
        self._file.write(json.dumps({"path": path, "stamp": _stamp(path), "row": row}) + "\n")
        self._file.flush()

    def remove(self) -> None:
        """The work is done, and its result written elsewhere."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> bool:
        try:
            key, *lines = self.path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return False
        if key != self._key:
            return False
        for line in lines:
            try:
                entry = json.loads(line)
                self._rows[entry["path"]] = entry
            except (ValueError, KeyError, TypeError):
                continue
        return True


def _stamp(path: str) -> list[int] | None:
    """Size and time of change, for a video in a shard of that; None for a file that is not there."""
    member = parse_member(path)
    try:
        status = os.stat(member.shard if member else path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
