"""Asynchronous prefetch of batches to the device; the wait for data and the compute are measured separately."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from gcvideo.data.loader import ClipBatch


class Prefetcher:
    """Iterator over a loader's batches with their clips and labels on the device; measures the wait for them.

    On a GPU the next batch is copied on a separate stream during the computation of the current one. The host may run
    at most two batches ahead of the GPU: so the GPU never idles, and the time that ``next`` takes is a wait for data.

    Attributes:
        waited: seconds spent waiting for the loader since the last ``reset``.
    """

    def __init__(self, loader: Iterable[ClipBatch], device: torch.device) -> None:
        self.device = device
        self.waited = 0.0
        self._loader = iter(loader)
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._copied: deque[tuple[ClipBatch, torch.cuda.Event]] = deque()
        self._handed_out: deque[torch.cuda.Event] = deque()

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        """The next batch; ``indices`` and ``failures`` stay on the host."""
        if not self._cuda:
            return self._load()
        self._hold_back()
        if not self._copied:
            self._copied.append(self._start_copy(self._load()))
        batch, arrived = self._copied.popleft()
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(arrived)
        for tensor in (batch.clips, batch.labels):
            tensor.record_stream(stream)  # its memory belongs to the copying stream
        with contextlib.suppress(StopIteration):
            self._copied.append(self._start_copy(self._load()))
        return batch

    def reset(self) -> float:
        """The time waited since the last call, in seconds."""
        waited, self.waited = self.waited, 0.0
        return waited

    def _load(self) -> ClipBatch:
        began = time.perf_counter()
        try:
            return next(self._loader)
        finally:
            self.waited += time.perf_counter() - began

    def _start_copy(self, batch: ClipBatch) -> tuple[ClipBatch, torch.cuda.Event]:
        arrived = torch.cuda.Event()
        batch = batch.pin_memory()  # costs nothing where the loader did it
        with torch.cuda.stream(self._stream):
            clips = batch.clips.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
            arrived.record(self._stream)
        return batch._replace(clips=clips, labels=labels), arrived

    def _hold_back(self) -> None:
        """Wait until the GPU has finished with all but the last two batches."""
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))
        self._handed_out.append(done)
        if len(self._handed_out) > 2:
            self._handed_out.popleft().synchronize()


class Stopwatch:
    """Time of a run: its total, and the data wait and compute of its training steps.

    Args:
        seconds: total of the parts before an interruption.
        data: seconds of them that training steps waited for clips.
        compute: seconds of them that training steps computed.

    Attributes:
        data: seconds of training steps spent waiting for clips.
        compute: the other seconds of training steps.
    """

    def __init__(self, seconds: float = 0.0, *, data: float = 0.0, compute: float = 0.0) -> None:
        self._began = time.monotonic() - seconds
        self._lap = 0.0
        self.data, self.compute = data, compute

    @property
    def seconds(self) -> float:
        """Total of the run so far, without interruptions."""
        return time.monotonic() - self._began

    @contextmanager
    def training(self) -> Iterator[None]:
        """Start the first lap."""
        self._lap = time.monotonic()
        yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave this time out of the current lap."""
        began = time.monotonic()
        yield
        self._lap += time.monotonic() - began

    def lap(self, waited: float) -> tuple[float, float]:
        """Seconds of data and of compute since the last lap, of which ``waited`` were spent waiting for data."""
        now = time.monotonic()
        elapsed = max(now - self._lap, 1e-9)
        self._lap = now
        waited = min(waited, elapsed)
        self.data += waited
        self.compute += elapsed - waited
        return waited, elapsed - waited
