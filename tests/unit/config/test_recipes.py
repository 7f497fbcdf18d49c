"""Each recipe of the trainer by its arithmetic, on networks small enough to do it by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gcvideo import device as runtime
from gcvideo.data.dataset import ClipBatch
from gcvideo.errors import ConfigError
from gcvideo.models.resnet3d import build_model
from gcvideo.train.batch_norm import measure_batch_norms, split_batch_norms, synchronize_batch_norms
from gcvideo.train.optimizer import freeze, frozen_parts
from gcvideo.train.step import TrainStep, build_loss
from gcvideo.train.trainer import Trainer
from tests.training import same_tensors, train_config

CPU = torch.device("cpu")


def batch(seed: int = 0, clips: int = 4) -> ClipBatch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (clips, 3, 4, 32, 32), dtype=torch.uint8, generator=generator)
    return ClipBatch(pixels, torch.arange(clips) % 4, torch.arange(clips), [])


def learner(tmp_path: Path, **sections: Any) -> TrainStep:
    return TrainStep(train_config(tmp_path, **sections), CPU)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


# --- averaged weights ------------------------------------------------------------------------------------------------


def test_averaged_weights_follow_the_formula(tmp_path: Path) -> None:
    """After the first step they are the network's; from then on decay x average + (1 - decay) x network."""
    learning = learner(tmp_path, train={"ema": 0.75})
    learning.train_mode()
    expected: dict[str, torch.Tensor] = {}
    for step in range(3):
        learning.step(iter([batch(step)]), number=step, lr=0.1)
        now = weights(learning.network)
        expected = {name: 0.75 * expected.get(name, now[name]) + 0.25 * now[name] for name in now}
    averaged = weights(learning.tested_network)
    assert not torch.equal(averaged["head.proj.weight"], weights(learning.network)["head.proj.weight"])
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value)
    for name, buffer in learning.tested_network.named_buffers():
        assert torch.equal(buffer, learning.network.get_buffer(name)), name


def test_averaged_weights_are_what_a_checkpoint_offers_to_test(tmp_path: Path) -> None:
    learning = learner(tmp_path, train={"ema": 0.5})
    for step in range(2):
        learning.step(iter([batch(step)]), number=step, lr=0.1)
    state = learning.state_dict()
    assert torch.equal(state["model"]["head.proj.weight"], learning.tested_network.state_dict()["head.proj.weight"])
    assert torch.equal(state["raw_model"]["head.proj.weight"], learning.network.state_dict()["head.proj.weight"])
    again = learner(tmp_path, train={"ema": 0.5})
    again.load_state_dict(state)
    for other in (learning, again):
        other.step(iter([batch(2)]), number=2, lr=0.1)
    for name, value in weights(learning.tested_network).items():
        assert torch.equal(weights(again.tested_network)[name], value), name


# --- how the step is run ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compilation_is_a_switch(tmp_path: Path) -> None:
    compiled = [
        learner(tmp_path, train={"compile": on}).network._compiled_call_impl is not None for on in (True, False)
    ]
    assert compiled == [True, False]


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_layout_is_a_switch(tmp_path: Path, channels_last: bool) -> None:
    learning = learner(tmp_path, train={"channels_last": channels_last})
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    assert learning.network.stem.conv.weight.is_contiguous(memory_format=layout)
    assert learning.prepare(batch().clips).is_contiguous(memory_format=layout)


def test_bf16_runs_the_network_in_bf16_and_keeps_weights_and_loss_in_fp32(tmp_path: Path) -> None:
    learning = learner(tmp_path, train={"precision": "bf16"}, data={"crop": 96, "short_side": [96, 96]})
    seen: list[torch.dtype] = []
    learning.network.stem.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    loss, _ = learning._forward(*learning._inputs(batch())[:2])
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert {parameter.dtype for parameter in learning.network.parameters()} == {torch.float32}
    assert learning.network.stem.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert learning.prepare(batch().clips).is_contiguous(memory_format=torch.channels_last_3d)


