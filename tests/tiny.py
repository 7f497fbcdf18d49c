"""Tiny videos and a tiny untrained checkpoint, for tests of whole commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gcvideo.config import RunConfig, config_from_dict, config_to_dict
from gcvideo.data.crops import normalize
from gcvideo.models.resnet3d import build_model
from gcvideo.train.checkpoint import save_checkpoint
from tests.videos import moving_frames, write_video

CLASSES = ["left", "right", "up", "down"]


def tiny_config(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """ResNet-18 of width 4 on clips of 4 frames of 32 x 32; the videos of ``folder/val.txt`` to test on."""
    values: dict[str, Any] = {
        "name": "tiny",
        "output": str(folder / "runs"),
        "device": "cpu",
        "model": {
            "depth": 18,
            "width": 4,
            "num_classes": len(CLASSES),
            "context": {"kind": "gc", "stages": {"res3": "all"}},
        },
        "data": {
            "val": {"annotation": str(folder / "val.txt")},
            "frames": 4,
            "stride": 2,
            "crop": 32,
            "short_side": [32, 40],
            "workers": 0,
        },
        "test": {"clips": 2, "crops": 3, "short_side": 36, "crop": 32},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return config_from_dict(values, where="the test's config")


def tiny_checkpoint(folder: Path, *, classes: Sequence[str] = CLASSES, **sections: dict[str, Any]) -> Path:
    """``folder/runs/tiny/checkpoints/best.pt``: random weights, scaled so that videos get different labels."""
    sections["model"] = {"num_classes": len(classes), **sections.get("model", {})}
    config = tiny_config(folder, **sections)
    torch.manual_seed(0)
    model = build_model(config.model)
    with torch.no_grad():
        for parameter in model.parameters():  # zero-initialised norms and blocks would make all videos alike
            parameter.add_(0.3 * torch.randn_like(parameter))
        clips = torch.stack([torch.from_numpy(moving_frames(4, 32, 32, seed=i)) for i in range(8)])  # (8, T, H, W, 3)
        logits = model.eval()(normalize(clips.permute(0, 4, 1, 2, 3), mean=config.data.mean, std=config.data.std))
        model.head.proj.weight.mul_(2 / logits.std(dim=0)[:, None])
        model.head.proj.bias.sub_(logits.mean(dim=0)).mul_(2 / logits.std(dim=0))
    path = config.run_dir / "checkpoints" / "best.pt"
    state = {"model": model.state_dict(), "config": config_to_dict(config), "classes": list(classes)}
    save_checkpoint(path, {**state, "fingerprint": "0" * 64, "epoch": 1, "step": 10})
    return path


def tiny_videos(folder: Path, count: int = 6) -> list[Path]:
    """Videos of 20 frames of 64 x 48 and the list ``folder/val.txt``."""
    paths = [write_video(folder / f"video_{i}.mp4", moving_frames(20, seed=i)) for i in range(count)]
    lines = [f"{path.name} {i % len(CLASSES)}\n" for i, path in enumerate(paths)]
    (folder / "val.txt").write_text("".join(lines))
    return paths
