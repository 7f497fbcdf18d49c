"""How many steps a training has, and where in it one is."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Position:
    """A place in a training: all of its sample randomness follows from this and the seed."""

    step: int = 0  # optimizer steps taken
    epoch: int = 0  # epochs finished
    epoch_step: int = 0  # steps taken in the present one

    def advance(self) -> None:
        """One step on."""
        self.step += 1
        self.epoch_step += 1

    def next_epoch(self) -> None:
        """To the start of the next epoch."""
        self.epoch += 1
        self.epoch_step = 0


class Plan:
    """The steps of each epoch. The ragged end of an epoch is dropped; the last epoch may be a part of one.

    Args:
        records: training videos.
        batch_size: clips a step over all processes.
        epochs: may have a fraction.
    """

    def __init__(self, records: int, *, batch_size: int, epochs: float) -> None:
        self.steps_per_epoch = max(1, records // batch_size)
        self.epochs = math.ceil(epochs)
        self.last_epoch_steps = max(1, round((epochs - (self.epochs - 1)) * self.steps_per_epoch))

    def steps(self, epoch: int) -> int:
        """Steps of an epoch, counted from 0."""
        return self.last_epoch_steps if epoch == self.epochs - 1 else self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return sum(self.steps(epoch) for epoch in range(self.epochs))

    def time(self, position: Position) -> float:
        """The time in epochs, with fractions."""
        return position.epoch + position.epoch_step / self.steps_per_epoch

    def place(self, time: float) -> Position:
        """The position at a time in epochs: for a run that goes on with other data or another batch size."""
        epoch = int(time)
        epoch_step = min(round((time - epoch) * self.steps_per_epoch), self.steps_per_epoch)
        return Position(sum(self.steps(e) for e in range(epoch)) + epoch_step, epoch, epoch_step)
