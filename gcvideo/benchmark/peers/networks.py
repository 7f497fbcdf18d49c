"""pytorchvideo's Slow-R50 as its users train and test it, to compare gcvideo with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo.benchmark.peers.loaders import MEAN, STD, Views, per_view_video
from gcvideo.benchmark.timing import Contender
from gcvideo.benchmark.workloads import STEADY_LR, labels_for
from gcvideo.config import TestConfig
from gcvideo.video import open_video


def slow_r50(frames: int, crop: int) -> nn.Module:
    """The network of pytorchvideo's ``create_resnet``; its head pools a fixed number of positions.

    Args:
        frames: T of the clips.
        crop: H and W of the clips.
    """
    from pytorchvideo.models.resnet import create_resnet

    side = -(-crop // 32)
    network: nn.Module = create_resnet(
        model_depth=50, stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(frames, side, side)
    )
    return network


def training_step(clips: Tensor, device: torch.device) -> Contender:
    """One step in float32 with torch's default SGD, from uint8 clips (N, 3, T, H, W) to updated weights."""
    clips = clips.to(device)
    labels = labels_for(clips, classes=400).to(device)
    network = slow_r50(clips.shape[2], clips.shape[-1]).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=STEADY_LR, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network((clips.float() / 255 - MEAN) / STD), labels).backward()
        optimizer.step()

    return step


@torch.no_grad()
def classify_video(network: nn.Module, video: str, device: torch.device, test: TestConfig) -> np.ndarray:
    """Mean softmax (K,) of a video's views, with one decode and one forward pass a view."""
    with open_video(video) as reader:
        views = Views(video, len(reader), reader.fps, test.clips, test.crops, test.crop)
    scores = [network(view[None].to(device)).softmax(dim=1)[0] for view in per_view_video(views)]
    return torch.stack(scores).mean(dim=0).cpu().numpy()
