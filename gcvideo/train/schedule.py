"""Training schedule: steps of each epoch, and batch size, frames, crop and learning rate of each step.

Multigrid training (Wu et al. 2020) uses small clips in large batches, so that an epoch costs less. The long cycle goes
through four shapes of clips, each for the same number of steps, several times; the last phase has the full shape. With
fewer or smaller frames the batch grows as the clips shrink, the learning rate grows with the batch, and batch norms
normalise sub-batches of the original size. The short cycle changes from step to step between clips of half the width,
of 1 / sqrt(2) of it, and of the shape of the long cycle.

Factors, phases and batches are those of PySlowFast (``MULTIGRID`` in slowfast/config/defaults.py,
``get_long_cycle_schedule`` in slowfast/utils/multigrid.py, slowfast/datasets/multigrid_helper.py). Two things differ:
PySlowFast has one long cycle per stage of a stepped learning rate, here cycles are equally long with any learning-rate
schedule; and smaller clips here show as much of a frame as large ones, where PySlowFast also lets them show less.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor
from torch.nn import functional as F

from gcvideo.config import DataConfig, RunConfig
from gcvideo.data.loader import ClipBatch
from gcvideo.errors import ConfigError
from gcvideo.train.optimizer import learning_rate

# Share of the frames and of the width of each shape of the long cycle (PySlowFast's LONG_CYCLE_FACTORS).
LONG_FACTORS = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1.0), (1.0, 1.0))
# Share of the full width in the first two steps of the short cycle (SHORT_CYCLE_FACTORS).
SHORT_FACTORS = (0.5, 0.5**0.5)
# Share of the epochs, had they been full ones, that the last phase stands for: PySlowFast takes what follows the last
# drop of the learning rate, epochs 196 to 239 in its config SLOWFAST_8x8_R50_stepwise_multigrid for Kinetics.
LAST_PHASE = 43 / 239


@dataclass
class Position:
    """Place in a training. It and the seed determine all randomness of the samples.

    Attributes:
        step: optimizer steps taken.
        epoch: epochs finished.
        epoch_step: steps taken in the current epoch.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0

    def advance(self) -> None:
        """One step further."""
        self.step += 1
        self.epoch_step += 1

    def next_epoch(self) -> None:
        """To the start of the next epoch."""
        self.epoch += 1
        self.epoch_step = 0


@dataclass(frozen=True)
class Shape:
    """Batch and clips of an epoch: factor on the config's batch size, frames, and height and width in pixels."""

    batch: int
    frames: int
    crop: int


@dataclass(frozen=True)
class ShortStep:
    """Step of the short cycle: number of the epoch's batches in it, and the width that they are resized to."""

    batches: int
    crop: int


