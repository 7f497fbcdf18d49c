"""Data loaders: the order of an epoch, batches from worker processes that may die, and their way to the device.

The order of an epoch is one permutation that depends on the seed and the epoch alone. A loader can start at any step
of it, and any number of workers gives identical batches.
"""

import copy
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from gcvideo.config import DataConfig
from gcvideo.data.bad_videos import NEVER
from gcvideo.data.dataset import ClipBatch, ClipDataset, VideoViews, ViewDataset
from gcvideo.data.worker_pool import Hold, WorkerPool
from gcvideo.device import has_streams
from gcvideo.errors import ConfigError

T = TypeVar("T")


def epoch_order(
    num_records: int, *, seed: int, epoch: int, global_batch: int, labels: np.ndarray | None = None
) -> np.ndarray:
    """The slots of an epoch in order, int64 (steps x global_batch,).

    A permutation of the records, cut to whole batches. A set smaller than one batch is repeated to fill it. Slot s
    shows record ``s % num_records``; a record that comes up again gets a slot of its own, and so another clip.

    Args:
        num_records: of the data set.
        seed: of the run.
        epoch: from 0.
        global_batch: videos a step.
        labels: of the records; where they are given, every class comes up equally often.
    """
    # A fourth number keeps this stream apart from those of samples, which come from (seed, epoch, index).
    rng = np.random.default_rng((seed, epoch, 0, 1))
    order = rng.permutation(num_records) if labels is None else balanced_order(labels, rng)
    order = np.resize(order, max(1, num_records // global_batch) * global_batch)
    return order + num_records * _times_before(order)


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An epoch in which every class comes up equally often, to within one.

    As many slots as there are records are shared out among the classes that occur; each class fills its slots with
    its own records in random order, over and over. So a small class repeats its records and a large one leaves some
    out, others in the next epoch (class-balanced sampling: Kang et al. 2020, section 3).

    Args:
        labels: (R,) of the records.
        rng: decides the order.

    Returns:
        (R,) int64 indices of records, in random order.
    """
    by_class = np.split(np.argsort(labels, kind="stable"), np.flatnonzero(np.diff(np.sort(labels))) + 1)
    shares = np.full(len(by_class), len(labels) // len(by_class))
    shares[rng.permutation(len(by_class))[: len(labels) % len(by_class)]] += 1
    picked = []
    for records, share in zip(by_class, shares, strict=True):
        rounds = [rng.permutation(records) for _ in range(-(-int(share) // len(records)))]
        picked.append(np.concatenate([*rounds, records[:0]])[:share])
    return rng.permutation(np.concatenate(picked))


def _times_before(values: np.ndarray) -> np.ndarray:
    """How many times each value has come up before."""
    by_value = np.argsort(values, kind="stable")
    ranked = values[by_value]
    times = np.empty_like(values)
    times[by_value] = np.arange(len(values)) - np.searchsorted(ranked, ranked)  # where the run of equal values begins
    return times


@dataclass
class Loader(Generic[T]):
    """Loader with a length; made by ``train_loader`` or ``eval_loader``.

    Attributes:
        dataset: where the data comes from; its workers' deaths are held against the videos that they read.
        load: loads the item of one task, in a worker process.
        note: takes each item in the main process, puts its failures down as bad videos, and returns it.
        tasks: one an item.
        workers: worker processes; 0 loads in this one.
        pin_memory: items of worker processes come in page-locked memory; large tensors only until the next item.
    """

    dataset: ClipDataset | ViewDataset
    load: Callable[[Any, Hold], T]
    note: Callable[[T], T]
    tasks: Sequence[Any]
    workers: int
    pin_memory: bool = False

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[T]:
        return self._items(self.make_pool().map)

    def stream(self, pool: WorkerPool[Any, T]) -> Iterator[T]:
        """The items by workers that stay for the next loader: they begin now, or after those of the one before."""
        return self._items(pool.stream)

    def _items(self, run: Callable[[Sequence[Any]], Iterator[T]]) -> Iterator[T]:
        found = run(self.tasks) if self.workers else (self.load(task, lambda item: None) for task in self.tasks)
        return (self.note(item) for item in found)

    def make_pool(self) -> WorkerPool[Any, T]:
        """Worker processes for this loader, and for others with the same ``load``; they start with the first task."""
        return WorkerPool(
            self.load,
            workers=max(self.workers, 1),
            on_death=self.dataset.quarantine.strike,
            time_limit=self.dataset.data.video_timeout,
            memory_limit=int(self.dataset.data.worker_memory * 2**30),
            pin_memory=self.pin_memory,
        )


def train_loader(
    dataset: ClipDataset,
    *,
    batch_size: int,
    accumulate: int = 1,
    seed: int,
    epoch: int,
    start_step: int = 0,
    most: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    data_of: Callable[[int], DataConfig] | None = None,
) -> Loader[ClipBatch]:
    """The micro-batches of one process for one epoch, from a step on.

    Step b of the epoch takes places b x B to (b + 1) x B of the epoch's order, where B is the number of videos a step:
    ``batch_size x accumulate x world_size``, over the clips cut from each video. Process r takes the r-th share of
    them, and its micro-batches follow each other. So the clips of a step stay the same when processes and accumulation
    are exchanged for each other. The ragged end of an epoch is dropped; a set smaller than B is repeated to fill one
    step.

    Args:
        dataset: the clips.
        batch_size: clips in one of this process's micro-batches; a multiple of ``data.augment.clips_per_video``.
        accumulate: micro-batches a step.
        seed: of the run.
        epoch: from 0.
        start_step: steps of the epoch that are done already.
        most: micro-batches; by default all of the epoch.
        rank: of this process.
        world_size: number of processes.
        workers: worker processes; 0 decodes in this one, where a crash of the decoder ends the run.
        pin_memory: batches of worker processes come in page-locked memory, which saves ``pin_memory()`` its copy; clips
            stay there only until the next batch is taken.
        data_of: which clips to cut in an epoch, where ``dataset.data`` is not for all.

    Every process must call it: they tell each other which videos they could not read.

    Raises:
        ConfigError: ``batch_size`` is no multiple of ``data.augment.clips_per_video``.
        DataError: the file of bad videos cannot be read.
    """
    augment = dataset.data.augment
    videos = batch_size // augment.clips_per_video
    if videos * augment.clips_per_video != batch_size:
        raise ConfigError(f"data.augment.clips_per_video: does not divide the {batch_size} clips of a micro-batch")
    dataset.quarantine.share()
    labels, step = dataset.records.labels if augment.class_balanced else None, videos * accumulate * world_size
    order = epoch_order(len(dataset), seed=seed, epoch=epoch, global_batch=step, labels=labels)
    share = order.reshape(-1, world_size, accumulate, videos)[start_step:, rank]  # (steps, accumulate, videos)

    def load(task: tuple[int, list[int]], hold: Hold) -> ClipBatch:
        cutter = copy.copy(dataset)
        cutter.data = data_of(task[0]) if data_of else dataset.data
        samples = [cutter.sample(task[0], slot, hold) for slot in task[1]]
        clips, labels, indices, failures = zip(*samples, strict=True)
        return ClipBatch(torch.cat(clips), torch.cat(labels), torch.cat(indices), [*itertools.chain(*failures)])

    def note(batch: ClipBatch) -> ClipBatch:
        # The next epoch may be read already, by other processes too, so it is read as if nothing had been found.
        failures = [dataset.quarantine.add(failure, from_epoch=epoch + 2) for failure in batch.failures]
        return batch._replace(failures=failures)

    tasks = [(epoch, slots) for slots in share.reshape(-1, videos)[:most].tolist()]
    return Loader(dataset, load, note, tasks, workers, pin_memory)


def eval_loader(
    dataset: ViewDataset, *, rank: int = 0, world_size: int = 1, workers: int = 0, skip: Collection[int] = ()
) -> Loader[VideoViews]:
    """The videos of one process, one an item; every video is on exactly one process.

    A video that cannot be read comes as a ``VideoViews`` with its ``failure``; no other takes its place.

    Args:
        dataset: the videos.
        rank: of this process, which takes every ``world_size``-th video.
        world_size: number of processes.
        workers: worker processes; 0 decodes in this one.
        skip: indices of videos that are done already.
    """
    done = set(skip)
    indices = [index for index in range(rank, len(dataset), world_size) if index not in done]

    def note(views: VideoViews) -> VideoViews:
        # With the reason, if a worker process died on it.
        return views._replace(failure=views.failure and dataset.quarantine.add(views.failure, from_epoch=NEVER))

    return Loader(dataset, dataset.__getitem__, note, indices, workers)


class Prefetcher:
    """Iterator over a loader's batches with their clips and labels on the device; measures the wait for them.

    On a GPU a thread receives the next batches from the workers and copies them on a stream of its own during the
    computation of the current one. The host may run at most two batches ahead of the GPU: so the GPU never idles, and
    the time that ``next`` takes is a wait for data.

    Attributes:
        loader: where the batches come from.
        device: where they go.
        waited: seconds spent waiting for the loader since the last ``reset``.
    """

    def __init__(self, loader: Iterable[ClipBatch], device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.waited = 0.0
        self._batches = self._copy_ahead() if has_streams(device) else self._load()

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        """The next batch; ``indices`` and ``failures`` stay on the host."""
        return next(self._batches)

    def reset(self, *, finish: bool = False) -> float:
        """The time waited since the last call, in seconds; with ``finish``, once the device has done its work."""
        if finish and self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        waited, self.waited = self.waited, 0.0
        return waited

    def _load(self) -> Iterator[ClipBatch]:
        began = time.perf_counter()
        for batch in self.loader:
            self.waited += time.perf_counter() - began
            yield batch._replace(clips=batch.clips.to(self.device), labels=batch.labels.to(self.device))
            began = time.perf_counter()

    def _copy_ahead(self) -> Iterator[ClipBatch]:
        computing = torch.accelerator.current_stream(self.device)
        began, source = time.perf_counter(), iter(self.loader)
        copies, left = queue.Queue[Any](maxsize=2), threading.Event()
        batches = itertools.chain([next(source, None)], source)  # begun in this thread, because it forks the workers
        threading.Thread(target=_copy, args=(batches, self.device, copies, left), daemon=True).start()
        done: deque[torch.Event] = deque()
        try:
            while (found := copies.get()) is not None:
                self.waited += time.perf_counter() - began
                if isinstance(found, BaseException):
                    raise found
                batch, arrived = found
                computing.wait_event(arrived)
                for tensor in (batch.clips, batch.labels):
                    tensor.record_stream(computing)  # its memory belongs to the copying stream
                yield batch
                done.append(computing.record_event())
                if len(done) > 2:
                    done.popleft().synchronize()
                began = time.perf_counter()
        finally:
            left.set()
            while not copies.empty():  # the thread may wait for a place
                copies.get()


def _copy(
    batches: Iterable[ClipBatch | None], device: torch.device, copies: queue.Queue[Any], left: threading.Event
) -> None:
    """Start the copies of batches and queue each with the event of its end; at last None, or the error of the loader.

    Args:
        batches: perhaps with None at their end.
        device: where they go.
        copies: the queue; it holds two, so that no end waits for a reader that has left.
        left: whether the reader has.
    """
    torch.accelerator.set_device_index(device)  # a new thread begins with the first one
    stream = torch.Stream(device)
    try:
        for batch in batches:
            if batch is None or left.is_set():
                break
            pinned = batch.pin_memory()  # costs nothing where the loader did it
            with stream:
                clips, labels = (tensor.to(device, non_blocking=True) for tensor in (pinned.clips, pinned.labels))
                arrived = stream.record_event(torch.Event(device, blocking=True))
            copies.put((pinned._replace(clips=clips, labels=labels), arrived))
            arrived.synchronize()  # the next batch may come in the same memory
        copies.put(None)
    except BaseException as error:
        copies.put(error)
