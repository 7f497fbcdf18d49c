"""Training schedule: steps of each epoch, and batch size, frames, crop and learning rate of each step.

Multigrid training (Wu et al. 2020) uses small clips in large batches, so that an epoch costs less. Its long cycle goes
through four shapes of clips, each for the same number of steps, several times; the last phase has the full shape. With
fewer or smaller frames the batch grows as the clips shrink, the learning rate grows with the batch, and batch norms
normalise sub-batches of the original size.

Factors, phases and batches are those of PySlowFast (``MULTIGRID`` in slowfast/config/defaults.py and
``get_long_cycle_schedule`` in slowfast/utils/multigrid.py). Three things differ: PySlowFast has one long cycle per
stage of a stepped learning rate, here cycles are equally long with any learning-rate schedule; smaller clips here show
as much of a frame as large ones, where PySlowFast also lets them show less; and its short cycle, which changes the
width from step to step, is not offered.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gcvideo.config import DataConfig, RunConfig
from gcvideo.errors import ConfigError
from gcvideo.train.optimizer import learning_rate

# Share of the frames and of the width of each shape of the long cycle (PySlowFast's LONG_CYCLE_FACTORS).
LONG_FACTORS = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1.0), (1.0, 1.0))
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


@dataclass(frozen=True)
class Shape:
    """Batch and clips of an epoch: factor on the config's batch size, frames, and height and width in pixels."""

    batch: int
    frames: int
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
    """

    def __init__(self, config: RunConfig, records: int) -> None:
        self.config = config
        self.epochs = math.ceil(config.train.epochs)
        self.shapes = epoch_shapes(config)
        videos = max(1, config.train.batch_size // config.data.augment.clips_per_video)
        self._whole = [max(1, records // (videos * shape.batch)) for shape in self.shapes]
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

    def shorten(self, epochs: int) -> None:
        """End after so many epochs instead; the learning rate falls accordingly sooner."""
        self.config = copy.copy(self.config)
        self.config.train = dataclasses.replace(self.config.train, epochs=epochs)
        self.epochs, self.shapes, self._whole = epochs, self.shapes[:epochs], self._whole[:epochs]
        self._last = self._whole[-1]

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
    if train.multigrid in ("short", "both"):  # so that an older network can still be tested
        raise ConfigError(
            f"train.multigrid: {train.multigrid!r}: the short cycle is not offered; set it to long or none"
        )
    shapes = [Shape(1, data.frames, data.crop)] if train.multigrid == "none" else long_shapes(data.frames, data.crop)
    if config.model.frame_difference and shapes[0].frames < 2:
        raise ConfigError(
            f"model.frame_difference: clips of one frame show nothing then; raise data.frames={data.frames}"
            f"{', which train.multigrid divides by 4' * (data.frames > 1)}"
        )
    if train.multigrid == "none":
        return shapes * epochs
    found = _share_epochs(shapes, epochs=epochs, cycles=train.multigrid_cycles)
    if found[-1] != shapes[-1] or set(found) != set(shapes):
        raise ConfigError(
            f"train.epochs: {train.epochs:g} are too few for train.multigrid_cycles={train.multigrid_cycles}"
        )
    return found


def _share_epochs(shapes: Sequence[Shape], *, epochs: int, cycles: int) -> list[Shape]:
    """``cycles`` long cycles and the last phase."""
    total = sum(shape.batch for shape in shapes)
    lengths = [(1 - LAST_PHASE) / cycles * shape.batch / total for shape in shapes] * cycles
    lengths.append(LAST_PHASE * shapes[-1].batch / (total / len(shapes)))
    ends = [round(end) for end in itertools.accumulate(length / sum(lengths) * epochs for length in lengths)]
    phases = [*(list(shapes) * cycles), shapes[-1]]
    return [next(shape for shape, end in zip(phases, ends, strict=True) if epoch < end) for epoch in range(epochs)]


def long_shapes(frames: int, crop: int) -> list[Shape]:
    """Shapes of the long cycle; their batches have about the same number of pixels."""
    shapes = []
    for time, space in LONG_FACTORS:
        t, s = max(1, round(frames * time)), round(crop * space)
        shapes.append(Shape(round(frames * crop**2 / (t * s**2)), t, s))
    return shapes


def smallest_clip(config: RunConfig) -> tuple[int, int]:
    """Fewest frames, and smallest height and width in pixels, of the training clips of any step."""
    shapes = long_shapes(config.data.frames, config.data.crop)
    if config.train.multigrid == "none":
        shapes = shapes[-1:]
    return min(shape.frames for shape in shapes), min(shape.crop for shape in shapes)
