"""Asynchronous prefetch of batches to the device; the wait for data and the compute are measured separately."""

import time
from collections import deque
from collections.abc import Iterable, Iterator

import torch

from gcvideo.data.dataset import ClipBatch


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
        self._batches = self._copy_ahead(loader) if device.type == "cuda" else self._load(loader)

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        """The next batch; ``indices`` and ``failures`` stay on the host."""
        return next(self._batches)

    def reset(self) -> float:
        """The time waited since the last call, in seconds."""
        waited, self.waited = self.waited, 0.0
        return waited

    def _load(self, loader: Iterable[ClipBatch]) -> Iterator[ClipBatch]:
        began = time.perf_counter()
        for batch in loader:
            self.waited += time.perf_counter() - began
            yield batch
            began = time.perf_counter()

    def _copy_ahead(self, loader: Iterable[ClipBatch]) -> Iterator[ClipBatch]:
        copying, computing = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        copies = (self._start_copy(batch, copying) for batch in self._load(loader))
        done: deque[torch.cuda.Event] = deque()
        ready = next(copies, None)
        while ready is not None:
            batch, arrived = ready
            ready = next(copies, None)  # copied during the computation of this one
            computing.wait_event(arrived)
            for tensor in (batch.clips, batch.labels):
                tensor.record_stream(computing)  # its memory belongs to the copying stream
            yield batch
            done.append(computing.record_event())
            if len(done) > 2:
                done.popleft().synchronize()

    def _start_copy(self, batch: ClipBatch, stream: torch.cuda.Stream) -> tuple[ClipBatch, torch.cuda.Event]:
        batch = batch.pin_memory()  # costs nothing where the loader did it
        with torch.cuda.stream(stream):
            clips = batch.clips.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
            return batch._replace(clips=clips, labels=labels), stream.record_event()
