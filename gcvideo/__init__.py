"""gcvideo: global context networks for video action recognition.

The names below are imported on first use, so that ``import gcvideo`` stays cheap and pulls in neither torch nor a
video decoder.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {"create_model": "gcvideo.models", "load": "gcvideo.predict.predictor"}
__all__ = ["__version__", "create_model", "load"]

if TYPE_CHECKING:
    from gcvideo.models import create_model
    from gcvideo.predict.predictor import load


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gcvideo' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
