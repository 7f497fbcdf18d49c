"""Before a long training: does everything fit together, can it learn at all, and where does the time go?"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch

from gcvideo import distributed
from gcvideo.config import AugmentConfig, RunConfig
from gcvideo.console import duration, say
from gcvideo.engine import reports, runtime
from gcvideo.engine.prefetch import Prefetcher
from gcvideo.engine.trainer import Trainer

DRY_STEPS = 4
PROFILED_STEPS = 3


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Build everything, take a few steps on real clips, and say what the training would cost; leaves nothing.

    The first step is left out of the times: it pays for workers, allocations and the choice of algorithms. Decoding
    runs ahead of a training, so the time to finish takes the larger of data and compute where there are workers.
    """
    trainer, data, compute = _take_steps(config, DRY_STEPS)
    step = max(data, compute) if config.data.workers else data + compute
    clips = config.train.batch_size
    total = trainer.plan.total_steps
    results: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in trainer.learner.network.parameters()),
        "device": runtime.describe(trainer.device, trainer.learner.precision),
        "memory_bytes": max(distributed.gather_objects(runtime.memory_peak(trainer.device))),
        "data_seconds": data,
        "compute_seconds": compute,
        "clips_per_second": clips / step,
        "steps": total,
        "hours": total * step / 3600,
        "bound_by": reports.bound(data, compute, workers=config.data.workers),
    }
    say(f"{results['device']}; {results['parameters']:,} parameters")
    say(f"memory of one process: {results['memory_bytes'] / 2**30:.2f} GiB at its peak")
    say(f"a step of {clips} clips: {1000 * data:.0f} ms waiting for data, {1000 * compute:.0f} ms computing")
    say(f"{clips / step:.3g} clips/s; {total:,} steps take {duration(total * step)}, validation and saving left out")
    say("dry run: everything fits together; nothing was kept")
    return results


def profile(config: RunConfig) -> Path:
    """Take a few steps under torch's profiler; prints the costliest operators and writes a trace.

    Returns:
        ``profile.json`` in the run folder, for https://ui.perfetto.dev or chrome://tracing.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        _take_steps(config, PROFILED_STEPS)
    path = config.run_dir / "profile.json"
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
    by heart harder is off: augmentation, dropout, drop-path, label smoothing, weight decay. The run has a name of its
    own.
    """
    config = copy.deepcopy(config)
    config.name = f"{config.name}-overfit{videos}"
    config.data.val = config.data.train
    config.data.augment = AugmentConfig()
    config.data.flip = 0.0
    config.data.short_side = (config.data.short_side[0],) * 2
    config.model.dropout = config.model.drop_path = 0.0
    config.optim.weight_decay = config.train.label_smoothing = 0.0
    return config


def _take_steps(config: RunConfig, count: int) -> tuple[Trainer, float, float]:
    """The trainer, and the mean seconds of data and of compute of all steps but the first."""
    trainer = Trainer(config)
    trainer.build()
    learner = trainer.learner
    learner.train()
    count = min(count, trainer.plan.steps(0))
    batches = Prefetcher(trainer.loader(), trainer.device)
    began = time.perf_counter()
    for step in range(count):
        learner.step(batches, number=step, lr=0.0)  # the weights stay as they are
        if step == 0 and count > 1:
            learner.meter.read()  # waits for the device
            batches.reset()
            began = time.perf_counter()
    learner.meter.read()
    elapsed, waited = time.perf_counter() - began, batches.reset()
    steps = max(count - 1, 1)
    return trainer, waited / steps, max(elapsed - waited, 0.0) / steps
