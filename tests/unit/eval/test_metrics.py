"""Accuracy, and the figures of training that stay on the device until they are read."""

import math

import numpy as np
import pytest
import torch

from gcvideo.eval.metrics import NO_STEP, TrainMeter, softmax


def test_softmax_rows_sum_to_one_at_any_size_of_logits() -> None:
    logits = np.array([[1e4, 0.0], [-1e4, -1e4], [1.0, 2.0]])
    expected = torch.tensor(logits).softmax(dim=1).numpy()
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-12)
    assert softmax(logits.astype(np.float32)).dtype == np.float32


def meter() -> TrainMeter:
    return TrainMeter(torch.device("cpu"))


def test_a_reading_is_the_mean_since_the_last() -> None:
    train = meter()
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    train.add(0, torch.tensor(1.0), logits, torch.tensor([0, 1]))
    train.add(0, torch.tensor(2.0), logits, torch.tensor([0, 0]))
    train.add_step(torch.tensor(4.0))
    assert train.read() == {"loss": 1.5, "top1": 0.75, "grad_norm": 4.0, "steps": 1.0, "clips": 4.0}
    train.add(1, torch.tensor(5.0), logits, torch.tensor([1, 0]))
    train.add_step(None)
    assert train.read() == {"loss": 5.0, "top1": 0.0, "steps": 1.0, "clips": 2.0}


def test_a_reading_may_wait_for_the_next_one() -> None:
    train, found = meter(), list[float]()
    for number in range(3):
        train.add(number, torch.tensor(float(number)), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
        train.add_step(None)
        train.read_later(lambda means: found.append(means["loss"]), leave=1)
        assert found == list(range(number))
    train.finish()
    assert found == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_no_number_is_remembered(value: float) -> None:
    train = meter()
    logits, labels = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    for step, loss in enumerate([1.0, 2.0, value, 1.0, value]):
        train.add(step, torch.tensor(loss), logits, labels)
        train.add_step(None)
    train.read()  # however late it is looked at
    assert train.first_bad_step() == 2


def test_numbers_alone_are_no_cause_for_alarm() -> None:
    train = meter()
    train.add(0, torch.tensor(1e30), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    assert train.first_bad_step() == NO_STEP
