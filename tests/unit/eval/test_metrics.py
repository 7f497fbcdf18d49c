"""Accuracy, and the figures of training that stay on the device until they are read."""

import math

import pytest
import torch

from gcvideo.eval.metrics import TrainMeter, topk_accuracy


def test_topk_counts_rows_whose_label_is_among_the_best() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.35, 0.25, 0.4], [0.9, 0.06, 0.04]])
    labels = torch.tensor([1, 2, 0, 2])
    assert topk_accuracy(scores, labels, (1, 2)) == [0.25, 0.75]
    assert topk_accuracy(scores[:2], labels[:2], (1, 2, 5)) == [0.5, 1.0, 1.0]


def test_topk_of_nothing_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in topk_accuracy(torch.empty(0, 3), torch.empty(0, dtype=torch.long)))


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
    assert train.read() == {"loss": 5.0, "top1": 0.0, "grad_norm": 0.0, "steps": 1.0, "clips": 2.0}


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
    assert train.first_bad_step() is None
