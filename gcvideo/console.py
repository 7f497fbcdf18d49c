"""What a user sees: lines, tables and progress, on a terminal and in a log file alike.

Only rank 0 speaks. On a terminal progress is a live bar; elsewhere (a pipe, a batch job) it is a plain line every few
seconds. Between ``log_to(path)`` and its end everything is also written to that file, as plain lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from gcvideo import distributed
from gcvideo.errors import GcvideoError

_log_file: IO[str] | None = None


def say(text: str = "") -> None:
    """Print a line to stdout and to the log file."""
    if distributed.is_main():
        print(text, flush=True)
        _log(text)


def warn(text: str) -> None:
    """Print a line that begins with "warning:" to stderr and to the log file."""
    if distributed.is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)
        _log(f"warning: {text}")


def printable(text: str) -> str:
    """A file name or label on one line, as it can be shown: control and direction characters are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def table(rows: Sequence[Sequence[object]], *, columns: Sequence[str], title: str | None = None) -> None:
    """Print an aligned table; numbers to the right, text to the left."""
    for line in table_lines(rows, columns=columns, title=title):
        say(line)


def table_lines(rows: Sequence[Sequence[object]], *, columns: Sequence[str], title: str | None = None) -> list[str]:
    """The lines that ``table`` prints."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    right = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]

    def aligned(line: Sequence[str]) -> str:
        fields = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True))
        return "  ".join(fields).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return [*([title] if title else []), aligned(columns), rule, *(aligned(line) for line in cells)]


@contextmanager
def log_to(path: str | Path) -> Iterator[None]:
    """Write everything said inside the ``with`` block to the end of a file as well, and the error that ends it."""
    global _log_file
    if not distributed.is_main():
        yield
        return
    before = _log_file
    with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as _log_file:
        try:
            yield
        except GcvideoError as error:
            _log(f"error: {error}")
            raise
        finally:
            _log_file = before


class Progress:
    """How far a long job is: count, rate, time left, and whatever else the job reports.

    with Progress("test", total=80, unit="videos") as progress:
        ...
        progress.advance(1, top1="62.5 %")

    Args:
        title: what is going on, in a word or two.
        total: how many units the job has; None where that is not known.
        unit: what is counted, for the rate ("clips" gives "clips/s").
        start: units done before, by a run that is being continued; they count for the share but not for the rate.
        every: seconds between plain lines where there is no terminal, and in the log file.
    """

    def __init__(
        self, title: str, *, total: int | None = None, unit: str = "steps", start: int = 0, every: float = 10.0
    ) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.done = self.start = start
        self.fields: dict[str, str] = {}
        self._began = self._last_line = time.monotonic()
        self._speaks = distributed.is_main()
        self._bar: Any = None
        if self._speaks and sys.stderr.isatty():
            self._bar = _live_bar()
            self._bar.start()
            self._task = self._bar.add_task(title, total=total, completed=start, fields="")

    def advance(self, count: int = 1, **fields: object) -> None:
        """Report ``count`` more units done; keyword arguments are shown behind the rate until they are replaced."""
        self.done += count
        self.fields.update({name: _cell(value) for name, value in fields.items()})
        if not self._speaks:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, fields=f"{self._rate()} {self._shown_fields()}")
        if time.monotonic() - self._last_line >= self.every:
            self._plain_line()

    def show(self, **fields: object) -> None:
        """Replace what is shown behind the rate, without counting anything."""
        self.advance(0, **fields)

    def close(self) -> None:
        """End with one last line, so that the log says how it went; none where nothing was to do or could be done."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._speaks and (self.total or self.done > self.start):
            self._plain_line(last=True)
        self._speaks = False

    @property
    def rate(self) -> float:
        """Units a second since the job began."""
        return (self.done - self.start) / max(time.monotonic() - self._began, 1e-9)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _plain_line(self, *, last: bool = False) -> None:
        self._last_line = now = time.monotonic()
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        of_total = f"/{self.total}" if self.total else ""
        left = ""
        if last:
            left = f"  took {duration(now - self._began)}"
        elif self.total and self.rate > 0:
            left = f"  ETA {duration((self.total - self.done) / self.rate)}"
        line = f"{self.title} {self.done}{of_total} {self.unit}{share}  {self._rate()}{left}  {self._shown_fields()}"
        if self._bar is None and not sys.stderr.isatty():
            print(line.rstrip(), file=sys.stderr, flush=True)
        _log(line.rstrip())

    def _rate(self) -> str:
        return f"{self.rate:.3g} {self.unit}/s"

    def _shown_fields(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.fields.items())


def duration(seconds: float) -> str:
    """Seconds as people write them: "8.3 s", "3:05", "2:14:09"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def clock(seconds: float) -> str:
    """A moment as a player shows it: "0:03.5", "1:02:03.4"."""
    tenths = round(seconds * 10)
    hours, rest = divmod(tenths, 36000)
    minutes, rest = divmod(rest, 600)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest // 10:02}.{rest % 10}"


def percent(share: float) -> str:
    """A fraction in [0, 1] as text: "62.50 %"."""
    return f"{100 * share:.2f} %"


def _live_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[fields]}", markup=False),
        console=Console(stderr=True),
        refresh_per_second=4,
    )


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _log(line: str) -> None:
    if _log_file is not None:
        _log_file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        _log_file.flush()
