"""Python objects named by a config: ``module:name``, the dotted path of a user's own block, optimizer, loss ...

Whoever runs a config, or a checkpoint that holds one, runs the code that its dotted paths name: run only configs and
checkpoints whose modules you know.
"""

import os
import pkgutil
import sys
from typing import Any

from gcvideo.errors import ConfigError


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
