"""Console output: lines, tables and progress bars, on a terminal and in a log file.

Only rank 0 prints. On a terminal progress is a live bar; elsewhere (a pipe, a batch job) it is a plain line every few
seconds. Between ``log_to(path)`` and its end everything is also written to that file, as plain lines.
"""

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gcvideo import distributed
from gcvideo.errors import GcvideoError

_log_file: IO[str] | None = None
_pause, _last_shown = 0.0, -math.inf  # of ``sparing``: seconds between lines of progress, and when the last one came


def say(text: str = "") -> None:
    """Print a line to stdout and to the log file."""
    if distributed.is_main() and not _pause:
        print(text, flush=True)
    _log(text)


def warn(text: str, *, every_process: bool = False) -> None:
    """Print a line that begins with "warning:" to stderr and to the log file; of rank 0, or of every process."""
    if every_process or distributed.is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)
        _log(f"warning: {text}")


def printable(text: str) -> str:
    """A file name or label on one line, as it can be shown: control and direction characters are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def table(rows: Sequence[Sequence[object]], *, columns: Sequence[str], title: str | None = None) -> None:
    """Print an aligned table; see ``aligned``."""
    for line in [*([title] if title else []), *aligned(rows, columns)]:
        say(line)


def aligned(rows: Sequence[Sequence[object]], columns: Sequence[str]) -> list[str]:
    """The lines of a table; columns of numbers to the right, text to the left."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    lines = []
    for line in [cells[0], ["-" * width for width in widths], *cells[1:]]:
        fields = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True))
        lines.append("  ".join(fields).rstrip())
    return lines


@contextmanager
def log_to(path: str | Path) -> Iterator[None]:
    """Write everything printed inside the ``with`` block to the end of a file as well, and the error that ends it."""
    global _log_file
    place = Path(path if distributed.is_main() else os.devnull)
    with place.open("a", encoding="utf-8", errors="backslashreplace") as _log_file:
        try:
            yield
        except GcvideoError as error:
            _log(f"error: {error}")
            raise
        finally:
            _log_file = None


@contextmanager
def sparing(seconds: float) -> Iterator[None]:
    """Print warnings alone inside the ``with`` block, and progress once in so many seconds; log files get all lines."""
    global _pause
    _pause = seconds
    try:
        yield
    finally:
        _pause = 0.0


class Progress:
    """Progress of a long job: count, rate, time left, and other values that the job reports.

    with Progress("test", total=80, unit="videos") as progress:
        ...
        progress.advance(1, top1="62.5 %")

    Args:
        title: the job in a word or two.
        total: how many units the job has; None where that is not known.
        unit: what is counted, for the rate ("clips" gives "clips/s").
        start: units done before, by a run that is being resumed; they count for the share but not for the rate.
        every: seconds between plain lines where there is no terminal, and in the log file.
    """

    def __init__(
        self, title: str, *, total: int | None = None, unit: str = "steps", start: int = 0, every: float = 10.0
    ) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.done = self.start = start
        self.fields: dict[str, str] = {}
        self._began = self._last_line = time.monotonic()
        self._bar = _live_bar(total) if distributed.is_main() and sys.stderr.isatty() else None

    def advance(self, count: int = 1, **fields: object) -> None:
        """Report ``count`` more units done; keyword arguments are shown behind the rate until they are replaced."""
        self.done += count
        self.fields.update({name: _cell(value) for name, value in fields.items()})
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, line=self._line())
        if time.monotonic() - self._last_line >= self.every:
            self._plain_line(self._line())

    @property
    def rate(self) -> float:
        """Units per second since the job began."""
        return (self.done - self.start) / max(time.monotonic() - self._began, 1e-9)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        """End with one last line, so that the log says how it went; none where nothing was to do or could be done."""
        if self._bar is not None:
            self._bar.stop()
        if self.total or self.done > self.start:
            self._plain_line(self._line(f"took {duration(time.monotonic() - self._began)}"))

    def _line(self, left: str = "") -> str:
        total = f"/{self.total}" if self.total else ""
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        if not left and self.total and self.rate > 0:
            left = f"ETA {duration((self.total - self.done) / self.rate)}"
        values = (f"{name} {value}" for name, value in self.fields.items())
        parts = (f"{self.title} {self.done}{total} {self.unit}{share}", f"{self.rate:.3g} {self.unit}/s", left, *values)
        return "  ".join(part for part in parts if part)

    def _plain_line(self, line: str) -> None:
        global _last_shown
        self._last_line = time.monotonic()
        if distributed.is_main() and not sys.stderr.isatty() and self._last_line - _last_shown >= _pause:
            print(line, file=sys.stderr, flush=True)
            _last_shown = self._last_line
        _log(line)


def duration(seconds: float) -> str:
    """Seconds as people write them: "8.3 s", "3:05", "2:14:09"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def clock(seconds: float) -> str:
    """A moment as a player shows it: "0:03.5", "1:02:03.4"."""
    whole, tenth = divmod(round(seconds * 10), 10)
    return f"{duration(whole) if whole >= 60 else f'0:{whole:02}'}.{tenth}"


def percent(share: float, digits: int = 2) -> str:
    """A fraction in [0, 1] as text: "62.50 %"."""
    return f"{100 * share:.{digits}f} %"


def _live_bar(total: int | None) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (BarColumn(bar_width=24), TextColumn("{task.fields[line]}", markup=False))
    bar = RichProgress(*columns, console=Console(stderr=True), refresh_per_second=4, transient=_pause > 0)
    bar.add_task("", total=total, line="")
    bar.start()
    return bar


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _log(line: str) -> None:
    if _log_file is not None:
        _log_file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        _log_file.flush()
