"""Journal of finished work, from which an interrupted command resumes and in which machines share one job."""

import glob
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from gcvideo.errors import ConfigError

Row = dict[str, Any]  # JSON values


class Journal:
    """Finished items on disk, one JSON object a line, written as soon as they are added.

    A line cut short by a kill is ignored. Processes that share the work append to one file each, and everyone reads
    all of them, so the next run may have another number of processes. Rows stay on disk; only their places are kept.

    Args:
        path: the file of rank 0, those of other ranks lie beside it; created when the first row is added.
        key: everything that the rows depend on besides their items; a file with another key starts over.
        rank: of this process.

    Attributes:
        fits: whether this process's file exists and has this key.
        is_foreign: whether there is a file, of any process, with another key.
    """

    def __init__(self, path: str | Path, key: Row, *, rank: int = 0) -> None:
        self.path = Path(path)
        self._own = Path(f"{path}.{rank}") if rank else self.path
        self._key = json.dumps(key, sort_keys=True)
        self._places: dict[str, tuple[Path, int]] = {}  # file, and byte of its line
        read = {file: self._read(file) for file in self._files()}
        self.fits = read.get(self._own, False)
        self.is_foreign = not all(read.values())

    def __contains__(self, item: str) -> bool:
        return item in self._places

    def require_own(self, made_by: str) -> None:
        """Check that nobody's work would be lost or mixed with this.

        Args:
            made_by: what the rows depend on, in words.

        Raises:
            ConfigError: there is a file with another key.
        """
        if self.is_foreign:
            fix = f"choose another place, or start over: remove what it wrote, and {self.path}*"
            raise ConfigError(f"{self.path}: is of a job with another {made_by}; {fix}")

    def rows(self) -> list[Row]:
        """The rows of all items."""
        return [self._entry(item)["row"] for item in self._places]

    def find(self, item: str, stamp: Any = None) -> Row | None:
        """The row of an item; None where there is none or it was added with another stamp."""
        entry = self._entry(item) if item in self else None
        return entry["row"] if entry is not None and entry["stamp"] == stamp else None

    def forget(self, item: str) -> None:
        """Leave an item's row out, so that the item is done again."""
        self._places.pop(item, None)

    def add(self, item: str, row: Row, stamp: Any = None) -> None:
        """Append a row.

        Args:
            item: name of the finished item.
            row: its result.
            stamp: JSON value that changes when the item does, such as the time of a file's last change.
        """
        if not (self.fits and self._own.exists()):  # rank 0 may have removed it
            self._own.parent.mkdir(parents=True, exist_ok=True)
            self._own.write_text(self._key, encoding="utf-8")
            self.fits = True
        with self._own.open("a", encoding="utf-8") as file:
            # The line break goes first: so a line that a kill has cut short does not damage the next one.
            file.write("\n" + json.dumps({"path": item, "stamp": stamp, "row": row}))

    def remove(self) -> None:
        """Delete the files of all processes: the results are written elsewhere, or the work starts over."""
        self.fits = False
        self._places.clear()
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        files = (self.path, *self.path.parent.glob(f"{glob.escape(self.path.name)}.[0-9]*"))
        return [file for file in files if file.exists() and file.stat().st_size > 0]

    def _entry(self, item: str) -> Row:
        file, place = self._places[item]
        with file.open("rb") as opened:
            opened.seek(place)
            entry: Row = json.loads(opened.readline())
        return entry

    def _read(self, file: Path) -> bool:
        """Note the rows of a file; returns whether it has this key."""
        with file.open("rb") as opened:
            place = len(key := opened.readline())
            if key.rstrip(b"\n") != self._key.encode():
                return False
            for line in opened:
                with suppress(ValueError):  # a line cut short
                    self._places[json.loads(line)["path"]] = file, place
                place += len(line)
        return True