class Schedule:
    """Steps of each epoch, and clips and learning rate of each step.

    The incomplete last batch of an epoch is dropped; the last epoch may be partial.

    Args:
        config: of the run.
        records: number of training videos; an epoch opens each once.

    Raises:
        ConfigError: multigrid training does not fit the videos, the epochs, or the network's input.

    Attributes:
        epochs: number of epochs, a partial one included.
        shapes: of each epoch.
        cycles: steps of the short cycle in each epoch; without it a single one.
    """

    def __init__(self, config: RunConfig, records: int) -> None:
        self.config = config
        self.epochs = math.ceil(config.train.epochs)
        self.shapes = epoch_shapes(config)
        short = config.train.multigrid in ("short", "both")
        self.cycles = [short_steps(s, config.data.crop) if short else [ShortStep(1, s.crop)] for s in self.shapes]
        videos = max(1, config.train.batch_size // config.data.augment.clips_per_video)
        self._whole: list[int] = []
        for shape, cycle in zip(self.shapes, self.cycles, strict=True):
            batches = max(1, records // (videos * shape.batch))
            if cycle[0].batches > batches:
                least = videos * max(s.batch * c[0].batches for s, c in zip(self.shapes, self.cycles, strict=True))
                raise ConfigError(
                    f"train.multigrid: the short cycle needs {least} videos for its largest step, and data.train has "
                    f"{records}; lower train.batch_size, or set train.multigrid to long or none"
                )
            self._whole.append(_whole_steps(batches, cycle))
        self._last = max(1, round((config.train.epochs - (self.epochs - 1)) * self._whole[-1]))

    def steps(self, epoch: int) -> int:
        """Steps of an epoch, counted from 0."""
        return self._last if epoch == self.epochs - 1 else self._whole[epoch]

    def validates_after(self, epoch: int) -> bool:
        """Whether a validation follows an epoch: every ``train.val_every`` epochs, and after the last one."""
        every, finished = self.config.train.val_every, epoch + 1
        return finished == self.epochs or (every > 0 and finished % every == 0)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return sum(self.steps(epoch) for epoch in range(self.epochs))

    def time(self, position: Position) -> float:
        """Time in epochs, with fractions."""
        return position.epoch + position.epoch_step / self._whole[min(position.epoch, self.epochs - 1)]

    def learning_rate(self, position: Position) -> float:
        """Learning rate of the step at a position; it grows with the batches of the long cycle."""
        optim, train = self.config.optim, self.config.train
        rate = learning_rate(optim, epoch=self.time(position), epochs=train.epochs, batch_size=train.batch_size)
        return rate * self.shapes[position.epoch].batch

    def data(self, epoch: int) -> DataConfig:
        """How the clips of an epoch are cut: fewer frames span the same time, smaller crops show as much of a frame."""
        data, shape = self.config.data, self.shapes[epoch]
        if shape == Shape(1, data.frames, data.crop):
            return data
        low, high = (max(shape.crop, round(side * shape.crop / data.crop)) for side in data.short_side)
        stride = data.stride * (data.frames // shape.frames)
        return dataclasses.replace(data, frames=shape.frames, stride=stride, crop=shape.crop, short_side=(low, high))

    def batches(self, epoch: int, steps: int) -> int:
        """How many of an epoch's batches its first steps use: one per step, but for the short cycle."""
        return _batches_before(steps, self.cycles[epoch])

    def clips(self, epoch: int, batches: int = 1) -> int:
        """Clips in so many of an epoch's batches, over all processes and accumulation steps."""
        return self.config.train.batch_size * self.shapes[epoch].batch * batches

    def short_step(self, position: Position) -> ShortStep:
        """What the step at this position does with the epoch's batches."""
        cycle = self.cycles[position.epoch]
        return cycle[position.epoch_step % len(cycle)]

    def micro_batches(self, batches: Iterator[ClipBatch], position: Position) -> Iterator[ClipBatch]:
        """Micro-batches of the step at this position, made of the epoch's; the short cycle merges and shrinks them."""
        step = self.short_step(position)
        return batches if step == ShortStep(1, self.shapes[position.epoch].crop) else _merged(batches, step)

    def take_over(self, position: Position, before: Schedule) -> Position:
        """Position of a run that reached ``position`` under another schedule: the same time in epochs.

        That is the same position unless the data or the batch size have changed.
        """
        epochs = min(position.epoch + 1, before.epochs, self.epochs)
        if before._whole[:epochs] == self._whole[:epochs]:
            return position
        time = before.time(position)
        epoch = min(int(time), self.epochs)
        if epoch == self.epochs:
            return Position(self.total_steps, epoch, 0)
        epoch_step = min(round((time - epoch) * self._whole[epoch]), self.steps(epoch))
        return Position(sum(self.steps(e) for e in range(epoch)) + epoch_step, epoch, epoch_step)


def epoch_shapes(config: RunConfig) -> list[Shape]:
    """Shape of each epoch.

    The shapes of a long cycle share its epochs in proportion to their batches, and so get the same number of steps.
    The last phase is shortened as much as the cycles are.

    Raises:
        ConfigError: the epochs are too few for every shape of the long cycle to be used, or a shape has a single frame
            although the network takes differences of frames.
    """
    train, data, epochs = config.train, config.data, math.ceil(config.train.epochs)
    if train.multigrid not in ("long", "both"):
        return [Shape(1, data.frames, data.crop)] * epochs
    shapes = long_shapes(data.frames, data.crop)
    if config.model.frame_difference and shapes[0].frames < 2:
        least = next(n for n in count(data.frames) if long_shapes(n, data.crop)[0].frames > 1)
        raise ConfigError(
            f"train.multigrid: {train.multigrid!r} makes clips of one frame of data.frames={data.frames}, and with "
            f"model.frame_difference they show nothing; set data.frames to {least} or more"
        )
    means = [shape.batch * (_mean_batches(shape, data.crop) if train.multigrid == "both" else 1.0) for shape in shapes]
    found = _share_epochs(shapes, means, epochs=epochs, cycles=train.multigrid_cycles)

    def complete(found: Sequence[Shape]) -> bool:
        return found[-1] == shapes[-1] and set(found) == set(shapes)

    if not complete(found):
        shared = (_share_epochs(shapes, means, epochs=n, cycles=train.multigrid_cycles) for n in count(epochs))
        least = len(next(filter(complete, shared)))
        raise ConfigError(
            f"train.epochs: {train.epochs:g} are too few for train.multigrid={train.multigrid} and "
            f"train.multigrid_cycles={train.multigrid_cycles}: every shape must be used, and the full one last; "
            f"give {least} epochs or fewer cycles"
        )
    return found


def _share_epochs(shapes: Sequence[Shape], means: Sequence[float], *, epochs: int, cycles: int) -> list[Shape]:
    """``cycles`` long cycles and the last phase; ``means`` are the batch sizes of the shapes, as factors."""
    lengths = [(1 - LAST_PHASE) / cycles * mean / sum(means) for mean in means] * cycles
    lengths.append(LAST_PHASE * means[-1] / (sum(means) / len(means)))
    ends, end = [], 0.0
    for length in lengths:
        end += length / sum(lengths) * epochs
        ends.append(round(end))
    phases = [*(list(shapes) * cycles), shapes[-1]]
    return [next(shape for shape, end in zip(phases, ends, strict=True) if epoch < end) for epoch in range(epochs)]


def long_shapes(frames: int, crop: int) -> list[Shape]:
    """Shapes of the long cycle; their batches have about the same number of pixels."""
    shapes = []
    for time, space in LONG_FACTORS:
        t, s = max(1, round(frames * time)), round(crop * space)
        shapes.append(Shape(round(frames * crop**2 / (t * s**2)), t, s))
    return shapes


def short_steps(shape: Shape, crop: int) -> list[ShortStep]:
    """The three steps of the short cycle in an epoch, none larger than its shape; ``crop`` is the config's width."""
    widths = [min(round(crop * factor), shape.crop) for factor in (*SHORT_FACTORS, 1.0)]
    return [ShortStep(round((shape.crop / width) ** 2), width) for width in widths]


def smallest_clip(config: RunConfig) -> tuple[int, int]:
    """Fewest frames, and smallest height and width in pixels, of the training clips of any step."""
    data, kind = config.data, config.train.multigrid
    shapes = long_shapes(data.frames, data.crop) if kind in ("long", "both") else [Shape(1, data.frames, data.crop)]
    crops = [shape.crop for shape in shapes]
    if kind in ("short", "both"):
        crops += [step.crop for shape in shapes for step in short_steps(shape, data.crop)]
    return min(shape.frames for shape in shapes), min(crops)


def _mean_batches(shape: Shape, crop: int) -> float:
    steps = short_steps(shape, crop)
    return sum(step.batches for step in steps) / len(steps)


def _whole_steps(batches: int, cycle: Sequence[ShortStep]) -> int:
    """How many whole steps of a short cycle so many batches make."""
    steps = 0
    while _batches_before(steps + 1, cycle) <= batches:
        steps += 1
    return steps


def _batches_before(step: int, cycle: Sequence[ShortStep]) -> int:
    """How many batches the steps before this one use."""
    rounds, rest = divmod(step, len(cycle))
    return rounds * sum(part.batches for part in cycle) + sum(part.batches for part in cycle[:rest])


def _merged(batches: Iterator[ClipBatch], step: ShortStep) -> Iterator[ClipBatch]:
    """Several batches of the epoch joined into one, shrunk on the device to the step's width."""
    while parts := list(islice(batches, step.batches)):
        clips = torch.cat([shrink(part.clips, step.crop) for part in parts])
        labels, indices = (torch.cat([getattr(part, name) for part in parts]) for name in ("labels", "indices"))
        yield ClipBatch(clips, labels, indices, [failure for part in parts for failure in part.failures])


def shrink(clips: Tensor, crop: int) -> Tensor:
    """Resize uint8 clips (N, C, T, S, S) to (N, C, T, crop, crop), antialiased."""
    if clips.shape[-1] == crop:
        return clips
    size = (*clips.shape[:3], crop, crop)
    frames = clips.flatten(0, 2)[:, None]  # (N C T, 1, S, S): each channel of each frame is an image of its own
    small = F.interpolate(frames.float(), size=(crop, crop), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).view(size)
