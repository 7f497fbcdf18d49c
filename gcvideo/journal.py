"""Journal of finished work, from which an interrupted ``gcvideo test`` or ``gcvideo prepare`` resumes."""

import glob
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # JSON values


class Journal:
    """Finished items on disk, one JSON object a line, written as soon as they are added.

    A line cut short by a kill is ignored. Processes that share the work append to one file each, and everyone reads
    all of them, so the next run may have another number of processes.

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
        self._entries: dict[str, Row] = {}
        read = {file: self._read(file) for file in self._files()}
        self.fits = read.get(self._own, False)
        self.is_foreign = any(not fits and file.exists() and file.stat().st_size for file, fits in read.items())

    def rows(self) -> list[Row]:
        """The rows of all items."""
        return [entry["row"] for entry in self._entries.values()]

    def find(self, item: str, stamp: Any = None) -> Row | None:
        """The row of an item; None where there is none or it was added with another stamp."""
        entry = self._entries.get(item)
        return entry["row"] if entry is not None and entry["stamp"] == stamp else None

    def forget(self, item: str) -> None:
        """Leave an item's row out, so that the item is done again."""
        self._entries.pop(item, None)

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
        self._entries.clear()
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [self.path, *self.path.parent.glob(f"{glob.escape(self.path.name)}.[0-9]*")]

    def _read(self, file: Path) -> bool:
        """Read the rows of a file; returns whether it exists and has this key."""
        try:
            key, *lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return False
        if key != self._key:
            return False
        for line in lines:
            with suppress(ValueError):  # a line cut short
                entry = json.loads(line)
                self._entries[entry["path"]] = entry
        return True
