"""Workloads: random clips, forward passes and training steps of networks and of single blocks, and their peak memory.

Peak memory is in bytes, each in a new process: on a GPU what torch's allocator counts, on a CPU the growth of the
resident set. Weights, gradients, optimizer state, activations and scratch space are all in it; interpreter and
libraries are not.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from gcvideo.benchmark.harness import Contender
from gcvideo.config import RunConfig
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ClipBatch
from gcvideo.device import memory_peak, pick_precision
from gcvideo.errors import GcvideoError
from gcvideo.eval.optimize import optimize_for_inference
from gcvideo.models import build_model
from gcvideo.train.step import TrainStep

# Learning rate of steps that are timed: so low that no network overfits the one batch, and the gradients of the last
# step have the size of those of the first.
STEADY_LR = 1e-6

# Contender -> named network.
NETWORKS = {"plain": "slow_r50", "gc": "slow_r50_gc_c345", "se": "slow_r50_se_c345", "nl": "slow_r50_nl5"}


def random_clips(shape: Sequence[int]) -> Tensor:
    """Noise: uint8 of ``shape`` (N, 3, T, H, W), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, tuple(shape), dtype=torch.uint8, generator=generator)


def forward_pass(
    config: RunConfig, clips: Tensor, *, device: torch.device, precision: str, compile: bool = False
) -> Contender:
    """One forward pass as a test runs it, from uint8 clips to logits, with fresh weights.

    Args:
        config: its network and normalisation.
        clips: uint8 (N, 3, T, H, W).
        precision: "fp32", "bf16" (weights and activations), or "auto".
        compile: with ``torch.compile``.
    """
    network = without_zeros(build_model(config.model)).to(device)
    model = optimize_for_inference(network, precision=pick_precision(precision, device), compile=compile)
    dtype = next(model.parameters()).dtype
    clips = clips.to(device)

    @torch.no_grad()
    def forward() -> Tensor:
        return model(normalize(clips, mean=config.data.mean, std=config.data.std, dtype=dtype))

    return forward


def training_step(
    config: RunConfig, clips: Tensor, *, device: torch.device, precision: str, compile: bool = False
) -> partial[Any]:
    """One step of the trainer itself, from uint8 clips to updated weights, with fresh weights.

    Args:
        config: what to train, and how; batch size, frames and crop follow the clips.
        clips: uint8 (N, 3, T, H, W).
        precision: "fp32", "bf16" (under autocast), or "auto".
        compile: with ``torch.compile``.

    Returns:
        a function without arguments; its ``func`` takes other batches, and its ``keywords``.
    """
    changes: dict[str, Any] = {"batch_size": len(clips), "accumulate": 1, "precision": precision, "compile": compile}
    side = clips.shape[-1]
    data = replace(config.data, frames=clips.shape[2], crop=side, short_side=(side, side))
    model = replace(config.model, weights=None)
    learner = TrainStep(replace(config, data=data, train=replace(config.train, **changes), model=model), device)
    learner.train_mode()
    indices = torch.arange(len(clips))
    batch = ClipBatch(clips.to(device), indices.to(device) % model.num_classes, indices, [])
    return partial(learner.step, repeat(batch), number=0, lr=STEADY_LR)


def without_zeros(module: nn.Module, *, std: float = 0.1) -> Any:
    """Give layers that start at zero random weights, so that no product is trivially zero; returns the module."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


def block_training(block: nn.Module, x: Tensor, dy: Tensor) -> None:
    """Run forward and backward pass of a block; x is a leaf with a gradient, dy the gradient of the output."""
    x.grad = None
    block.zero_grad(set_to_none=True)
    block(x).backward(dy)


def peak_memory(config: RunConfig, shape: Sequence[int], *, device: torch.device, precision: str) -> dict[str, int]:
    """Bytes at the peak of a forward pass ("inference") and of two training steps ("train") of a network.

    Args:
        config: of the network.
        shape: (N, 3, T, H, W) of the clips.
        device: to compute on; on a CPU with torch's present number of threads.
        precision: "fp32", "bf16" or "auto".

    Raises:
        GcvideoError: a measuring process died, as it does where memory runs out.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # so that the libraries are loaded once
    found = {}
    for kind in ("inference", "train"):
        with ProcessPoolExecutor(1, mp_context=context) as fresh:
            job = fresh.submit(memory_growth, config, shape, kind, device, precision, torch.get_num_threads())
            try:
                found[kind] = job.result()
            except BrokenProcessPool:
                raise GcvideoError(f"{config.name}: the process that measures its memory ({kind}) died") from None
    return found


def cuda_peak(contender: Contender) -> int:
    """Largest number of bytes that torch has allocated on the GPU during a call."""
    torch.cuda.reset_peak_memory_stats()
    contender()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def memory_growth(
    config: RunConfig, shape: Sequence[int], kind: str, device: torch.device, precision: str, threads: int
) -> int:
    """How many bytes more this process holds at its peak; to be called in a new process."""
    torch.set_num_threads(threads)
    small = replace(config, model=replace(config.model, width=4))
    # The libraries set up their pools on first use, by the small network, which is not the other's memory.
    for network, size in ((small, (1, 3, 2, 96, 96)), (config, shape)):
        before = memory_peak(device)
        make = forward_pass if kind == "inference" else training_step
        contender = make(network, random_clips(size), device=device, precision=precision)
        for _ in range(1 if kind == "inference" else 2):  # from the second step on there is an optimizer state
            contender()
    return memory_peak(device) - before