def test_clips_are_normalised_with_the_mean_and_deviation_of_the_config(tmp_path: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    prepared = learner(tmp_path, data={"mean": list(mean), "std": list(std)}).prepare(batch().clips)
    shape = (1, 3, 1, 1, 1)
    expected = (batch().clips / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    torch.testing.assert_close(prepared, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_drawn_from_the_seed(tmp_path: Path) -> None:
    config = train_config(tmp_path, seed=3)
    network = TrainStep(config, CPU).network
    torch.manual_seed(3)
    assert same_tensors(network.state_dict(), build_model(config.model).state_dict())


def test_draws_of_a_step_follow_from_seed_step_and_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, drop-path and mixing draw from torch's generator, as this hook does."""
    monkeypatch.setenv("RANK", "1")
    learning = learner(tmp_path, seed=3)
    drawn: list[torch.Tensor] = []
    learning.network.register_forward_pre_hook(lambda *_: drawn.append(torch.rand(4)))
    learning.step(iter([batch()]), number=5, lr=0.1)
    runtime.seed_step(3, 5, 1)
    assert torch.equal(drawn[0], torch.rand(4))


# --- the loss --------------------------------------------------------------------------------------------------------


def test_label_smoothing_is_szegedys(tmp_path: Path) -> None:
    """Targets are (1 - s) for the label plus s / K for every class (Szegedy et al. 2016, section 7)."""
    learning = learner(tmp_path, train={"label_smoothing": 0.2})
    learning.model.eval()
    loss, logits = learning._forward(*learning._inputs(batch())[:2])
    targets = 0.8 * F.one_hot(batch().labels, 4) + 0.2 / 4
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_clips_are_paid_for_by_their_shares(tmp_path: Path, kind: str) -> None:
    learning = learner(tmp_path, data={"augment": {kind: 1.0}})
    learning.model.eval()
    torch.manual_seed(3)
    loss, logits = learning._forward(*learning._inputs(batch())[:2])
    assert learning.mixer is not None
    torch.manual_seed(3)
    clips, targets = learning.mixer(learning.prepare(batch().clips), batch().labels)
    assert (targets > 0).sum() > len(targets)  # something was mixed
    torch.testing.assert_close(logits, learning.model(clips))
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean())


def test_clipped_gradients_have_the_norm_that_was_asked_for(tmp_path: Path) -> None:
    learning = learner(tmp_path, optim={"clip_grad_norm": 0.01})
    norms: list[torch.Tensor] = []

    def look(*_: Any) -> None:
        gradients = [p.grad.flatten() for p in learning.network.parameters() if p.grad is not None]
        norms.append(torch.cat(gradients).norm())

    learning.optimizer.register_step_pre_hook(look)
    learning.step(iter([batch()]), number=0, lr=0.1)
    assert norms[0].item() == pytest.approx(0.01, rel=1e-3)
    assert learning.meter.read()["grad_norm"] > 0.01  # what is reported is the norm before


# --- loss ------------------------------------------------------------------------------------------------------------


def loss_of(tmp_path: Path, **train: Any) -> Any:
    config = train_config(tmp_path, train=train)
    return build_loss(config, labels=[0, 0, 0, 1, 1, 2], device=CPU)  # of the classes 0 to 3


@pytest.mark.parametrize("mixed", [False, True])
def test_weighted_and_focal_losses_follow_their_formulas(tmp_path: Path, mixed: bool) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 4), torch.tensor([0, 1, 2, 2, 0])
    shares = F.one_hot(targets, 4).float()
    if mixed:
        targets = shares = 0.7 * shares + 0.3 * shares.roll(1, 0)
    weights = torch.tensor([6 / 9, 6 / 6, 6 / 3, 0])
    weighted = loss_of(tmp_path, class_weights="balanced", label_smoothing=0.1)(logits, targets)
    torch.testing.assert_close(weighted, F.cross_entropy(logits, shares, weight=weights, label_smoothing=0.1))
    p = logits.softmax(1)
    focal = loss_of(tmp_path, focal=2.0)(logits, targets)
    torch.testing.assert_close(focal, -(shares * (1 - p) ** 2 * p.log()).sum() / 5)
    both = loss_of(tmp_path, class_weights="balanced", focal=2.0)(logits, targets)
    torch.testing.assert_close(both, -(weights * shares * (1 - p) ** 2 * p.log()).sum() / 5)


def test_the_focal_loss_has_gradients_where_a_class_is_certain(tmp_path: Path) -> None:
    logits = torch.tensor([[200.0, 0, 0, 0], [0, 200.0, 0, 0]], requires_grad=True)
    loss_of(tmp_path, focal=0.5)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1, 0] == pytest.approx(-0.5)


@pytest.mark.parametrize("train", [{"class_weights": "balanced"}, {"focal": 2.0}, {"label_smoothing": 0.1}])
def test_what_belongs_to_cross_entropy_is_refused_with_another_loss(tmp_path: Path, train: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"train\.{next(iter(train))}: belongs to cross entropy"):
        train_config(tmp_path, train={**train, "loss": "my_loss:Loss"})
    with pytest.raises(ConfigError, match="belongs to cross entropy"):
        Trainer(train_config(tmp_path, train=train), loss=nn.CrossEntropyLoss())


# --- freezing --------------------------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_one_fixed_function(tmp_path: Path) -> None:
    learning = learner(tmp_path, train={"freeze": ["backbone"]}, model={"drop_path": 0.5})
    before = {name: tensor.clone() for name, tensor in learning.network.state_dict().items()}
    learning.train_mode()
    learning.step(iter([batch()]), number=0, lr=0.1)
    for name, tensor in learning.network.state_dict().items():  # the statistics of batch norms as well
        assert torch.equal(tensor, before[name]) != name.startswith("head."), name
    assert sum(len(group["params"]) for group in learning.optimizer.param_groups) == 2


