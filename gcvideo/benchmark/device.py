"""Benchmark of a GPU: what to look at first on a new one, in about ten minutes, each beside the bound that we expect.

====================  ===========================================================================================
check                 measured, and its bound
====================  ===========================================================================================
numerics              largest error of output and gradients in bf16 autocast on the GPU, relative to float64 on the
                      CPU, of each block and of a small network; of the logits of a test in bf16, to float32
block                 time of the GC block over that of the passes over memory that it cannot do without, see
                      ``gcvideo benchmark blocks``
step                  milliseconds of a training step: as single kernels (eager; bound: the time at a fifth of the speed
                      of a large matrix product), as a CUDA graph and compiled (bound: eager); gc over plain
memory                GiB that a step with GC blocks takes for a while; bound: a tenth more than without
host, calls           CPU milliseconds of a step as a graph; its launches, copies and waits
fed                   time of a step with batches from a worker process over that with a batch on the GPU
====================  ===========================================================================================
"""

import argparse
import copy
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import profile

from gcvideo.benchmark import blocks, harness
from gcvideo.benchmark.train import matmul_peak, matmul_share
from gcvideo.benchmark.workloads import NETWORKS, cuda_peak, forward_pass, random_clips, training_step, without_zeros
from gcvideo.config import RunConfig
from gcvideo.data.dataset import ClipBatch
from gcvideo.data.loader import Prefetcher
from gcvideo.data.worker_pool import WorkerPool
from gcvideo.device import has_streams
from gcvideo.errors import ConfigError
from gcvideo.layers import NonLocalBlock, gc_block, se_block, snl_block
from gcvideo.models import create_model, model_config

# A batch norm after the non-local block would leave rounding errors alone of what its weights' gradients would be.
BLOCKS: Any = {"gc": gc_block, "snl": snl_block, "se": se_block, "nl": partial(NonLocalBlock, norm=False)}
Check = tuple[str, float, float]  # name, what was measured, and the most that is expected


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, and write the results."""
    device, _, machine = harness.set_up(args)
    if not has_streams(device):
        raise ConfigError("benchmark device: needs an NVIDIA GPU, and torch finds none on this machine")
    case = blocks.Case("res4", max(args.batch), "channels_last", "bf16")
    row = blocks.measure(case, blocks.gc_blocks, rounds=args.rounds, device=device)
    found = [(f"block.{name}", row[f"{name}.floor"], 1.5) for name in ("forward", "train")]
    found += [*check_numerics(device), *chain(*(check_steps(args, device, batch) for batch in args.batch))]
    rows = [{"check": name, "measured": value, "bound": bound, "holds": value <= bound} for name, value, bound in found]
    harness.finish(args, {"checks": rows, "machine": machine}, {machine: rows})


def check_numerics(device: torch.device) -> Iterator[Check]:
    """Errors of bf16, which has 8 bits."""
    for name, make in BLOCKS.items():
        yield f"numerics.{name}", largest_error(make(64), torch.randn(4, 64, 4, 8, 8), device), 0.02
    network = create_model("slow_r18_gc_c345", num_classes=10, width=16, dropout=0.0)
    yield "numerics.network", largest_error(network, torch.randn(4, 3, 4, 64, 64), device), 0.3
    logits: list[Any] = []
    for place, precision in (("cpu", "fp32"), (device, "bf16")):
        torch.manual_seed(0)  # of the weights
        config, clips = RunConfig(model=model_config(NETWORKS["gc"])), random_clips((1, 3, 8, 64, 64))
        logits.append(forward_pass(config, clips, device=torch.device(place), precision=precision)())
    yield "numerics.test", relative_error(logits[1], logits[0]), 0.02


def largest_error(network: nn.Module, x: Tensor, device: torch.device) -> float:
    """Largest error of output and gradients in bf16 autocast on a device, relative to float64 on the CPU."""
    exact, x = copy.deepcopy(without_zeros(network)).double(), x.bfloat16().float()
    dy = torch.randn(exact(x.double()).shape)
    return max(map(relative_error, passes(network.to(device), x.to(device), dy), passes(exact, x.double(), dy)))


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Norm of the difference over that of the truth."""
    return float((found.cpu().double() - truth.cpu()).norm() / truth.cpu().norm())


def passes(network: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Output, gradient of the input, and gradients of all weights together; under bf16 autocast if x is float32."""
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.float32):
        y = network(x)
    y.backward(dy.to(y))
    weights = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
    return [y.detach(), x.grad, torch.cat(weights)]


def check_steps(args: argparse.Namespace, device: torch.device, batch: int) -> Iterator[Check]:
    """Training steps of so many clips without and with GC blocks, and a closer look at the latter's graph."""
    shape = (3, args.frames, args.crop, args.crop)
    clips, calls, peak = random_clips((batch, *shape)), 10, matmul_peak(device, "bf16")
    configs = {name: RunConfig(model=model_config(NETWORKS[name])) for name in ("plain", "gc")}

    names, steps = [*product(configs, ["eager", "graph", "compiled"][: 3 if args.compile else 2])], {}
    for name, mode in names:
        config = replace(configs[name], train=replace(configs[name].train, cuda_graph=mode == "graph"))
        compile = mode == "compiled"
        steps[f"{name}.{mode}"] = training_step(config, clips, device=device, precision="auto", compile=compile)
    times = harness.time_contenders(steps, rounds=args.rounds, device=device, warmup=4, title=f"{batch} clips")
    ms = times.milliseconds()
    for name, mode in names:
        share = matmul_share(configs[name], shape, 1000 * batch / ms[f"{name}.eager"], peak)
        bound = ms[f"{name}.eager"] * (share / 0.2 if mode == "eager" else 1)
        yield f"step.{name}.{mode}.{batch}", ms[f"{name}.{mode}"], bound
    yield f"step.gc_over_plain.{batch}", times.ratio("gc.graph", "plain.graph"), 1.1
    memory = [cuda_peak(steps[f"{name}.eager"]) - torch.cuda.memory_allocated() for name in configs]
    yield f"memory.{batch}", memory[1] / 2**30, 1.1 * memory[0] / 2**30

    graph, began = steps["gc.graph"], time.process_time()
    for _ in range(calls):
        graph()
    yield f"host.{batch}", 1000 * (time.process_time() - began) / calls, 2.5
    with profile() as profiler:
        graph()
    called = {event.key: event.count for event in profiler.key_averages()}
    for kind, most in {"Launch": 6, "Memcpy": 3, "StreamSynchronize": 0, "EventSynchronize": 0}.items():
        yield f"calls.{kind}.{batch}", sum(n for name, n in called.items() if re.match(f"cu.*{kind}", name)), most

    item = ClipBatch(clips, torch.arange(batch), torch.arange(batch), [])
    pool = WorkerPool[int, ClipBatch](lambda task, hold: item, workers=1, on_death=print, pin_memory=True)
    batches = Prefetcher(pool.map(range(calls * (args.rounds + 1))), device)
    contenders = {"fed": partial(graph.func, batches, **graph.keywords), "graph": graph}
    times = harness.time_contenders(contenders, rounds=args.rounds, device=device, calls=calls, title="fed")
    yield f"fed.{batch}", times.ratio("fed", "graph"), 1.1
