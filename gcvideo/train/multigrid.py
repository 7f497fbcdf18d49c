"""Multigrid training (Wu et al. 2020): small clips in large batches at first, so that an epoch costs less.

The long cycle goes through four shapes of clips, each for the same number of steps, several times over; the last phase
has the full shape. Fewer or smaller frames make room for more clips, so the batch grows as the clips shrink, the
learning rate with the batch, and batch norms go on measuring sub-batches of the original size. The short cycle takes
turns, from step to step, between clips of half the width, of 1 / sqrt(2) of it, and of the shape of the long cycle.

Factors, phases and batches are those of PySlowFast (``MULTIGRID`` in slowfast/config/defaults.py,
``get_long_cycle_schedule`` in slowfast/utils/multigrid.py, slowfast/datasets/multigrid_helper.py). Two things are not:
PySlowFast has a long cycle for each stage of a stepped learning rate, here cycles are equally long and the schedule is
any; and smaller clips here show as much of a frame as large ones, where PySlowFast also lets them show less.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo.config import DataConfig, RunConfig
from gcvideo.data.loader import ClipBatch
from gcvideo.errors import ConfigError

# Share of the frames and of the width of each shape of the long cycle (PySlowFast's LONG_CYCLE_FACTORS).
LONG_FACTORS = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1.0), (1.0, 1.0))
# Share of the full width in the first two steps of the short cycle (SHORT_CYCLE_FACTORS).
SHORT_FACTORS = (0.5, 0.5**0.5)
# Share of the epochs, had they been full ones, that the last phase stands for: PySlowFast takes what follows the last
# drop of the learning rate, epochs 196 to 239 in its config SLOWFAST_8x8_R50_stepwise_multigrid for Kinetics.
LAST_PHASE = 43 / 239


@dataclass(frozen=True)
class Shape:
    """Clips of an epoch: how many times the config's batch size, frames of a clip, height and width."""

    batch: int
    frames: int
    crop: int


@dataclass(frozen=True)
class ShortStep:
    """A step of the short cycle: how many batches of the epoch make one, and the width that they are shrunk to."""

    batches: int
    crop: int


def long_shapes(frames: int, crop: int) -> list[Shape]:
    """The shapes of the long cycle; all have about the same number of pixels a batch."""
    shapes = []
    for time, space in LONG_FACTORS:
        t, s = max(1, round(frames * time)), round(crop * space)
        shapes.append(Shape(round(frames * crop**2 / (t * s**2)), t, s))
    return shapes


def short_steps(shape: Shape, crop: int) -> list[ShortStep]:
    """The three steps of the short cycle in an epoch; ``crop`` is the config's width. None is larger than the shape."""
    widths = [min(round(crop * factor), shape.crop) for factor in (*SHORT_FACTORS, 1.0)]
    return [ShortStep(round((shape.crop / width) ** 2), width) for width in widths]


def smallest_clip(config: RunConfig) -> tuple[int, int]:
    """Fewest frames and smallest crop, in pixels, of the clips that a config trains on, of any step."""
    data, kind = config.data, config.train.multigrid
    shapes = [Shape(1, data.frames, data.crop)]
    if kind in ("long", "both"):
        shapes += long_shapes(data.frames, data.crop)
    crops = [shape.crop for shape in shapes]
    if kind in ("short", "both"):
        crops += [step.crop for shape in shapes for step in short_steps(shape, data.crop)]
    return min(shape.frames for shape in shapes), min(crops)


def epoch_shapes(frames: int, crop: int, *, epochs: int, cycles: int, short: bool) -> list[Shape]:
    """The shape of each epoch.

    The shapes of a cycle share its epochs in proportion to their batches, and so get the same number of steps. The
    last phase is shortened as much as the cycles are.

    Args:
        frames: of the config.
        crop: of the config.
        epochs: in all.
        cycles: long cycles before the last phase; 0 leaves every epoch the full shape.
        short: whether the short cycle makes batches larger still.
    """
    full = Shape(1, frames, crop)
    if not cycles:
        return [full] * epochs
    shapes = long_shapes(frames, crop)
    means = [shape.batch * (_mean_batches(shape, crop) if short else 1.0) for shape in shapes]
    lengths = [(1 - LAST_PHASE) / cycles * mean / sum(means) for mean in means] * cycles
    lengths.append(LAST_PHASE * means[-1] / (sum(means) / len(means)))
    ends, end = [], 0.0
    for length in lengths:
        end += length / sum(lengths) * epochs
        ends.append(round(end))
    phases = [*(shapes * cycles), full]
    return [next(shape for shape, end in zip(phases, ends, strict=True) if epoch < end) for epoch in range(epochs)]