def test_a_backbone_that_is_frozen_at_first_is_trained_from_its_epoch_on_also_after_a_resume(tmp_path: Path) -> None:
    both = [learner(tmp_path, train={"freeze": ["backbone"], "freeze_epochs": 1}) for _ in range(2)]
    before = {name: tensor.clone() for name, tensor in both[0].network.state_dict().items()}
    both[0].train_mode(epoch=0)
    both[0].step(iter([batch()]), number=0, lr=0.1)
    for name, tensor in both[0].network.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("head."), name
    both[1].load_state_dict(copy.deepcopy(both[0].state_dict()))
    for learning in both:
        learning.train_mode(epoch=1)
        learning.step(iter([batch(1)]), number=1, lr=0.1)
    for name in ("stem.norm.running_mean", "stem.conv.weight"):
        assert not torch.equal(both[0].network.state_dict()[name], before[name])
    for one, other in zip(*(learning.network.named_parameters() for learning in both), strict=True):
        assert torch.equal(one[1], other[1]), one[0]


def test_stages_can_be_frozen_by_name(tmp_path: Path) -> None:
    network = build_model(train_config(tmp_path).model)
    freeze(network, ["stem", "res2", "res3.0"])
    network.train()
    for part in frozen_parts(network, ["stem", "res2", "res3.0"]):
        part.eval()
    frozen = {".".join(name.split(".")[:2]) for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"stem.conv", "stem.norm", "res2.0", "res2.1", "res3.0"}
    assert not network.stem.training
    assert network.res3[1].training


# --- batch norms -----------------------------------------------------------------------------------------------------


def test_precise_batch_norm_is_the_mean_and_variance_of_all_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm3d(3), nn.Dropout(0.9), nn.BatchNorm3d(3)).train()
    clips = [torch.randn(2, 3, 2, 4, 4) * scale + scale for scale in (1.0, 2.0, 3.0)]
    buffer = network[0].running_mean
    measure_batch_norms(network, clips, 3)
    everything = torch.cat(clips).transpose(0, 1).flatten(1)  # (C, values)
    torch.testing.assert_close(network[0].running_mean, everything.mean(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network[0].running_var, everything.var(dim=1, unbiased=False), rtol=1e-4, atol=1e-4)
    assert network[0].running_mean is buffer  # DistributedDataParallel holds on to the buffers
    assert network[1].training
    torch.testing.assert_close(network[2].running_mean, torch.zeros(3), rtol=0, atol=1e-4)  # dropout was off


def test_precise_batch_norm_measures_all_parts_of_a_batch() -> None:
    """In an epoch of the long cycle of multigrid, whose batch norms measure parts."""
    network = nn.Sequential(nn.BatchNorm3d(2))
    split_batch_norms(network, 2)
    clips = torch.cat([torch.zeros(2, 2, 2, 4, 4), torch.full((2, 2, 2, 4, 4), 10.0)])
    measure_batch_norms(network, [clips, clips], 2)
    torch.testing.assert_close(network[0].running_mean, torch.full((2,), 5.0))
    torch.testing.assert_close(network[0].running_var, torch.full((2,), 25.0), rtol=0.01, atol=0)
    assert network[0].splits == 1


def test_frozen_batch_norms_keep_their_statistics() -> None:
    network = nn.Sequential(nn.BatchNorm3d(3).requires_grad_(False), nn.BatchNorm3d(3))
    measure_batch_norms(network, [torch.randn(2, 3, 2, 4, 4) + 5], 1)
    assert torch.equal(network[0].running_mean, torch.zeros(3))
    assert network[1].running_mean.mean() > 4


def test_shared_batch_norms_need_processes_that_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.BatchNorm3d(3))
    assert synchronize_batch_norms(network, 0, CPU) is network  # one process shares with itself
    with pytest.raises(ConfigError, match="groups of 2; here are 1 processes on cpu"):
        synchronize_batch_norms(network, 2, CPU)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert synchronize_batch_norms(network, 1, CPU) is network
    with pytest.raises(ConfigError, match="groups of 3; here are 4 processes on cpu"):
        synchronize_batch_norms(network, 3, CPU)
    with pytest.raises(ConfigError, match="needs GPUs"):
        synchronize_batch_norms(network, 2, CPU)


def test_batch_norms_are_synchronized_within_groups_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch is asked for; torch computes it on GPUs only."""
    groups: list[int] = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(
        torch.distributed, "new_subgroups", lambda *, group_size: (groups.append(group_size), ("group", None))[1]
    )
    network = nn.Sequential(nn.BatchNorm3d(3))
    weight = network[0].weight
    found = synchronize_batch_norms(network, 2, torch.device("cuda"))
    assert isinstance(found[0], nn.SyncBatchNorm)
    assert (groups, found[0].process_group) == ([2], "group")
    assert found[0].weight is weight
