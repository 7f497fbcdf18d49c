"""Writing files so that nobody ever reads half of one."""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from gcvideo.errors import ConfigError

FILE_OPTIONS = ("json", "html", "csv", "markdown")  # of the commands: files that are written after all the work
FOLDER_OPTIONS = ("png", "pictures", "maps")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a temporary file beside ``path``, sync it, and rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON: complete or not at all. NaN and infinity, which JSON has not, become null."""
    write_atomically(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_writable_outputs(args: argparse.Namespace) -> None:
    """Raise a ``ConfigError`` for an output option whose place cannot be written, before any work is done for it."""
    for name in (*FILE_OPTIONS, *FOLDER_OPTIONS):
        place = getattr(args, name, None)
        if not isinstance(place, (str, Path)):
            continue
        path = Path(place)
        if name in FILE_OPTIONS and path.is_dir():
            raise ConfigError(f"--{name}: {path} is a folder; name a file")
        folder = path if name in FOLDER_OPTIONS else path.parent
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir():
            raise ConfigError(f"--{name}: {path} cannot be written, because {existing} is no folder")
        if not os.access(existing, os.W_OK):
            raise ConfigError(f"--{name}: {path} cannot be written: no permission to write in {existing}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
