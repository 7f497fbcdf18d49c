"""Our blocks against independent code: timm, torchvision, pytorchvideo, mmcv's written down, and formulas in NumPy."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gcvideo.layers import ContextBlock, NonLocalBlock, gc_block, se_block, snl_block
from gcvideo.layers.context import AttentionPool
from gcvideo.layers.non_local import INSTANTIATIONS
from tests.parity import formulas
from tests.parity.foreign import MmcvNonLocal2d, randomize_norms

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def randomise(module: nn.Module, std: float = 0.3) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double()


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def copy_bottleneck(ours: nn.Module, theirs: nn.Module) -> None:
    """timm's and torchvision's bottlenecks are 1 x 1 convolutions; ours are linear layers."""
    for mine, its in ((ours.fc1, theirs.fc1), (ours.fc2, theirs.fc2)):
        mine.weight.data.copy_(its.weight.flatten(1))
        mine.bias.data.copy_(its.bias)
    if hasattr(ours, "norm"):
        ours.norm.load_state_dict(theirs.norm.state_dict())


# ---------------------------------------------------------------- GC at T = 1 against timm


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("fusion", ["add", "scale", "scale_add"])
def test_gc_equals_timm_on_single_frames(fusion: str, attention: bool) -> None:
    """timm's ``gca`` is fusion "add", its ``gc`` is fusion "scale". It adds after scaling, as the original code does.

    timm's mask convolution has a bias and ours has none: equality shows that it is dead.
    """
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    add, scale = "add" in fusion, "scale" in fusion
    theirs = layers.GlobalContext(12, use_attn=attention, fuse_add=add, fuse_scale=scale, rd_ratio=0.25)
    randomise(theirs)
    pool = "attention" if attention else "average"
    ours = ContextBlock(12, pool=pool, fusion=fusion, reduction=4, eps=1e-6).double()  # timm's LayerNorm2d
    if attention:
        assert theirs.conv_attn.bias.abs().item() > 0
        ours.pool.weight.data.copy_(theirs.conv_attn.weight.flatten(1))
    for term, mlp in (("add", theirs.mlp_add), ("scale", theirs.mlp_scale)):
        if mlp is not None:
            copy_bottleneck(ours.transform[term], mlp)
    x = clip(3, 12, 1, 5, 7).requires_grad_()
    y, expected = ours(x), theirs(x.squeeze(2))
    torch.testing.assert_close(y.squeeze(2), expected, **EXACT)
    weights = clip(*y.shape, seed=1)
    gradients = [torch.autograd.grad((out * w).sum(), x)[0] for out, w in ((y, weights), (expected, weights[:, :, 0]))]
    torch.testing.assert_close(gradients[0], gradients[1], **EXACT)


# ---------------------------------------------------------------- all blocks against the formulas, in NumPy


def as_numpy(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=["plain", "last"])
@pytest.mark.parametrize("shape", [(1, 8, 4, 3, 5), (3, 8, 2, 2, 3)], ids=["one clip", "three"])
@pytest.mark.parametrize(
    "make",
    [
        partial(gc_block, reduction=2),
        snl_block,
        partial(se_block, reduction=4),
        partial(ContextBlock, fusion="scale_add"),
    ],
    ids=["gc", "snl", "se", "gc scale_add"],
)
def test_context_blocks_equal_their_formulas(
    make: Callable[[int], ContextBlock], shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    block, x = randomise(make(8)), clip(*shape).contiguous(memory_format=memory_format)
    expected = formulas.context_block(x.numpy(), as_numpy(block))
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("subsample", ["none", "before", "after"])
@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_non_local_blocks_equal_their_formulas(kind: str, subsample: str, norm: bool) -> None:
    """Without a norm, the logits are not divided by the square root of their width: the form of the paper's text."""
    torch.manual_seed(0)
    block = NonLocalBlock(4, instantiation=kind, subsample=subsample, norm=norm, scale=norm)
    block = randomize_norms(randomise(block, std=0.7)).eval()
    x = clip(2, 4, 2, 2, 3)
    expected = formulas.non_local(x.numpy(), as_numpy(block), kind=kind, subsample=subsample, scale=norm)
    for output in (block(x), block(x, return_attention=True)[0]):
        np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(bias=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_a_mask_bias_would_change_nothing(bias: float, seed: int) -> None:
    """Softmax is invariant to a constant, so the bias of the original mask convolution can be dropped."""
    pool = AttentionPool(4).double()
    x = clip(2, 4, 2, 2, 2, seed=seed)
    logits = torch.einsum("ncp,c->np", x.flatten(2), pool.weight[0]) + bias
    expected = torch.einsum("ncp,np->nc", x.flatten(2), logits.softmax(1))
    torch.testing.assert_close(pool(x)[0], expected, **EXACT)


# ---------------------------------------------------------------- SNL is NL with one map for all queries


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    frames=st.integers(1, 4),
    size=st.integers(1, 4),
    channels=st.sampled_from([2, 4, 6]),
)
def test_snl_equals_nl_when_every_query_shares_one_map(
    seed: int, batch: int, frames: int, size: int, channels: int
) -> None:
    """GCNet, section 3.2. With theta constant over positions, q_i = b, NL's map is softmax_j(b . phi(x_j) / sqrt(d)).

    That is attention pooling with w = phi.weight' b / sqrt(d), and W_z g is one linear transform of the pooled vector.
    """
    torch.manual_seed(seed)
    nl = randomise(NonLocalBlock(channels, subsample="none", norm=False), std=0.7)
    nl.theta.weight.data.zero_()
    snl = snl_block(channels).double()
    snl.pool.weight.data.copy_(nl.theta.bias @ nl.phi.weight * nl.scale)
    snl.transform["add"].fc.weight.data.copy_(nl.out.weight @ nl.g.weight)
    snl.transform["add"].fc.bias.data.copy_(nl.out.weight @ nl.g.bias + nl.out.bias)
    x = clip(batch, channels, frames, size, size, seed=seed)
    torch.testing.assert_close(snl(x), nl(x), **EXACT)
    shared = nl(x, return_attention=True)[1].attention
    torch.testing.assert_close(shared, snl(x, return_attention=True)[1].attention.expand_as(shared), **EXACT)


