"""Being told to stop: save first, then leave with an exit code that says "start me again"."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

# EX_TEMPFAIL of sysexits.h: a temporary failure, the same command (with --resume) will succeed later.
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of a batch system's shutdown and of Slurm's --signal=USR1


T = TypeVar("T")


class StopSignals:
    """Inside the ``with`` block SIGTERM and SIGUSR1 are noted instead of killing the process.

    Attributes:
        received: the name of the last signal that came.
        left_off: whether ``unless_received`` has ended before its items did.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.left_off = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, where signals do not arrive anyway
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # whatever signal.signal returned

    def unless_received(self, items: Iterable[T]) -> Iterator[T]:
        """The items, as long as no signal has come."""
        for item in items:
            if self.received:
                self.left_off = True
                return
            yield item

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


class Stopped(Exception):
    """Training has been told to stop and has saved; ``str()`` names the signal."""
