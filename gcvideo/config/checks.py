"""Checks of config values, and the Python objects that values name; errors are a line that names key and value.

The latter are dotted paths ``module:name`` of a user's own block, optimizer, loss ... Whoever runs a config, or a
checkpoint that holds one, runs the code that its dotted paths name: run only configs and checkpoints whose modules you
know.
"""

import math
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gcvideo.errors import ConfigError, nearest
from gcvideo.files import read_yaml

_RANGES = read_yaml(__file__, "ranges.yaml")
_LIES: dict[str, Callable[[float], bool]] = {
    "above 0": lambda number: number > 0,
    "0 or more": lambda number: number >= 0,
    "in [0, 1)": lambda number: 0 <= number < 1,
    "in [0, 1]": lambda number: 0 <= number <= 1,
    "in (0, 1]": lambda number: 0 < number <= 1,
    "in [0, 30]": lambda number: 0 <= number <= 30,
}


def check_ranges(section: str, config: Any) -> None:
    """Refuse NaN, infinity and numbers outside the ranges of ``ranges.yaml``; ``section`` "" is the top level."""
    for name, value in vars(config).items():
        words = _RANGES[section or "run"].get(name)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                words = "a finite number"
            elif words is None or not isinstance(number, (int, float)) or _LIES[words](number):
                continue
            raise ConfigError(f"{section}.{name}: must be {words}, is {number}".lstrip("."))


def check_kind(key: str, value: str, kinds: Sequence[str]) -> None:
    """Refuse a value that is neither one of ``kinds`` nor a dotted path ``module:name``."""
    if value not in kinds and not is_path(value):
        raise ConfigError(
            f"{key}: {value!r} is not one of {', '.join(kinds)}, nor a path module:name{nearest(value, kinds)}"
        )


def is_path(text: str) -> bool:
    """Whether a config value is a dotted path ``module:name`` instead of a built-in kind."""
    return ":" in text


def import_object(text: str, *, key: str) -> Any:
    """Python object that the dotted path ``module:name`` of a config names.

    The module is imported as Python would, then also from the current directory, which is appended to ``sys.path`` so
    that worker processes find the module too. Its code runs.

    Args:
        text: for example "my_blocks:CBAM"; dots may follow the colon ("my_blocks:Blocks.cbam").
        key: the config key, for errors ("model.context.kind").

    Raises:
        ConfigError: the text has no colon, the module cannot be imported, or it has no such name.
    """
    if not all(text.partition(":")):
        raise ConfigError(f"{key}: {text!r} is not a dotted path; write module:name, for example my_blocks:CBAM")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return pkgutil.resolve_name(text)
    except Exception as error:  # the module's own code can raise anything
        missing = isinstance(error, ModuleNotFoundError)
        fix = "; install it, run from its folder, or add that folder to PYTHONPATH" if missing else ""
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"{key}: {text!r}: {reason}{fix}") from error