# ---------------------------------------------------------------- SE against torchvision


def test_se_equals_torchvision() -> None:
    misc = pytest.importorskip("torchvision.ops.misc")
    torch.manual_seed(0)
    theirs = randomise(misc.SqueezeExcitation(16, 4))
    ours = se_block(16, reduction=4).double()
    copy_bottleneck(ours.transform["scale"], theirs)
    frames = clip(3, 16, 5, 6)
    torch.testing.assert_close(ours(frames.unsqueeze(2)).squeeze(2), theirs(frames), **EXACT)
    # A clip is one large image: averages do not care how positions are arranged.
    torch.testing.assert_close(ours(frames.unflatten(2, (5, 1))).flatten(2, 3), theirs(frames), **EXACT)


# ---------------------------------------------------------------- NL against pytorchvideo


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("pool", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kind", ["embedded_gaussian", "dot_product"])
def test_nl_equals_pytorchvideo(
    kind: str, norm: bool, pool: tuple[int, int, int], memory_format: torch.memory_format
) -> None:
    from pytorchvideo.layers.nonlocal_net import create_nonlocal

    torch.manual_seed(0)
    theirs = create_nonlocal(
        dim_in=8,
        dim_inner=4,
        pool_size=pool,
        instantiation="softmax" if kind == "embedded_gaussian" else "dot_product",
        norm=nn.BatchNorm3d if norm else None,
    )
    randomise(theirs, std=0.7)
    ours = NonLocalBlock(8, instantiation=kind, subsample="none" if pool[1] == 1 else "before", norm=norm).double()
    for mine in ("theta", "phi", "g", "out"):
        its = getattr(theirs, f"conv_{mine}")
        getattr(ours, mine).weight.data.copy_(its.weight.flatten(1))
        getattr(ours, mine).bias.data.copy_(its.bias)
    if norm:
        ours.norm.load_state_dict(theirs.norm.state_dict())
    x = clip(2, 8, 3, 4, 6)
    leaves = [x.clone().requires_grad_(), x.contiguous(memory_format=memory_format).requires_grad_()]
    outputs = [block(leaf) for block, leaf in zip((theirs, ours), leaves, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], **EXACT)
    for output in outputs:
        output.pow(3).sum().backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(ours.eval()(leaves[1]), theirs.eval()(leaves[0]), **EXACT)


# ---------------------------------------------------------------- NL at T = 1 against mmcv's NonLocal2d


@pytest.mark.parametrize("sub_sample", [False, True], ids=["all keys", "sub_sample"])
@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_nl_equals_mmcv_on_single_frames(kind: str, sub_sample: bool) -> None:
    """Written from mmcv's source, which needs OpenCV to be imported; compared with mmcv-lite 2.2.0 itself once."""
    torch.manual_seed(0)
    theirs = randomise(MmcvNonLocal2d(8, kind, sub_sample=sub_sample), std=0.5)
    scaled = kind == "embedded_gaussian"  # mmcv never divides the logits of the plain gaussian
    subsample = "after" if sub_sample else "none"
    ours = NonLocalBlock(8, instantiation=kind, subsample=subsample, norm=False, scale=scaled).double()
    for name in ("theta", "phi", "g", "out") if kind != "gaussian" else ("g", "out"):
        getattr(ours, name).weight.data.copy_(getattr(theirs, name).weight.flatten(1))
        getattr(ours, name).bias.data.copy_(getattr(theirs, name).bias)
    if kind == "concatenation":
        ours.concat.weight.data.copy_(theirs.concat_project.weight.flatten(1))
    frames = clip(2, 8, 4, 6)
    torch.testing.assert_close(ours(frames.unsqueeze(2)).squeeze(2), theirs(frames), **EXACT)
