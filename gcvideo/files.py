"""Writing files so that nobody ever reads half of one."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from gcvideo.errors import ConfigError


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
    """Write a value as indented JSON: complete or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def check_writable(path: str | Path, *, key: str) -> None:
    """Find out before long work whether its result can be written; makes the folder where there is none.

    Args:
        path: file to write later.
        key: the option or key that gave the path.

    Raises:
        ConfigError: it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be written ({error.strerror}); give another place") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
