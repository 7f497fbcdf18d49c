"""Our networks against pytorchvideo's ``create_resnet`` with the same weights."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from gcvideo.models import create_model

# How pytorchvideo's model hub builds the networks (pytorchvideo/models/hub/resnet.py).
HUB: dict[str, dict[str, Any]] = {
    "slow": {"stem_conv_kernel_size": (1, 7, 7)},
    "c2d": {
        "stem_conv_kernel_size": (1, 7, 7),
        "stage1_pool": nn.MaxPool3d,
        "stage_conv_a_kernel_size": ((1, 1, 1),) * 4,
    },
    "i3d": {
        "stem_conv_kernel_size": (5, 7, 7),
        "stage1_pool": nn.MaxPool3d,
        "stage_conv_a_kernel_size": (
            (3, 1, 1),
            [(3, 1, 1), (1, 1, 1)],
            [(3, 1, 1), (1, 1, 1)],
            [(1, 1, 1), (3, 1, 1)],
        ),
    },
}


def peer(arch: str, *, depth: int, width: int, classes: int, frames: int, size: int, **options: Any) -> nn.Module:
    from pytorchvideo.models.resnet import create_resnet

    pooled = frames if arch == "slow" else frames // 2
    return create_resnet(
        model_depth=depth,
        model_num_class=classes,
        stem_dim_out=width,
        head_pool_kernel_size=(pooled, size // 32, size // 32),
        **HUB[arch],
        **options,
    )


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """pytorchvideo's keys in our names: its blocks are numbered, with a pooling layer in between for C2D and I3D."""
    numbers = sorted({int(key.split(".")[1]) for key in state})
    names = dict(zip(numbers, ("stem", "res2", "res3", "res4", "res5", "head"), strict=True))
    return {
        re.sub(r"^blocks\.(\d+)\.(res_blocks\.)?", lambda m: f"{names[int(m[1])]}.", key): value
        for key, value in state.items()
    }


def randomise_norms(model: nn.Module) -> None:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm3d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)


@pytest.mark.parametrize(
    ("arch", "depth", "groups"), [("slow", 50, 1), ("c2d", 50, 1), ("i3d", 50, 1), ("slow", 101, 1), ("slow", 50, 4)]
)
def test_same_weights_give_the_same_logits_and_gradients(arch: str, depth: int, groups: int) -> None:
    torch.manual_seed(0)
    frames, size = 4, 64
    theirs = peer(
        arch, depth=depth, width=8, classes=7, frames=frames, size=size, stage_conv_b_num_groups=(groups,) * 4
    )
    randomise_norms(theirs)
    # ResNeXt's inner width is width / 64 times groups times width per group: the peer's when these multiply to 64.
    ours = create_model(f"{arch}_r{depth}", num_classes=7, width=8, groups=groups, width_per_group=64 // groups)
    ours.load_state_dict(renamed(theirs.state_dict()))
    theirs, ours = theirs.double().eval(), ours.double().eval()
    x = torch.randn(2, 3, frames, size, size, dtype=torch.float64)
    leaves = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    logits = [model(leaf) for model, leaf in zip((theirs, ours), leaves, strict=True)]
    assert logits[0].std() > 1e-3
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-10, atol=1e-12)
    for output in logits:
        output.pow(2).sum().backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-8, atol=1e-12)


def test_i3d_with_3x3x3_kernels() -> None:
    """The peer takes one kernel a stage for its 3 x 3 convolutions, so every block is inflated here."""
    torch.manual_seed(0)
    in_time, flat = (3, 3, 3), (1, 1, 1)
    theirs = peer("i3d", depth=50, width=8, classes=7, frames=4, size=64, stage_conv_b_kernel_size=(in_time,) * 4)
    # HUB's kernels of the first convolution give way to none in time.
    for module in theirs.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 1, 1):
            middle = nn.Parameter(module.weight[:, :, 1:2].detach().clone())
            module.weight, module.kernel_size, module.padding = middle, flat, (0, 0, 0)
    randomise_norms(theirs)
    kernels = {stage: [3] for stage in ("res2", "res3", "res4", "res5")}
    ours = create_model("i3d_r50", num_classes=7, width=8, inflation="3x3x3", temporal_kernels=kernels)
    ours.load_state_dict(renamed(theirs.state_dict()))
    x = torch.randn(2, 3, 4, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = theirs.double().eval()(x), ours.double().eval()(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_the_whole_slow_r50() -> None:
    """Full width, 400 classes, float32, on a small clip."""
    torch.manual_seed(0)
    theirs = peer("slow", depth=50, width=64, classes=400, frames=2, size=64)
    randomise_norms(theirs)
    ours = create_model("slow_r50")
    ours.load_state_dict(renamed(theirs.state_dict()))
    x = torch.randn(1, 3, 2, 64, 64)
    with torch.no_grad():
        expected, actual = theirs.eval()(x), ours.eval()(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_initialisation_has_the_peers_statistics() -> None:
    """The same law for every weight: He by fan-out, N(0, 0.01) in the head, zero in the last norm of each branch."""
    torch.manual_seed(0)
    theirs = renamed(peer("slow", depth=50, width=32, classes=50, frames=2, size=64).state_dict())
    ours = create_model("slow_r50", num_classes=50, width=32).state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.shape == theirs[key].shape, key
        if value.dim() > 1:
            assert value.std().item() == pytest.approx(theirs[key].std().item(), rel=0.1), key
        else:
            assert torch.equal(value, theirs[key]), key
