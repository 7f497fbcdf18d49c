"""Before a long training: does everything fit together, can it learn at all, and where does the time go?"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.config import AugmentConfig, RunConfig
from gcvideo.console import duration, say
from gcvideo.data.prefetch import Prefetcher
from gcvideo.files import require_writable
from gcvideo.train import reports
from gcvideo.train.multigrid import ShortStep, merged
from gcvideo.train.schedule import Position
from gcvideo.train.trainer import Trainer

DRY_STEPS = 4  # one to warm up, and the three of the short cycle of multigrid
PROFILED_STEPS = 3


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Build everything, take a few steps on real clips, and say what the training would cost; leaves nothing.

    With multigrid every shape of clips gets a few steps, and the figures of a step are means over the training. The
    first step is left out of the times: it pays for workers, allocations and the choice of algorithms. Decoding runs
    ahead of a training, so the time to finish takes the larger of data and compute where there are workers.
    """
    trainer = Trainer(config)
    trainer.build()
    plan = trainer.plan
    total, workers = plan.total_steps, config.data.workers
    batches = sum(plan.batches(epoch, plan.steps(epoch)) * plan.shapes[epoch].batch for epoch in range(plan.epochs))
    clips = config.train.batch_size * batches / total  # of a step, like all that follows
    data = compute = step = 0.0
    for shape in dict.fromkeys(plan.shapes):
        epochs = [epoch for epoch in range(plan.epochs) if plan.shapes[epoch] == shape]
        waited, computed = _take_steps(trainer, DRY_STEPS, epoch=epochs[0])
        share = sum(map(plan.steps, epochs)) / total
        data += share * waited
        compute += share * computed
        step += share * (max(waited, computed) if workers else waited + computed)
    results: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in trainer.learner.network.parameters()),
        "device": runtime.describe(trainer.device, trainer.learner.precision),
        "memory_bytes": max(distributed.gather_objects(runtime.memory_peak(trainer.device))),
        "data_seconds": data,
        "compute_seconds": compute,
        "clips_per_second": clips / step,
        "steps": total,
        "hours": total * step / 3600,
        "bound_by": reports.bound(data, compute, workers=workers),
    }
    say(f"{results['device']}; {results['parameters']:,} parameters")
    say(f"memory of one process: {results['memory_bytes'] / 2**30:.2f} GiB at its peak")
    mean = "" if config.train.multigrid == "none" else ", on the average of all shapes"
    say(f"a step of {clips:.4g} clips{mean}: {1000 * data:.0f} ms waiting for data, {1000 * compute:.0f} ms computing")
    say(f"{clips / step:.3g} clips/s; {total:,} steps take {duration(total * step)}, validation and saving left out")
    say("dry run: everything fits together; nothing was kept")
    return results


def profile(config: RunConfig) -> Path:
    """Take a few steps under torch's profiler; prints the costliest operators and writes a trace.

    Returns:
        ``profile.json`` in the run folder, for https://ui.perfetto.dev or chrome://tracing.

    Raises:
        ConfigError: it cannot be written.
    """
    path = config.run_dir / "profile.json"
    if distributed.is_main():
        require_writable(path, key="output")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        trainer = Trainer(config)
        trainer.build()
        _take_steps(trainer, PROFILED_STEPS)
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    sort = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    say(profiler.key_averages().table(sort_by=sort, row_limit=15))
    say(f"the trace of {PROFILED_STEPS} steps is in {path}; open it at https://ui.perfetto.dev")
    return path


def overfitting(config: RunConfig, videos: int) -> RunConfig:
    """The config of a run that learns a few videos by heart: if that fails, something is wrong.

    Training and validation see the same ``videos`` videos (spread over the list), and everything that makes learning
    by heart harder is off: augmentation, dropout, drop-path, label smoothing, weight decay, multigrid, precise batch
    norm, and averaged weights, which lag behind so short a training. The run has a name of its own.
    """
    config = copy.deepcopy(config)
    config.name = f"{config.name}-overfit{videos}"
    config.data.val = config.data.train
    config.data.augment = AugmentConfig()
    config.data.flip = 0.0
    config.data.short_side = (config.data.short_side[0],) * 2
    config.model.dropout = config.model.drop_path = 0.0
    config.optim.weight_decay = config.train.label_smoothing = config.train.ema = 0.0
    config.train.multigrid, config.train.precise_bn = "none", 0
    return config


def _take_steps(trainer: Trainer, count: int, *, epoch: int = 0) -> tuple[float, float]:
    """Take an epoch's first steps as a training would; the mean seconds of data and of compute of all but the first."""
    plan, learner = trainer.plan, trainer.learner
    shape = plan.shapes[epoch]
    trainer.position = Position(epoch=epoch)
    learner.train(splits=shape.batch)
    count = min(count, plan.steps(epoch))
    batches = Prefetcher(trainer.loader(), trainer.device)
    began = time.perf_counter()
    for step in range(count):
        part = plan.short_step(trainer.position)
        source = batches if part == ShortStep(1, shape.crop) else merged(batches, part)
        learner.step(source, number=step, lr=0.0)  # the weights stay as they are
        trainer.position.advance()
        if step == 0 and count > 1:
            learner.meter.read()  # waits for the device
            batches.reset()
            began = time.perf_counter()
    learner.meter.read()
    elapsed, waited = time.perf_counter() - began, batches.reset()
    steps = max(count - 1, 1)
    return waited / steps, max(elapsed - waited, 0.0) / steps
