"""Range checks of config values: each raises a one-line ``ConfigError`` that names the key and the value."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

from gcvideo.errors import ConfigError


def check_positive(section: str, config: Any, *names: str) -> None:
    """Refuse values of 0 and below; ``None`` passes as the default of an optional field."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{section}.{name}: must be positive, not {value}")


def check_not_negative(section: str, config: Any, *names: str) -> None:
    """Refuse values below 0."""
    for name in names:
        if getattr(config, name) < 0:
            raise ConfigError(f"{section}.{name}: must be 0 or more, is {getattr(config, name)}")


def check_fraction(section: str, config: Any, *names: str, closed: bool = False) -> None:
    """Refuse values outside [0, 1), or [0, 1] if ``closed``."""
    for name in names:
        value = getattr(config, name)
        if not (0 <= value < 1 or (closed and value == 1)):
            raise ConfigError(f"{section}.{name}: must lie in [0, 1{']' if closed else ')'}, is {value}")


def check_kind(key: str, value: str, kinds: Sequence[str]) -> None:
    """Refuse a value that is neither one of ``kinds`` nor a dotted path ``module:name``."""
    if value not in kinds and ":" not in value:
        raise ConfigError(
            f"{key}: {value!r} is not one of {', '.join(kinds)}, nor a dotted path module:name{nearest(value, kinds)}"
        )


def check_finite(key: str, value: Any) -> None:
    """Refuse NaN and infinity anywhere in a config; comparisons alone would let NaN pass."""
    if dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            check_finite(f"{key}.{entry.name}".lstrip("."), getattr(value, entry.name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            check_finite(key, part)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: must be a finite number, is {value}")


def nearest(name: str, names: Sequence[str], cutoff: float = 0.6) -> str:
    """End of an error message: "; did you mean 'optim.lr'?", or nothing where no name is close."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""
