"""The errors a user can cause. Commands print them as one line and exit with code 2."""

import difflib
from collections.abc import Iterable


class GcvideoError(Exception):
    """Base of every error whose message is meant for the user: what is wrong, where, and the fix."""


class ConfigError(GcvideoError):
    """A config file or override that cannot be honoured."""


class DataError(GcvideoError):
    """An annotation, folder or data set that cannot be used."""


class VideoError(GcvideoError):
    """One video that cannot be read.

    Args:
        path: the video file.
        reason: why it cannot be read, in a few words.
    """

    def __init__(self, path: object, reason: str) -> None:
        # Both go to ``args`` so that the error survives pickling on its way out of a data worker.
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DamagedVideoError(VideoError):
    """A video that decodes, but that the decoder says is damaged; another decoder may only say nothing of it."""


class CheckpointError(GcvideoError):
    """A checkpoint that is damaged, unsafe to read, or does not fit the model."""


class InputShapeError(GcvideoError, ValueError):
    """A clip of a shape that the network's strides do not allow."""


class TrainingError(GcvideoError):
    """A training that has to stop, because its loss, weights or scores are not finite."""


def nearest(name: str, names: Iterable[str]) -> str:
    """End of an error message: "; did you mean 'optim.lr'?", or nothing where no name is close."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
