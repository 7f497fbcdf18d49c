"""CUDA graphs: work on tensors that is recorded once for each shape of its inputs, and then launched as a whole."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gcvideo import distributed
from gcvideo.config import RunConfig, is_path
from gcvideo.console import warn


class CudaGraphs:
    """CUDA graphs of a function of tensors, one for each shape of its inputs; they share their memory.

    The first calls with inputs of a shape run the function as it is, which lets libraries choose and allocate. The next
    one records it, and later ones copy their inputs to those of the recording and replay it: Python and torch then cost
    nothing. So all the function reads and writes, besides its inputs, must stay where it is in memory, and what it does
    in Python must be the same in every call. Random numbers on the device follow torch's seed as they do without.

    Args:
        work: the function; what it returns is dropped.
        warm_up: calls before the recording.
        recover: called where a recording fails, to drop what it left half done; then all calls run ``work`` itself.
    """

    def __init__(
        self, work: Callable[[Sequence[Tensor]], object], *, warm_up: float, recover: Callable[[], object]
    ) -> None:
        self._work, self._warm_up, self._recover = work, warm_up, recover
        self._calls = Counter[tuple[object, ...]]()
        self._graphs: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, list[Tensor]]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: Sequence[Tensor]) -> None:
        """Do the work on tensors on the device, on the current stream, which must not be the default one."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._graphs and (self._calls[key] < self._warm_up or not self._record(key, inputs)):
            self._calls[key] += 1
            self._work(inputs)
        else:
            graph, places = self._graphs[key]
            if places:
                torch._foreach_copy_(places, list(inputs), non_blocking=True)
            graph.replay()

    def _record(self, key: tuple[object, ...], inputs: Sequence[Tensor]) -> bool:
        """Record the work, which does not run meanwhile; whether that was possible."""
        graph, places = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in inputs]
        stream, failure = torch.cuda.current_stream(), ""
        try:
            # Only this thread's calls are held to the rules: others receive batches and watch collectives meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                self._work(places)
        except RuntimeError as error:
            failure = str(error.__context__ or error).splitlines()[0]  # the end of a failed recording fails, too
        if distributed.agree(int(failure != "")):
            self._warm_up = math.inf
            warn(f"without CUDA graphs, because a recording failed: {failure or 'on another process'}")
            self._recover()
            return False
        self._graphs[key] = graph, places
        return True


def eager_reason(config: RunConfig, device: torch.device, *, own: bool) -> str:
    """Why the training steps of a config do not become a CUDA graph; empty if they do.

    Args:
        config: of the run.
        device: of the training.
        own: network or loss were given as Python objects.
    """
    train, optim = config.train, config.optim
    reasons = {
        f"the device is {device.type}": device.type != "cuda",
        "train.cuda_graph=false": train.cuda_graph is False,
        "train.sync_batch_norm waits for the device": train.sync_batch_norm != 1,
        "it needs sgd or adamw, and optim.fused": is_path(optim.optimizer) or not optim.fused,
        "network or loss are your own (train.cuda_graph=true tries it)": not train.cuda_graph
        and (own or is_path(config.model.arch) or train.loss is not None),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
