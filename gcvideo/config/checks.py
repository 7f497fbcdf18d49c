"""Checks of config values: each raises a one-line ``ConfigError`` that names the key and the value."""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gcvideo.errors import ConfigError
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
    if value not in kinds and ":" not in value:
        raise ConfigError(
            f"{key}: {value!r} is not one of {', '.join(kinds)}, nor a path module:name{nearest(value, kinds)}"
        )


def nearest(name: str, names: Iterable[str]) -> str:
    """End of an error message: "; did you mean 'optim.lr'?", or nothing where no name is close."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
