"""Atomic writing of files, checks that outputs can be written, and the journal of finished work.

From a journal an interrupted command resumes, and in it machines share one job.
"""

import glob
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from gcvideo.errors import ConfigError

Row = dict[str, Any]  # JSON values

# A list of numbers alone as json.dumps breaks it; a string holds no line break.
NUMBERS = re.compile(r"\[\n\s*([-\d.eE+][-\d.eE+,\s]*?)\s*\n\s*\]")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to: synced and renamed into place, or removed after an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name[-50:]}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a write to a full disk does not know the name of its file
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file that is complete or does not appear; see ``replacing``."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path | None, value: Any) -> None:
    """Write a value as indented JSON: complete or not at all. NaN and infinity, which JSON has not, become null.

    Args:
        path: of the file; None writes nothing, so that a command can pass what ``--json`` says.
        value: dicts, lists and plain values.
    """
    if path:
        text = json.dumps(_finite(value), indent=2, allow_nan=False)
        text = NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)  # a row of a matrix on one line
        write_atomically(path, (text + "\n").encode())


def read_yaml(module: str, name: str) -> Any:
    """The content of a YAML file of the package, by its place beside a module, whose ``__file__`` is given."""
    text = (Path(module).parent / name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def hash_file(*paths: str | Path) -> str:
    """SHA-256 of a file, in hex, as ``sha256sum`` prints it; of several, of all their bytes."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def hash_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hex; names of files may hold bytes that are none."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_writable(path: str | Path, *, key: str, folder: bool = False) -> None:
    """Check before long work that its result can be written; creates nothing.

    Args:
        path: file to write later, or with ``folder`` the folder of such files.
        key: the option or key that gave the path.

    Raises:
        ConfigError: it cannot be written.
    """
    path = Path(path)
    first = path if folder else path.parent
    existing = next(place for place in (first, *first.parents) if place.exists())
    # A device, a pipe or /dev/stdout would be replaced by a file.
    special = path.exists() and not (path.is_dir() if folder else path.is_file())
    linked = [os.path.realpath(path.parent), os.readlink(path) if path.is_symlink() else ""]
    special = special or any(place.startswith("/proc/") for place in linked)
    if not existing.is_dir() or not os.access(existing, os.W_OK) or special:
        raise ConfigError(f"{key}: {path} cannot be written as a {'folder' if folder else 'file'}; give another place")


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
            return dict(json.loads(opened.readline()))

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
