"""Graceful shutdown on SIGTERM, SIGUSR1 and Ctrl-C: save a checkpoint, then exit with code 75."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

# EX_TEMPFAIL of sysexits.h: a temporary failure, the same command (with --resume) will succeed later.
EXIT_CODE = 75
# Of a batch system's shutdown, of Slurm's --signal=USR1, and of Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

T = TypeVar("T")


class StopSignals:
    """Inside the ``with`` block these signals are noted instead of ending the process; a second Ctrl-C ends it.

    Attributes:
        received: name of the last signal that came.
        interrupted: whether ``unless_received`` has ended before its items did.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def unless_received(self, items: Iterable[T]) -> Iterator[T]:
        """The items, until a signal comes."""
        for item in items:
            if self.received:
                self.interrupted = True
                return
            yield item

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


class Stopped(Exception):
    """Training was stopped by a signal after saving a checkpoint; ``str()`` names the signal."""