def check_multigrid(config: RunConfig) -> None:
    """Whether every shape of the long cycle comes up, and leaves the network something to see.

    Raises:
        ConfigError: it does not.
    """
    train, data = config.train, config.data
    if train.multigrid not in ("long", "both"):
        return
    if config.model.frame_difference and long_shapes(data.frames, data.crop)[0].frames < 2:
        least = next(n for n in count(data.frames) if long_shapes(n, data.crop)[0].frames > 1)
        raise ConfigError(
            f"train.multigrid: {train.multigrid!r} makes clips of one frame of data.frames={data.frames}, and with "
            f"model.frame_difference they show nothing; set data.frames to {least} or more"
        )
    epochs = math.ceil(train.epochs)

    def fits(epochs: int) -> bool:
        short = train.multigrid == "both"
        shapes = epoch_shapes(data.frames, data.crop, epochs=epochs, cycles=train.multigrid_cycles, short=short)
        return shapes[-1].batch == 1 and set(shapes) == set(long_shapes(data.frames, data.crop))

    if not fits(epochs):
        least = next(n for n in count(epochs) if fits(n))
        raise ConfigError(
            f"train.epochs: {train.epochs:g} are too few for train.multigrid={train.multigrid} and "
            f"train.multigrid_cycles={train.multigrid_cycles}: every shape must come up, and the full one come last; "
            f"give {least} epochs or fewer cycles"
        )


def _mean_batches(shape: Shape, crop: int) -> float:
    steps = short_steps(shape, crop)
    return sum(step.batches for step in steps) / len(steps)


def shaped_data(data: DataConfig, shape: Shape) -> DataConfig:
    """The data config of an epoch: fewer frames span the same time, smaller crops show as much of a frame."""
    scale = shape.crop / data.crop
    low, high = (max(shape.crop, round(side * scale)) for side in data.short_side)
    return dataclasses.replace(
        data,
        frames=shape.frames,
        stride=data.stride * (data.frames // shape.frames),
        crop=shape.crop,
        short_side=(low, high),
    )


def steps_in(batches: int, cycle: Sequence[ShortStep]) -> int:
    """How many whole steps of a short cycle so many batches make."""
    steps = 0
    while batches_before(steps + 1, cycle) <= batches:
        steps += 1
    return steps


def batches_before(step: int, cycle: Sequence[ShortStep]) -> int:
    """How many batches the steps before this one take."""
    rounds, rest = divmod(step, len(cycle))
    return rounds * sum(part.batches for part in cycle) + sum(part.batches for part in cycle[:rest])


def merged(batches: Iterator[ClipBatch], step: ShortStep) -> Iterator[ClipBatch]:
    """Batches of a step of the short cycle: several of the epoch's, shrunk on the device to the step's width."""
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


class SubBatchNorm3d(nn.BatchNorm3d):
    """A batch norm that measures parts of a batch one after the other, as if each had come alone.

    Parameters, buffers and evaluation are those of ``nn.BatchNorm3d``. ``splits`` says how many parts there are.
    """

    splits = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, T, H, W); N divides by ``splits`` in training."""
        if not self.training or self.splits == 1:
            return super().forward(x)
        return torch.cat([super(SubBatchNorm3d, self).forward(part) for part in x.chunk(self.splits)])


def divide_batch_norms(network: nn.Module) -> None:
    """Make every batch norm of a network one that can measure parts of a batch."""
    for module in network.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = SubBatchNorm3d  # same parameters and buffers, another forward


def set_splits(network: nn.Module, splits: int) -> None:
    """From now on batch norms measure so many parts of each batch."""
    for module in network.modules():
        if isinstance(module, SubBatchNorm3d):
            module.splits = splits
