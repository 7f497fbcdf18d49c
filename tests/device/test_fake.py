"""Forward pass and loss on FakeTensors that claim cuda:0, which any machine can run: devices, dtypes, crossings."""

from __future__ import annotations

import pytest
import torch

from gcvideo.data import crops
from gcvideo.data.dataset import ClipBatch
from gcvideo.train.step import TrainStep
from tests.device.fake_cuda import Spy, pretend_cuda
from tests.device.steps import CASES, tiny

KINDS = ["nl", "gc", "se", "multi_label"]


@pytest.mark.parametrize("case", KINDS)
def test_forward_and_loss_stay_on_the_device(case: str) -> None:
    config = tiny(**CASES[case])
    crops._affine.cache_clear()
    try:
        with pretend_cuda():
            device = torch.device("cuda", 0)
            step = TrainStep(config, device)
            step.train_mode()
            clips = torch.empty(4, 3, 4, 32, 32, dtype=torch.uint8, device=device)
            batch = ClipBatch(clips, torch.zeros(4, dtype=torch.int64, device=device), torch.arange(4), [])
            step._forward(*step._inputs(batch)[:2])  # makes the constants of ``normalize``
            with Spy() as spy:
                loss, logits = step._forward(*step._inputs(batch)[:2])
                step.meter.add(0, loss, logits, batch.labels)
            assert step.precision == "bf16"
            assert logits.dtype == torch.bfloat16
            assert loss.device.type == logits.device.type == "cuda"
            assert spy.crossings == []
            assert spy.operators["aten.convolution.default"] > 10
    finally:
        crops._affine.cache_clear()  # of fake constants
