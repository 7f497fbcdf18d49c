"""The inference benchmark measures what it says it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gcvideo.benchmark import infer as infer_benchmark
from gcvideo.benchmark import peers
from gcvideo.benchmark.harness import CPU
from gcvideo.benchmark.infer import make_video
from gcvideo.cli import main
from gcvideo.config import RunConfig, TestConfig
from gcvideo.predict.predictor import Predictor


class Brightness(nn.Module):
    """Logits that say how bright a clip is, early and late."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, :, :4].mean(dim=(1, 2, 3, 4)), x[:, :, 4:].mean(dim=(1, 2, 3, 4))], dim=1) * 10


def test_both_classify_the_same_views(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4")
    test = TestConfig(clips=2, crops=3, short_side=64, crop=64)
    ours = next(Predictor(Brightness(), config=RunConfig()).score_files([video], test=test))
    assert isinstance(ours, np.ndarray)
    theirs = peers.classify_video(Brightness(), video, CPU, test)
    np.testing.assert_allclose(ours, theirs, atol=0.02)  # they resize without antialiasing
    assert abs(ours[0] - 0.5) > 1e-4


@pytest.mark.slow
def test_ratios_are_those_of_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_benchmark, "NETWORKS", {"gc": "slow_r18_gc_c345", "plain": "slow_r18"})
    monkeypatch.setattr(peers, "slow_r50", lambda frames, crop: Brightness())
    size = ["--clips", "1", "--crops", "1", "--crop", "64", "--rounds", "1", "--precision", "fp32", "--device", "cpu"]
    command = ["benchmark", "infer", *size, "--contenders", "pytorchvideo", "gc", "plain", "onnxruntime"]
    assert main([*command, "--json", str(tmp_path / "out.json")]) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    took = results["milliseconds"]
    assert took["onnxruntime"] > 0
    assert set(results["figures"]) == {"infer_video.pytorchvideo", "infer_video.gc_overhead"}
    assert results["figures"]["infer_video.pytorchvideo"] == pytest.approx(took["pytorchvideo"] / took["gc"])
    assert results["figures"]["infer_video.gc_overhead"] == pytest.approx(took["gc"] / took["plain"])
    assert "ms a view" in capsys.readouterr().out
