"""The learning rate and the optimizer: their arithmetic, against the formulas of their sources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gcvideo.config import OptimConfig, load_config, shipped_configs
from gcvideo.train.optimizer import build_optimizer, learning_rate, parameter_groups


def rate(epoch: float, *, epochs: float = 196, batch_size: int = 64, **values: Any) -> float:
    return learning_rate(OptimConfig(**values), epoch=epoch, epochs=epochs, batch_size=batch_size)


def pyslowfast_rate(epoch: float) -> float:
    """SLOW_8x8_R50: BASE_LR 0.1, MAX_EPOCH 196, WARMUP_EPOCHS 34, WARMUP_START_LR 0.01, cosine."""

    def cosine(at: float) -> float:
        return 0.1 * (math.cos(math.pi * at / 196) + 1.0) * 0.5

    if epoch < 34:
        return 0.01 + epoch * (cosine(34) - 0.01) / 34
    return cosine(epoch)


@pytest.mark.parametrize("epoch", [0, 0.5, 10, 33.99, 34, 35.25, 98, 195.9])
def test_cosine_with_warm_up_is_pyslowfasts(epoch: float) -> None:
    ours = rate(epoch, lr=0.1, warmup_epochs=34, warmup_start_lr=0.01)
    assert ours == pytest.approx(pyslowfast_rate(epoch), abs=1e-12)


def test_cosine_falls_to_half_in_the_middle_and_to_zero_at_the_end() -> None:
    assert rate(5, epochs=10, lr=0.4) == pytest.approx(0.2)
    assert rate(10, epochs=10, lr=0.4) == pytest.approx(0.0, abs=1e-12)


def test_linear_falls_in_a_straight_line() -> None:
    assert [rate(e, epochs=10, lr=0.4, schedule="linear") for e in (0, 5, 10)] == pytest.approx([0.4, 0.2, 0])


def test_step_falls_at_each_milestone() -> None:
    at = {e: rate(e, epochs=150, lr=0.02, schedule="step", milestones=[90, 130]) for e in (0, 89.9, 90, 129.9, 130)}
    assert list(at.values()) == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002])
    assert rate(2, epochs=3, lr=0.8, schedule="step", milestones=[1, 2], gamma=0.5) == pytest.approx(0.2)


def test_constant_stays() -> None:
    assert rate(7, epochs=10, lr=0.3, schedule="constant") == 0.3


def test_linear_scaling_with_the_batch() -> None:
    """Goyal et al. 2017: 0.1 for 256 images becomes 0.4 for 1024; the warm-up starts where it was told to."""
    assert rate(0, lr=0.1, lr_for_batch=256, batch_size=1024) == pytest.approx(0.4)
    assert rate(0, lr=0.1, lr_for_batch=256, batch_size=1024, warmup_epochs=5, warmup_start_lr=0.1) == 0.1


def test_a_warm_up_never_starts_above_the_highest_rate() -> None:
    assert rate(0, lr=1e-4, warmup_epochs=2, warmup_start_lr=0.01) == 1e-4
    assert rate(0, lr=0.02, lr_for_batch=128, batch_size=32, warmup_epochs=2, warmup_start_lr=0.01) == 0.005


@pytest.mark.parametrize("path", sorted(shipped_configs().rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_warm_up_of_every_shipped_config_rises(path: Path) -> None:
    config = load_config(path)
    start, later = (
        learning_rate(config.optim, epoch=epoch, epochs=config.train.epochs, batch_size=config.train.batch_size)
        for epoch in (0, config.optim.warmup_epochs)
    )
    assert start < later or not config.optim.warmup_epochs


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(4, 2))


def test_all_parameters_decay_by_default(net: nn.Module) -> None:
    (group,) = parameter_groups(net.parameters(), OptimConfig(weight_decay=0.1))
    assert len(group["params"]) == 6
    assert group["weight_decay"] == 0.1


def test_norms_and_biases_can_be_spared_the_decay(net: nn.Module) -> None:
    optimizer = build_optimizer(net, OptimConfig(weight_decay=0.1, decay_norm_and_bias=False, lr=0.5, momentum=0.9))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        decayed = name in ("0.weight", "3.weight")
        # The first Nesterov step is lr x (1 + momentum) x gradient, here the decay's alone.
        expected = before[name] * (1 - 0.5 * 1.9 * 0.1) if decayed else before[name]
        torch.testing.assert_close(parameter, expected)


def updated(gradients: list[float], **values: Any) -> float:
    """A weight of 2.0 after a step with each of these gradients, at a rate of 0.1."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = build_optimizer(layer, OptimConfig(lr=0.1, **values))
    for gradient in gradients:
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    return layer.weight.item()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_sgd_by_hand(momentum: float, nesterov: bool) -> None:
    """Sutskever et al. 2013 in torch's form: v is m v + g, and w falls by lr x (g + m v) or, plainly, by lr x v."""
    weight, velocity = 2.0, 0.0
    for gradient in (1.0, -3.0, 2.0):
        velocity = momentum * velocity + gradient + 0.01 * weight
        weight -= 0.1 * (gradient + 0.01 * weight + momentum * velocity if nesterov else velocity)
    found = updated([1.0, -3.0, 2.0], momentum=momentum, nesterov=nesterov, weight_decay=0.01)
    assert found == pytest.approx(weight, rel=1e-6)


def test_adamw_by_hand() -> None:
    """Loshchilov and Hutter 2019, algorithm 2: the decay is apart from the gradient's moments."""
    weight, first, second = 2.0, 0.0, 0.0
    for step, gradient in enumerate((1.0, -3.0, 2.0), start=1):
        weight *= 1 - 0.1 * 0.05
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight -= 0.1 * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
    found = updated([1.0, -3.0, 2.0], optimizer="adamw", weight_decay=0.05)
    assert found == pytest.approx(weight, rel=1e-5)


def test_frozen_parameters_are_left_out(net: nn.Module) -> None:
    net[0].requires_grad_(False)
    (group,) = build_optimizer(net, OptimConfig()).param_groups
    assert len(group["params"]) == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_the_fused_update_is_the_plain_one(optimizer: Any, memory_format: torch.memory_format) -> None:
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        net = nn.Conv3d(3, 4, 2).to(memory_format=memory_format)
        update = build_optimizer(net, OptimConfig(optimizer=optimizer, fused=fused, lr=0.1, weight_decay=0.01))
        assert update.param_groups[0]["fused"] is fused
        for _ in range(3):
            update.zero_grad()
            net(torch.ones(2, 3, 4, 4, 4)).square().sum().backward()
            update.step()
        results.append([parameter.detach().clone() for parameter in net.parameters()])
    torch.testing.assert_close(results[0], results[1])


def test_an_own_optimizer_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_optim.py").write_text("import torch\n\nclass Plain(torch.optim.SGD):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    optim = OptimConfig(optimizer="my_optim:Plain", lr=0.5, weight_decay=0.1)
    optimizer = build_optimizer(nn.Linear(2, 2), optim)
    assert type(optimizer).__name__ == "Plain"
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.1)]
