"""Checks of command-line arguments, made before long work."""

import argparse
import math
from pathlib import Path

from gcvideo.errors import ConfigError
from gcvideo.files import require_writable

FILE_OPTIONS = ("json", "json_lines", "html", "csv", "markdown", "save")  # files that are written after all the work
FOLDER_OPTIONS = ("png", "pictures", "maps", "output")


def require_numbers(args: argparse.Namespace, **least: float) -> None:
    """Check that options are finite and at least as large as given.

    Raises:
        ConfigError: an option is not; one that is None was not given.
    """
    for name, bound in least.items():
        given = getattr(args, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not bound <= value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')}: must be at least {bound:g}, not {value:g}")


def require_writable_outputs(args: argparse.Namespace) -> None:
    """Check before long work that the files and folders named by the options can be written."""
    for name in (*FILE_OPTIONS, *FOLDER_OPTIONS):
        place = getattr(args, name, None)
        if isinstance(place, (str, Path)):
            require_writable(place, key=f"--{name.replace('_', '-')}", folder=name in FOLDER_OPTIONS)
