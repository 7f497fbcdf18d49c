"""Training step: the network in training, and its forward pass, backward pass and update."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.capture import CudaGraphs, eager_reason
from gcvideo.config import RunConfig, import_object
from gcvideo.data.augment import ClipMixer
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ClipBatch
from gcvideo.errors import ConfigError
from gcvideo.eval.metrics import TrainMeter
from gcvideo.models.resnet3d import build_model
from gcvideo.train.batch_norm import split_batch_norms, synchronize_batch_norms
from gcvideo.train.optimizer import build_optimizer, freeze, frozen_parts, load_optimizer, parameter_groups
from gcvideo.train.schedule import smallest_clip
from gcvideo.weights import load_initial_weights

Loss = Callable[[Tensor, Tensor], Tensor]


class TrainStep:
    """Network, loss and optimizer, and the averaged weights (EMA) where the config asks for them.

    Args:
        config: of the run.
        device: of this process.
        model: network to train instead of the config's; maps clips (N, 3, T, H, W), float, to logits (N, K).
        loss: maps logits (N, K), float32, and labels (N,) int64, or (N, K) float where clips are mixed or have several
            labels, to a scalar. Default: ``train.loss``, else cross entropy, of several labels binary cross entropy.
        classes: class names of the data in label order, to be compared with those of ``model.weights``.
        labels: of the training videos, int (V,), for ``train.class_weights``.

    Attributes:
        network: the network itself.
        model: the network, wrapped in DistributedDataParallel if there are several processes.
        meter: loss and accuracy of the last steps.
        precision: "fp32" or "bf16".
        warm_up: steps, of each shape of clips, before those that all take the same time.
        eager_because: why steps are no CUDA graph; empty if they are.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        *,
        model: nn.Module | None = None,
        loss: Loss | None = None,
        classes: Sequence[str] | None = None,
        labels: Sequence[int] | np.ndarray = (),
    ) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        network = build_model(config.model) if model is None else model
        self.loss = loss or build_loss(config, labels, device)
        if isinstance(self.loss, nn.Module):
            self.loss.to(device)
        frames, crop = smallest_clip(config)
        self.precision = runtime.pick_training_precision(
            config.train.precision, device, network, frames=frames, crop=crop
        )
        self.memory_format = runtime.pick_memory_format(config.train.channels_last, self.precision, device)
        if config.model.weights is not None:
            load_initial_weights(network, config.model.weights, classes=classes)
        freeze(network, config.train.freeze)
        if device.type == "cpu":
            runtime.reach_onednn(network)
        network = network.to(device).to(memory_format=self.memory_format)
        # Weights are averaged after each step; batch norm statistics are those of the network itself.
        self.ema = copy.deepcopy(network) if config.train.ema else None
        self.ema_updates = 0
        # After the copy for averaging: a process group cannot be copied.
        self.network = synchronize_batch_norms(network, config.train.sync_batch_norm, device)
        self.optimizer = build_optimizer(self.network, config.optim)
        if config.train.freeze_epochs:  # in groups of their own, whose first step comes later
            later = [p for part in frozen_parts(network, config.train.freeze) for p in part.parameters()]
            for group in parameter_groups(dict.fromkeys(later), config.optim):
                self.optimizer.add_param_group(group)
        if config.train.compile:
            self.network.compile()
        self.model = self._distribute()
        augment, self.mixer = config.data.augment, None
        if augment.mixup or augment.cutmix:
            clips = micro_batch_size(config)
            self.mixer = ClipMixer(augment, num_classes=config.model.num_classes, clips=clips)
        self.meter = TrainMeter(device)
        # What a CUDA graph reads at each step: the learning rate and the number of the step.
        self._lr = torch.zeros((), device=device)
        self._number = torch.zeros((), dtype=torch.int64, device=device)
        self.warm_up = 1
        self.eager_because = eager_reason(config, device, own=model is not None or loss is not None)
        self._graphs = self._make_graphs()

    @property
    def tested_network(self) -> nn.Module:
        """Network to validate, test and predict with: the averaged one, if there is one."""
        return self.network if self.ema is None else self.ema

    def _distribute(self) -> nn.Module:
        """The network, or with several processes its wrapper, which exchanges the gradients of what is trained now."""
        if distributed.world_size() == 1:
            return self.network
        return DistributedDataParallel(
            self.network, gradient_as_bucket_view=True, static_graph=self.config.train.static_graph
        )

    def train_mode(self, *, epoch: int = 0, batch_norm_splits: int = 1) -> None:
        """Switch to training for an epoch, counted from 0; what is frozen in it stays in evaluation.

        Args:
            batch_norm_splits: parts of each batch that batch norms normalise separately.
        """
        self.model.train()
        split_batch_norms(self.network, batch_norm_splits)
        trained = 0 < self.config.train.freeze_epochs <= epoch
        parts = frozen_parts(self.network, self.config.train.freeze)
        changes = any(parameter.requires_grad != trained for part in parts for parameter in part.parameters())
        for part in parts:
            part.train(trained).requires_grad_(trained)
        if changes:
            self.model = self._distribute()
            self._graphs = self._make_graphs()

    def step(self, batches: Iterator[ClipBatch], *, number: int, lr: float) -> list[ClipBatch]:
        """One optimizer step. Nothing in it makes the host wait for the device.

        Args:
            batches: ``train.accumulate`` micro-batches are taken from it.
            number: of the step; it and the seed determine every random draw (dropout, drop-path, mixing).
            lr: learning rate.

        Returns:
            The micro-batches.
        """
        self._lr.fill_(lr)
        self._number.fill_(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self._graphs is None else self._lr
        runtime.seed_step(self.config.seed, number, distributed.rank())
        used = []

        def inputs() -> Iterator[Tensor]:
            for _ in range(self.config.train.accumulate):
                used.append(next(batches))
                yield from self._inputs(used[-1])

        if self._graphs is None:
            self._compute(inputs())
        else:
            self._graphs(list(inputs()))
        self.ema_updates += self.ema is not None
        return used

    def _compute(self, inputs: Iterable[Tensor]) -> None:
        """Gradients of all micro-batches and the update; nothing in it depends on the host but the inputs."""
        parts, tensors = self.config.train.accumulate, iter(inputs)
        for part in range(parts):
            clips, targets, labels = (next(tensors) for _ in range(3))
            # Processes sum their gradients once per step, with the last micro-batch.
            model, last = self.model, part == parts - 1
            with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
                loss, logits = self._forward(clips, targets)
                (loss / parts).backward()
            self.meter.add(self._number, loss, logits, labels)
        norm = None
        if self.config.optim.clip_grad_norm:
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optim.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        self.meter.add_step(norm)

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the network's; the first time, and always of buffers, they become these."""
        if self.ema is None:
            return
        averages, weights = ([p.data for p in network.parameters()] for network in (self.ema, self.network))
        torch._foreach_lerp_(averages, weights, 1 - self.config.train.ema if self.ema_updates else 1.0)
        theirs, own = list(self.ema.buffers()), list(self.network.buffers())
        for dtype in {buffer.dtype for buffer in own}:  # of one dtype they are copied by one kernel
            torch._foreach_copy_([b for b in theirs if b.dtype == dtype], [b for b in own if b.dtype == dtype])

    def _inputs(self, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Clips, targets and labels of a batch on the device; mixed, which the host draws, if the config says so."""
        clips, targets = batch.clips, batch.labels
        if self.config.model.multi_label:
            targets = multi_hot(targets, self.config.model.num_classes)
        if self.mixer is not None:
            clips, targets = self.mixer(self.prepare(clips), targets)  # targets (N, K): share of each class in a clip
            clips = clips.contiguous(memory_format=self.memory_format)
        return clips, targets, batch.labels

    def _forward(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.mixer is None:
            clips = self.prepare(clips)
        try:
            with self.autocast():
                logits = self.model(clips)
        except ValueError as error:  # of a batch norm that is to be trained on one value
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(f"train.batch_size: {error}; give more clips a micro-batch, or larger ones") from None
        return self.loss(logits.float(), targets), logits

    def prepare(self, clips: Tensor) -> Tensor:
        """uint8 clips (N, C, T, H, W), normalised to float and in the network's memory format."""
        clips = clips.contiguous(memory_format=self.memory_format)
        return normalize(clips, mean=self.config.data.mean, std=self.config.data.std)

    def autocast(self) -> torch.autocast:
        """bf16 where it was chosen; weights, loss and updates stay float32, so no gradient scaling is needed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _make_graphs(self) -> CudaGraphs | None:
        if self.eager_because:
            return None
        for group in self.optimizer.param_groups:
            group["capturable"] = True  # of AdamW
        # DistributedDataParallel measures itself in its first ten steps, which waits for the device.
        self.warm_up = 4 if distributed.world_size() == 1 else 12
        return CudaGraphs(self._compute, warm_up=self.warm_up - 1, recover=self._drop_gradients)

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.model = self._distribute()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer for a checkpoint; ``model`` is the network to test with."""
        state: dict[str, Any] = {"model": self.tested_network.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            state["raw_model"] = self.network.state_dict()
            state["ema_updates"] = self.ema_updates
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            RuntimeError, ValueError, KeyError: it belongs to another network or optimizer.
        """
        self.network.load_state_dict(state.get("raw_model", state["model"]))
        load_optimizer(self.optimizer, state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["model"])
            # A run that switches averaging on late starts it from its current weights.
            self.ema_updates = int(state.get("ema_updates", 0))
        self._graphs = self._make_graphs()  # the optimizer's tensors are new ones


def build_loss(config: RunConfig, labels: Sequence[int] | np.ndarray, device: torch.device) -> Loss:
    """Cross entropy, binary, weighted or focal, or what ``train.loss`` names: a function, or a class to instantiate."""
    train = config.train
    if train.loss is not None:
        found = import_object(train.loss, key="train.loss")
        return found() if isinstance(found, type) else found
    if train.class_weights == "none" and not train.focal:
        loss = binary_cross_entropy if config.model.multi_label else F.cross_entropy
        return functools.partial(loss, label_smoothing=train.label_smoothing)
    weights = np.ones(config.model.num_classes)
    if train.class_weights == "balanced":
        count = np.bincount(labels, minlength=len(weights))
        weights = np.where(count, len(labels) / (np.maximum(count, 1) * max(np.count_nonzero(count), 1)), 0)
    on_device = torch.tensor(weights, dtype=torch.float32, device=device)
    return functools.partial(focal_loss, weights=on_device, gamma=train.focal, label_smoothing=train.label_smoothing)


def focal_loss(logits: Tensor, targets: Tensor, *, weights: Tensor, gamma: float, label_smoothing: float) -> Tensor:
    """Mean over clips of the sum over classes of -w t (1 - p)^gamma log p (Lin et al. 2017, of softmax probabilities).

    The sum of weights does not divide it, so a clip counts the same in every micro-batch.

    Args:
        logits: (N, K).
        targets: labels int64 (N,), or the share of each class (N, K) where clips are mixed; smoothed here.
        weights: w, of each class, (K,).
        gamma: 0 gives cross entropy.
    """
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits.shape[1])
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    log_p = logits.log_softmax(dim=1)
    rest = (-log_p.expm1()).clamp(min=1e-6)  # its power has no gradient at 0 where gamma is below 1
    return -(weights * targets * rest**gamma * log_p).sum(dim=1).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over clips and classes of -y log s(z) - (1 - y) log(1 - s(z)), s the sigmoid of a logit z; a scalar.

    Args:
        logits: (N, K) float32.
        targets: (N, K), y in [0, 1].
        label_smoothing: e, which makes each class's target (1 - e) y + e / 2.
    """
    return F.binary_cross_entropy_with_logits(logits, (1 - label_smoothing) * targets + label_smoothing / 2)


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """Targets (N, K) float32, 1 for the classes of each clip, from labels int64 (N,), or (N, L) filled up with -1."""
    labels = labels.view(len(labels), -1)
    targets = torch.zeros(len(labels), classes + 1, device=labels.device)
    return targets.scatter_(1, labels.where(labels >= 0, classes), 1.0)[:, :classes]


def micro_batch_size(config: RunConfig) -> int:
    """Clips in one forward pass of one process.

    Raises:
        ConfigError: ``train.batch_size`` does not divide.
    """
    processes, accumulate = distributed.world_size(), config.train.accumulate
    if config.train.batch_size % (processes * accumulate):
        raise ConfigError(
            f"train.batch_size: must be a multiple of {processes} processes x {accumulate} (train.accumulate)"
        )
    return config.train.batch_size // (processes * accumulate)
