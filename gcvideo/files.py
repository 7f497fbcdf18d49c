"""Atomic writing of files, and checks that outputs can be written."""

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gcvideo.errors import ConfigError

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


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON: complete or not at all. NaN and infinity, which JSON has not, become null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False)
    text = NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)  # a row of a matrix on one line
    write_atomically(path, (text + "\n").encode())


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
