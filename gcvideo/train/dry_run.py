"""Checks before a long training: dry run, profile, learning-rate range test, and overfitting a few videos."""

import copy
import gc
import math
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.config import AugmentConfig, RunConfig
from gcvideo.console import duration, say, table
from gcvideo.train.logger import bounds, reading_seconds
from gcvideo.train.schedule import Shape
from gcvideo.train.trainer import Parts, Trainer

DRY_STEPS = 3  # after those that warm up
PROFILED_STEPS = 2
OVERFIT_STEPS = 200  # at least, unless all is learned before: small networks need some 100
SMOOTHING = 0.8  # share of the mean so far in the smoothed loss


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Build everything, take a few steps on real clips, and estimate the cost of the training; leaves nothing.

    Where a process's clips of a step do not fit into memory together, more and smaller micro-batches are tried, and
    the cost is that with the largest that fits. This needs a single process: others would wait.

    Returns:
        "parameters", "device", "memory_bytes", "data_seconds" (waiting for clips), "reading_seconds" (of the workers
        together) and "compute_seconds" of a step, "clips_per_second", "steps", "hours", "bound_by", and
        "largest_batch", clips of all processes at a time.

    Raises:
        RuntimeError: memory is full.
    """
    clips, own, cut = config.train.batch_size, config.train.accumulate, config.data.augment.clips_per_video
    for accumulate in (n for n in range(own, clips + 1) if n == own or clips % n == clips // n % cut == 0):
        config = copy.deepcopy(config)
        config.train.accumulate = accumulate
        try:
            results = {**estimate_cost(config), "largest_batch": clips // accumulate}
        except RuntimeError as error:
            if not runtime.out_of_memory(error) or distributed.world_size() > 1 or clips // accumulate <= cut:
                raise
            say(f"{clips // accumulate} clips at a time do not fit into memory")
            gc.collect()
            continue
        if accumulate > own:
            say(f"the largest batch that fits is {clips // accumulate} clips: set train.accumulate={accumulate}")
        break
    return results


def estimate_cost(config: RunConfig) -> dict[str, Any]:
    """Cost of a training by a few steps.

    Every shape of clips gets a few steps, and times are means over the training. The first steps are left out: they
    include the start of workers, allocations, the choice of algorithms and the recording of a CUDA graph. Workers
    decode ahead, so the time to finish takes the larger of reading and compute if there are workers.
    """
    trainer = Trainer(config)
    parts = trainer.build()
    schedule, network = parts.schedule, parts.step.network
    total, workers = schedule.total_steps, config.data.worker_count
    steps = Counter[Shape]()
    for epoch, shape in enumerate(schedule.shapes):
        steps[shape] += schedule.steps(epoch)
    times = {shape: _take_steps(trainer, parts, DRY_STEPS, epoch=schedule.shapes.index(shape)) for shape in steps}
    # Means of a step: its clips, and its seconds.
    clips = config.train.batch_size * sum(count * shape.batch for shape, count in steps.items()) / total
    data, reading, compute = (sum(count * times[shape][i] for shape, count in steps.items()) / total for i in range(3))
    step = max(data, reading, compute) if workers else data + compute
    results: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "device": runtime.describe(trainer.device, parts.step.precision),
        "memory_bytes": max(distributed.gather_objects(runtime.memory_peak(trainer.device))),
        "data_seconds": data,
        "reading_seconds": reading,
        "compute_seconds": compute,
        "clips_per_second": clips / step,
        "steps": total,
        "hours": total * step / 3600,
        "bound_by": "data" if reading > compute else "compute",
    }
    say(f"{results['device']}; {results['parameters']:,} parameters")
    say(f"memory of one process: {results['memory_bytes'] / 2**30:.2f} GiB at its peak")
    mean = ", averaged over all shapes" if len(steps) > 1 else ""
    say(f"a step of {clips:.4g} clips{mean}: {1000 * data:.0f} ms waiting for data, {1000 * compute:.0f} ms computing")
    say(bounds(clips, reading, compute, data=config.data))
    say(f"{clips / step:.3g} clips/s; {total:,} steps take {duration(total * step)}, validation and saving left out")
    say("dry run: everything fits together; nothing was kept")
    return results


def profile(config: RunConfig) -> Path:
    """Take a few steps under torch's profiler; prints the most expensive operators and writes a trace.

    Returns:
        ``profile.json`` in the run folder, for https://ui.perfetto.dev or chrome://tracing.

    Raises:
        GcvideoError: the run folder cannot be made.
    """
    path = config.run_dir / "profile.json"
    distributed.on_main(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    with torch.profiler.profile() as profiler:
        trainer = Trainer(config)
        _take_steps(trainer, trainer.build(), PROFILED_STEPS)
    if distributed.is_main():
        profiler.export_chrome_trace(str(path))
    say(profiler.key_averages().table(sort_by=f"self_{trainer.device.type}_time_total", row_limit=15))
    say(f"the trace of the first steps is in {path}; open it at https://ui.perfetto.dev")
    return path


def find_lr(config: RunConfig, *, steps: int = 60) -> dict[str, Any]:
    """Learning-rate range test (Smith 2017, arXiv 1506.01186): train while the rate rises; see where the loss falls.

    From the weights that a training would start from, every step multiplies the rate by the same factor, from 1e-5 to
    10, until the loss diverges. The suggestion is a tenth of the rate at which the smoothed loss was lowest: at that
    rate itself it is about to rise. The loss of the first decade of rates, which change little, tells how much it
    varies from batch to batch; what is no lower than that does not count. Clips and draws depend on the config's seed
    alone; small sets are repeated. Leaves nothing. Every process must call it.

    Args:
        config: of the run; schedule, warm-up, multigrid and length do not matter.
        steps: at most, of ``train.batch_size`` clips; 20 or more.

    Returns:
        "lr", the suggested ``optim.lr``, or None where no rate lowered the loss; "reason", in words; "rates", "losses"
        and "smoothed", of each step taken.
    """
    config = copy.deepcopy(config)
    config.train.multigrid, config.train.epochs, config.train.early_stop = "none", steps, 0  # a step an epoch at least
    config.data.val.annotation = None
    trainer = Trainer(config)
    parts = trainer.build()
    parts.step.train_mode()
    batches = (batch for epoch in range(steps) for batch in trainer.batches(parts, epoch))
    rates = [1e-5 * 10 ** (6 * number / (steps - 1)) for number in range(steps)]
    losses, smoothed = list[float](), list[float]()
    limit, total, first, spread = math.inf, 0.0, math.nan, 0.0
    for number, rate in enumerate(rates):
        parts.step.step(batches, number=number, lr=rate)
        losses.append(parts.step.meter.read()["loss"])
        total = SMOOTHING * total + (1 - SMOOTHING) * losses[-1]
        smoothed.append(total / (1 - SMOOTHING ** (number + 1)))
        if number + 1 == steps // 6:
            first, spread = statistics.mean(losses), statistics.stdev(losses)
            limit = 1.2 * first + 5 * spread
        if not smoothed[-1] < limit:  # or it is not a number
            break
    after = range(min(steps // 6, len(losses) - 1), len(losses))
    lowest = min(after, key=lambda step: smoothed[step] if math.isfinite(smoothed[step]) else math.inf)
    found = f"from {first:.4g} to {smoothed[lowest]:.4g} at a rate of {rates[lowest]:.2g}"
    diverged = f", and diverged at {rates[len(losses) - 1]:.2g}" if len(losses) < steps else ""
    results: dict[str, Any] = {"lr": None, "rates": rates[: len(losses)], "losses": losses, "smoothed": smoothed}
    # Smoothing leaves a third of the spread: sqrt((1 - 0.8) / (1 + 0.8)).
    if smoothed[lowest] < first - 5 * spread / 3:
        scale = config.train.batch_size / (config.optim.lr_for_batch or config.train.batch_size)
        results["lr"] = float(f"{rates[lowest] / 10 / scale:.2g}")
        results["reason"] = f"a tenth of the rate at which the loss was lowest: it fell {found}{diverged}"
    else:
        why = f"no rate lowered the loss in {len(losses)} steps by more than batches differ (by {spread:.2g})"
        results["reason"] = f"{why}: {found}{diverged}. Try --overfit 8, a larger batch, or weights to start from"
    table(list(zip(rates, smoothed, strict=False))[4::5], columns=["rate", "loss, smoothed"])
    say(f"suggested: optim.lr={results['lr']:g}, {results['reason']}" if results["lr"] else results["reason"])
    return results


def overfitting(config: RunConfig, videos: int) -> RunConfig:
    """Config of a run that overfits a few videos: if that fails, something is wrong.

    Training and validation see the same ``videos`` videos, spread over the list, until all are learned or
    ``train.epochs``, raised to 200 steps or more, is reached. Everything that hinders overfitting is off: augmentation,
    dropout, drop-path, label smoothing, weight decay, multigrid, precise batch norm, early stops, and averaged weights,
    which lag behind so short a training. The run has a name of its own.
    """
    config = copy.deepcopy(config)
    config.name = f"{config.name}-overfit{videos}"
    config.data.val = config.data.train
    config.data.augment = AugmentConfig()
    config.data.flip = 0.0
    config.data.short_side = (config.data.short_side[0],) * 2
    config.model.dropout = config.model.drop_path = 0.0
    config.optim.weight_decay = config.train.label_smoothing = config.train.ema = 0.0
    config.train.multigrid, config.train.precise_bn, config.train.val_every = "none", 0, 1
    config.train.early_stop = 0
    config.train.epochs = max(config.train.epochs, OVERFIT_STEPS // max(1, videos // config.train.batch_size))
    return config


def _take_steps(trainer: Trainer, parts: Parts, count: int, *, epoch: int = 0) -> tuple[float, float, float]:
    """Take an epoch's first steps as a training would; mean seconds of waits, reading and compute once warm."""
    schedule, step = parts.schedule, parts.step
    step.train_mode(batch_norm_splits=schedule.shapes[epoch].batch)
    count = min(step.warm_up + count, schedule.steps(epoch))
    warm_up = min(step.warm_up, count - 1)
    batches = trainer.batches(parts, epoch, most=count * trainer.config.train.accumulate)
    began = time.perf_counter()
    for number in range(count):
        step.step(batches, number=number, lr=0.0)  # the weights stay as they are
        if number + 1 == warm_up:
            step.meter.read()  # waits for the device
            batches.reset()
            began = time.perf_counter()
    step.meter.read()
    elapsed, waited = time.perf_counter() - began, batches.reset()
    waited, computed = waited / (count - warm_up), max(elapsed - waited, 0.0) / (count - warm_up)
    return waited, reading_seconds(trainer.config, trainer.pool, waited=waited), computed
