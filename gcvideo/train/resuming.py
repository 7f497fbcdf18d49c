"""Going on from a checkpoint: reading it on every process, and saying what is not as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gcvideo import distributed
from gcvideo.errors import ConfigError, GcvideoError
from gcvideo.train.checkpoint import CheckpointFolder, load_checkpoint

# Keys of the config that change neither the weights a run ends with nor the order of its samples.
HARMLESS: tuple[str, ...] = (
    "name",
    "output",
    "device",
    "test.",
    "data.workers",
    "data.val.",
    "data.test.",
    "train.val_",
    "train.log_",
)
HARMLESS += ("train.checkpoint", "train.wandb", "train.keep_checkpoints", "data.worker_memory", "data.video_timeout")

# Keys that decide which tensors an optimizer keeps, and how they are grouped.
LASTING = ("optim.optimizer", "optim.decay_norm_and_bias", "train.freeze")


def load_together(checkpoints: CheckpointFolder) -> dict[str, Any] | None:
    """The newest readable checkpoint, chosen by rank 0 and read by every process; None where there is none.

    Raises:
        CheckpointError: on every process alike.
    """
    answer: dict[str, Any] | GcvideoError | None = None
    if distributed.is_main():
        try:
            answer = checkpoints.load_latest()
        except GcvideoError as error:
            answer = error
    chosen = answer["path"] if isinstance(answer, dict) else answer
    chosen = distributed.broadcast_object(chosen)
    if isinstance(chosen, GcvideoError):
        raise chosen
    if chosen is None or isinstance(answer, dict):
        return answer if isinstance(answer, dict) else None
    return {**load_checkpoint(chosen), "path": chosen}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer, its buffers laid out in memory as the parameters are, which fused kernels rely on.

    Weight decay, momentum and so on stay those that it was made with.

    Raises:
        ValueError: the state is of an optimizer of other parameters.
    """
    groups = zip(optimizer.param_groups, state["param_groups"], strict=True)
    kept = [{**group, "params": before["params"]} for group, before in groups]
    optimizer.load_state_dict({**state, "param_groups": kept})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    optimizer.state[parameter][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def refuse_other_optimizer(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run goes on with the optimizer that it began with.

    Args:
        before: the checkpoint.
        now: the same keys of the run at hand.

    Raises:
        ConfigError: its state would not fit.
    """
    old, new = _flat(before["config"]), _flat(now["config"])
    for key in LASTING:
        if old.get(key) != new.get(key):
            path = before["path"]
            raise ConfigError(
                f"{key}: was {old.get(key)!r} in {path} and is {new.get(key)!r} now, which --resume cannot change: "
                f"keep it, or start a run of another name from these weights with model.weights={path}"
            )


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed since a checkpoint was written, a line each; empty where the run goes on exactly.

    Args:
        before: the checkpoint.
        now: the same keys of the run at hand.
    """
    lines = []
    old, new = _flat(before["config"]), _flat(now["config"])
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not key.startswith(HARMLESS):
            lines.append(f"{key} was {old.get(key)!r} in the checkpoint and is {new.get(key)!r} now")
    if before["fingerprint"] != now["fingerprint"]:
        lines.append(
            f"the training videos or their labels are not those of the checkpoint (fingerprint "
            f"{before['fingerprint'][:12]}, now {now['fingerprint'][:12]})"
        )
    elif before.get("order", now.get("order")) != now.get("order"):
        lines.append(
            "the training videos are those of the checkpoint in another order: the samples that are still to come are "
            "others than they would have been"
        )
    if before["classes"] is not None and now["classes"] is not None and before["classes"] != now["classes"]:
        how = first_difference(before["classes"], now["classes"])
        lines.append(f"the classes are not those of the checkpoint: {how}")
    if before["world_size"] != now["world_size"]:
        lines.append(
            f"{before['world_size']} processes wrote the checkpoint, {now['world_size']} go on: the order of the clips "
            "and the clips of each step stay the same, batch norms see other shares of them"
        )
    precision = before.get("precision", now["precision"])
    if precision != now["precision"] and old["train.precision"] == new["train.precision"]:
        lines.append(
            f"the checkpoint was computed in {precision}, this machine goes on in {now['precision']}; "
            f"train.precision={precision} keeps to it"
        )
    for package, version in before["versions"].items():
        if now["versions"].get(package) != version:
            lines.append(f"{package} was {version} and is {now['versions'].get(package)} now")
    return lines


def first_difference(before: Sequence[str], now: Sequence[str]) -> str:
    """How two lists of classes differ, in a few words."""
    if len(before) != len(now):
        return f"{len(before)} there, {len(now)} here"
    label = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
    return f"label {label} was {before[label]!r} and is {now[label]!r} now"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
