"""Checks of command-line arguments, made before long work, and what several commands read from them."""

import argparse
import functools
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gcvideo.errors import ConfigError
from gcvideo.files import read_yaml, require_writable

TEXT_OPTIONS = ("json", "json_lines", "html", "csv", "markdown")  # files that are written after all the work
FILE_OPTIONS = (*TEXT_OPTIONS, "save")
FOLDER_OPTIONS = ("png", "maps", "output")


TYPES = {"int": int, "float": float, "path": Path, "list": lambda text: text.split(",")}


@functools.cache
def read_options() -> dict[str, dict[str, Any]]:
    """The options of commands, as ``commands/options.yaml`` has them."""
    return dict(read_yaml(__file__, "commands/options.yaml"))


def add_options(parser: argparse.ArgumentParser, section: str) -> None:
    """Declare the options of a command; a number below the ``least`` of its option is a ``ConfigError``.

    Args:
        parser: of the command.
        section: of ``commands/options.yaml``.
    """

    def add(target: Any, options: dict[str, Any]) -> None:
        for name, fields in options.items():
            if not isinstance(fields, dict):
                setattr(target, name, fields)
            elif any(isinstance(value, dict) for value in fields.values()):  # a group
                group, exclusive = target.add_argument_group(name), fields.get("exclusive")
                add(group.add_mutually_exclusive_group() if exclusive else group, fields)
            else:
                fields = dict(fields)
                if "type" in fields:
                    fields["type"] = TYPES[fields["type"]]
                if "least" in fields:
                    fields["type"] = _number(name, fields["type"], least=fields.pop("least"))
                if isinstance(fields.get("metavar"), list):
                    fields["metavar"] = tuple(fields["metavar"])
                target.add_argument(name, **fields)

    add(parser, read_options()[section])


def _number(option: str, kind: type[float], *, least: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        if not least <= (value := kind(text)) < math.inf:
            raise ConfigError(f"{option}: must be at least {least:g}, not {value:g}")
        return value

    read.__name__ = kind.__name__  # for argparse's own message
    return read


def chosen_views(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``TestConfig`` that ``--clips``, ``--crops`` and ``--fast`` change."""
    chosen = {"clips": args.clips, "crops": args.crops, "whole_frame": args.fast or None}
    return {name: value for name, value in chosen.items() if value is not None}


def require_writable_outputs(args: argparse.Namespace) -> None:
    """Check before long work that the files and folders named by the options can be written, and replace no input.

    Raises:
        ConfigError: one cannot, another argument names the same file, or a text would replace a video or checkpoint.
    """
    given = [each for value in vars(args).values() for each in (value if isinstance(value, list) else [value])]
    named = Counter(os.path.abspath(each) for each in given if isinstance(each, str | Path))
    for name in (*FILE_OPTIONS, *FOLDER_OPTIONS, "out"):
        place, key = getattr(args, name, None), f"--{name.replace('_', '-')}"
        if not isinstance(place, str | Path) or str(place) == "-":
            continue
        if name != "out":  # of several commands, each of which knows whether it is a file
            require_writable(place, key=key, folder=name in FOLDER_OPTIONS)
        if name in TEXT_OPTIONS and os.path.isfile(place) and _is_binary(place):
            raise ConfigError(f"{key}: {place} is a video, a checkpoint or the like; give another place")
        if name not in ("save", *FOLDER_OPTIONS) and named[os.path.abspath(place)] > 1 and not os.path.isdir(place):
            raise ConfigError(f"{key}: {place} is named by another argument too; give another place")


def _is_binary(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return b"\0" in file.read(4096)
