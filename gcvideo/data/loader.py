"""Data loaders: the order of an epoch, and batches from worker processes that may die.

The order of an epoch is one permutation that depends on the seed and the epoch alone. A loader can start at any step
of it, and any number of workers gives identical batches.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gcvideo.data.bad_videos import NEVER, Failure
from gcvideo.data.dataset import ClipDataset, VideoViews, ViewDataset
from gcvideo.data.worker_pool import Hold, WorkerPool
from gcvideo.errors import ConfigError


class ClipBatch(NamedTuple):
    """A micro-batch of training clips.

    Attributes:
        clips: uint8 (N, C, T, H, W).
        labels: int64 (N,).
        indices: int64 (N,), of the records that the clips show.
        failures: of the records that could not be read and whose slots the next good records fill.
    """

    clips: Tensor
    labels: Tensor
    indices: Tensor
    failures: list[Failure]

    def pin_memory(self) -> ClipBatch:
        """The batch in page-locked memory, which GPUs copy from asynchronously."""
        return ClipBatch(self.clips.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory(), self.failures)


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
    first = np.searchsorted(ranked, ranked)  # where the run of equal values begins
    times = np.empty_like(values)
    times[by_value] = np.arange(len(values)) - first
    return times


@dataclass(frozen=True)
class TrainLoader:
    """One epoch of micro-batches of one process; made by ``train_loader``."""

    dataset: ClipDataset
    batches: np.ndarray  # (micro-batches, videos of each) slots
    epoch: int
    workers: int
    pin_memory: bool

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ClipBatch]:
        for batch in _run(self.dataset, self._load, self.batches, self.workers, self.pin_memory):
            add, later = self.dataset.quarantine.add, self.epoch + 1
            yield batch._replace(failures=[add(failure, from_epoch=later) for failure in batch.failures])

    def _load(self, slots: np.ndarray, hold: Hold) -> ClipBatch:
        samples = [self.dataset.sample(self.epoch, int(slot), hold) for slot in slots]
        repeats = [len(sample.clips) for sample in samples]
        return ClipBatch(
            clips=torch.cat([sample.clips for sample in samples]),
            labels=torch.tensor(np.repeat([sample.label for sample in samples], repeats)),
            indices=torch.tensor(np.repeat([sample.index for sample in samples], repeats)),
            failures=[failure for sample in samples for failure in sample.failures],
        )


@dataclass(frozen=True)
class EvalLoader:
    """The videos of one process; made by ``eval_loader``."""

    dataset: ViewDataset
    indices: list[int]
    workers: int

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[VideoViews]:
        for views in _run(self.dataset, self.dataset.views, self.indices, self.workers):
            if views.failure is not None:  # with the reason, if a worker process died on it
                views = views._replace(failure=self.dataset.quarantine.add(views.failure, from_epoch=NEVER))
            yield views


def train_loader(
    dataset: ClipDataset,
    *,
    batch_size: int,
    accumulate: int = 1,
    seed: int,
    epoch: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> TrainLoader:
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
        rank: of this process.
        world_size: number of processes.
        workers: worker processes; 0 decodes in this one, where a crash of the decoder ends the run.
        pin_memory: batches of worker processes come in page-locked memory, which saves ``pin_memory()`` its copy.

    Returns:
        An iterable of ``ClipBatch`` with a length.

    Raises:
        ConfigError: ``batch_size`` is no multiple of ``data.augment.clips_per_video``.
        DataError: the file of bad videos cannot be read.
    """
    augment = dataset.data.augment
    videos = batch_size // augment.clips_per_video
    if videos * augment.clips_per_video != batch_size:
        raise ConfigError(
            f"data.augment.clips_per_video: {augment.clips_per_video} does not divide the {batch_size} clips that one "
            "process takes at a time; change train.batch_size or train.accumulate"
        )
    dataset.quarantine.refresh()
    order = epoch_order(
        len(dataset),
        seed=seed,
        epoch=epoch,
        global_batch=videos * accumulate * world_size,
        labels=dataset.records.labels if augment.class_balanced else None,
    )
    share = order.reshape(-1, world_size, accumulate, videos)[start_step:, rank]  # (steps, accumulate, videos)
    return TrainLoader(dataset, share.reshape(-1, videos), epoch, workers, pin_memory)


def eval_loader(
    dataset: ViewDataset,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    skip: Collection[str] | Collection[int] = (),
) -> EvalLoader:
    """The videos of one process, one an item; every video is on exactly one process.

    A video that cannot be read comes as a ``VideoViews`` with its ``failure``; no other takes its place.

    Args:
        dataset: the videos.
        rank: of this process, which takes every ``world_size``-th video.
        world_size: number of processes.
        workers: worker processes; 0 decodes in this one.
        skip: ids (or indices) of videos that are done already.
    """
    done = set(skip)
    mine = range(rank, len(dataset), world_size)
    indices = [i for i in mine if i not in done and dataset.records[i].id not in done] if done else list(mine)
    return EvalLoader(dataset, indices, workers)


def _run(
    dataset: ClipDataset | ViewDataset,
    load: Callable[[Any, Hold], Any],
    tasks: Sequence[Any] | np.ndarray,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Any]:
    if workers == 0:
        return (load(task, lambda item: None) for task in tasks)
    for decoder in ("av", "decord"):  # imported once here instead of in every worker of every epoch
        with contextlib.suppress(ImportError):
            importlib.import_module(decoder)
    pool: WorkerPool[Any, Any] = WorkerPool(
        load,
        workers=min(workers, max(len(tasks), 1)),
        on_death=dataset.quarantine.strike,
        time_limit=dataset.data.video_timeout,
        memory_limit=int(dataset.data.worker_memory * 2**30),
        pin_memory=pin_memory,
    )
    return pool.map(tasks)
