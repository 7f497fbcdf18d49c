"""How many steps a training has, where in it one is, and what shape its clips have there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gcvideo.config import RunConfig
from gcvideo.errors import ConfigError
from gcvideo.train.multigrid import (
    Shape,
    ShortStep,
    batches_before,
    check_multigrid,
    epoch_shapes,
    short_steps,
    steps_in,
)


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
        batch_size: videos a step over all processes.
        epochs: may have a fraction.
        shapes: of each epoch's clips; by default the config's own throughout.
        short_crop: the config's crop where the short cycle of multigrid training is on.

    Raises:
        ConfigError: there are too few videos for a step of the short cycle.
    """

    def __init__(
        self,
        records: int,
        *,
        batch_size: int,
        epochs: float,
        shapes: Sequence[Shape] | None = None,
        short_crop: int | None = None,
    ) -> None:
        self.epochs = math.ceil(epochs)
        self.shapes = list(shapes) if shapes is not None else [Shape(1, 1, 1)] * self.epochs
        self.cycles: list[list[ShortStep]] = []
        self._whole: list[int] = []
        for shape in self.shapes:
            batches = max(1, records // (batch_size * shape.batch))
            cycle = [ShortStep(1, shape.crop)] if short_crop is None else short_steps(shape, short_crop)
            if cycle[0].batches > batches:
                least = batch_size * max(s.batch * short_steps(s, short_crop or s.crop)[0].batches for s in self.shapes)
                raise ConfigError(
                    f"train.multigrid: the short cycle needs {least} videos for its largest step, and data.train has "
                    f"{records}; lower train.batch_size, or set train.multigrid to long or none"
                )
            self.cycles.append(cycle)
            self._whole.append(steps_in(batches, cycle))
        self._last = max(1, round((epochs - (self.epochs - 1)) * self._whole[-1]))

    @classmethod
    def of(cls, config: RunConfig, records: int) -> Plan:
        """The plan of a training on so many videos; an epoch opens each video once, whatever is cut out of it.

        Raises:
            ConfigError: multigrid training does not fit the videos, the epochs, or the network's input.
        """
        train, data = config.train, config.data
        kind = train.multigrid
        check_multigrid(config)
        shapes = epoch_shapes(
            data.frames,
            data.crop,
            epochs=math.ceil(train.epochs),
            cycles=train.multigrid_cycles if kind in ("long", "both") else 0,
            short=kind == "both",
        )
        return cls(
            records,
            batch_size=max(1, train.batch_size // data.augment.clips_per_video),
            epochs=train.epochs,
            shapes=shapes,
            short_crop=data.crop if kind in ("short", "both") else None,
        )

    def steps(self, epoch: int) -> int:
        """Steps of an epoch, counted from 0."""
        return self._last if epoch == self.epochs - 1 else self._whole[epoch]

    def batches(self, epoch: int, steps: int) -> int:
        """How many of an epoch's batches its first steps take: as many, but for the short cycle."""
        return batches_before(steps, self.cycles[epoch])

    def short_step(self, position: Position) -> ShortStep:
        """What the step at this position does with the epoch's batches."""
        cycle = self.cycles[position.epoch]
        return cycle[position.epoch_step % len(cycle)]

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return sum(self.steps(epoch) for epoch in range(self.epochs))

    def time(self, position: Position) -> float:
        """The time in epochs, with fractions."""
        whole = self._whole[min(position.epoch, self.epochs - 1)]
        return position.epoch + position.epoch_step / whole

    def take_over(self, position: Position, before: Plan) -> Position:
        """Where a run goes on that another plan has brought to a position: the same time in epochs.

        That is the very same position unless the data or the batch size have changed.
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
