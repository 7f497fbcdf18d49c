"""The network while it learns: forward, backward and update, and everything of it that a checkpoint must hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gcvideo import cpu, distributed
from gcvideo import device as runtime
from gcvideo.config import RunConfig
from gcvideo.data.augment import ClipMixer
from gcvideo.data.crops import normalize
from gcvideo.data.loader import ClipBatch
from gcvideo.eval.metrics import TrainMeter
from gcvideo.models.resnet3d import build_model
from gcvideo.train.batch_norm import share_batch_norms
from gcvideo.train.freezing import freeze, keep_frozen
from gcvideo.train.multigrid import divide_batch_norms, set_splits, smallest_clip
from gcvideo.train.optimizer import build_optimizer, check_warm_up, set_learning_rate
from gcvideo.train.resuming import load_optimizer
from gcvideo.weights import load_initial_weights


class Learner:
    """A network, its optimizer, and the averaged weights where the config asks for them.

    Args:
        config: of the run.
        device: of this process.
        classes: of the data, by label; only to be compared with those of ``model.weights``.

    Attributes:
        network: the bare network.
        model: the same, wrapped for several processes where there are several.
        meter: loss and accuracy of the last steps.
    """

    def __init__(self, config: RunConfig, device: torch.device, *, classes: Sequence[str] | None = None) -> None:
        self.config, self.device = config, device
        check_warm_up(config.optim, batch_size=config.train.batch_size)
        torch.manual_seed(config.seed)
        network: nn.Module = build_model(config.model)
        frames, crop = smallest_clip(config)
        self.precision = runtime.pick_training_precision(
            config.train.precision, device, network, frames=frames, crop=crop
        )
        clips = config.train.batch_size // (config.train.accumulate * distributed.world_size())
        smallest = config.model.width * config.data.frames * config.data.crop // 4  # of res2, and of the other stages
        onednn = cpu.onednn_computes(device, clips=clips, smallest=smallest)
        self.memory_format = runtime.pick_memory_format(config.train.channels_last, self.precision, onednn=onednn)
        if config.model.weights is not None:
            load_initial_weights(network, config.model.weights, classes=classes)
        freeze(network, config.train.freeze)
        if config.train.multigrid != "none":
            divide_batch_norms(network)
        if onednn:
            cpu.reach_onednn(network)
        network = network.to(device).to(memory_format=self.memory_format)
        # Averaged after each step; the statistics of batch norms are those of the network itself.
        self.ema: AveragedModel | None = None
        if config.train.ema:
            self.ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema))
        # After the copy for averaging: a group of processes cannot be copied.
        self.network = share_batch_norms(network, config.train.sync_batch_norm, device)
        self.optimizer = build_optimizer(self.network, config.optim)
        if config.train.compile:
            self.network.compile()
        self.model: nn.Module = self.network
        if distributed.world_size() > 1:
            self.model = nn.parallel.DistributedDataParallel(
                self.network, gradient_as_bucket_view=True, static_graph=config.train.static_graph
            )
        self.mixer: ClipMixer | None = None
        if config.data.augment.mixup or config.data.augment.cutmix:
            self.mixer = ClipMixer(config.data.augment, num_classes=config.model.num_classes, clips=clips)
        self.meter = TrainMeter(device)

    @property
    def tested_network(self) -> nn.Module:
        """The network to validate, test and predict with: the averaged one where there is one."""
        return self.network if self.ema is None else self.ema.module

    def train(self, *, splits: int = 1) -> None:
        """Switch to training: dropout on, batch norms measuring (``splits`` parts of a batch), frozen parts aside."""
        self.model.train()
        set_splits(self.network, splits)
        keep_frozen(self.network, self.config.train.freeze)

    def step(self, batches: Iterator[ClipBatch], *, number: int, lr: float) -> list[ClipBatch]:
        """One optimizer step over ``train.batch_size`` clips: nothing in it makes the host wait for the device.

        Args:
            batches: ``train.accumulate`` micro-batches are taken from it.
            number: of the step; with the seed it decides every random draw (dropout, drop-path, mixing).
            lr: learning rate.

        Returns:
            The micro-batches.
        """
        set_learning_rate(self.optimizer, lr)
        runtime.seed_step(self.config.seed, number, distributed.rank())
        parts = self.config.train.accumulate
        used = []
        for part in range(parts):
            batch = next(batches)
            with self._exchange_gradients(part == parts - 1):
                loss, logits = self.forward(batch)
                (loss / parts).backward()
            self.meter.add(number, loss, logits, batch.labels)
            used.append(batch)
        norm = None
        if self.config.optim.clip_grad_norm:
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optim.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        self.meter.add_step(norm)
        return used

    def forward(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Mean loss and logits (N, K) of a batch on the device."""
        clips, targets = self.prepare(batch.clips), batch.labels
        if self.mixer is not None:
            clips, targets = self.mixer(clips, targets)  # targets (N, K): how much of each class a clip shows
        with self.autocast():
            logits = self.model(clips)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.config.train.label_smoothing)
        return loss, logits

    def prepare(self, clips: Tensor) -> Tensor:
        """uint8 clips as the network wants them: (N, C, T, H, W) normalised, in its memory format."""
        clips = clips.contiguous(memory_format=self.memory_format)
        return normalize(clips, mean=self.config.data.mean, std=self.config.data.std)

    def autocast(self) -> torch.autocast:
        """bf16 where it was chosen; weights, loss and updates stay float32, so no gradient scaling is needed."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _exchange_gradients(self, now: bool) -> AbstractContextManager[None]:
        """Processes add up their gradients once a step, with the last of its micro-batches."""
        if now or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def state(self) -> dict[str, Any]:
        """Weights and optimizer for a checkpoint; ``model`` is what to test with."""
        state: dict[str, Any] = {"model": self.tested_network.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            state["raw_model"] = self.network.state_dict()
            state["ema_updates"] = int(self.ema.n_averaged)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned.

        Raises:
            RuntimeError, ValueError, KeyError: it is of another network or optimizer.
        """
        self.network.load_state_dict(state.get("raw_model", state["model"]))
        load_optimizer(self.optimizer, state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["model"])
            # A run that switches averaging on late starts it from its present weights.
            self.ema.n_averaged.fill_(state.get("ema_updates", 0))
