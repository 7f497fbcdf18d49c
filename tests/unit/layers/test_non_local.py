"""The pairwise block."""

import pytest
import torch
from torch import Tensor, nn

from gcvideo.layers import NonLocalBlock, record_attention
from gcvideo.layers.non_local import INSTANTIATIONS

SUBSAMPLES = ("none", "before", "after")


def randomise(module: nn.Module, std: float = 0.5) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def clip(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("subsample", SUBSAMPLES)
@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_gradients(kind: str, subsample: str) -> None:
    torch.manual_seed(0)
    block = randomise(NonLocalBlock(4, instantiation=kind, subsample=subsample).double())
    x = clip(2, 4, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *block.parameters()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("subsample", SUBSAMPLES)
@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_the_matrix_free_forms_equal_the_matrix(kind: str, subsample: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    block = randomise(NonLocalBlock(6, instantiation=kind, subsample=subsample).double()).eval()
    x = clip(2, 6, 2, 4, 5).contiguous(memory_format=layout)
    y, trace = block(x, return_attention=True)
    torch.testing.assert_close(block(x), y, rtol=1e-10, atol=1e-10)
    assert y.stride() == x.stride()
    keys = (4, 5) if subsample == "none" else (2, 2)
    assert trace.attention.shape == (2, 40, 2, *keys)
    assert trace.context.shape == (2, 3, 2, 4, 5)
    torch.testing.assert_close(x + trace.output, y)
    if "gaussian" in kind:
        torch.testing.assert_close(trace.attention.sum((2, 3, 4)), torch.ones(2, 40, dtype=torch.float64))


@pytest.mark.parametrize("subsample", SUBSAMPLES)
@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_no_matrix_of_all_pairs_is_kept(kind: str, subsample: str) -> None:
    """What the forward pass saves grows linearly with the number of positions."""

    def saved(size: int) -> int:
        block = NonLocalBlock(4, instantiation=kind, subsample=subsample)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = clip(1, 4, 2, size, size, dtype=torch.float32).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            alive = block(x)  # keeps storages apart while they are counted
        assert alive.requires_grad
        return sum(kept.values())

    small, large = saved(8), saved(32)  # 16 times the positions, 256 times the pairs
    assert large < 18 * small


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kind", INSTANTIATIONS)
def test_a_fresh_block_changes_nothing(kind: str, norm: bool) -> None:
    block = NonLocalBlock(8, instantiation=kind, norm=norm)
    x = clip(2, 8, 2, 4, 4, dtype=torch.float32)
    assert torch.equal(block(x), x)
    randomise(block).reset_parameters()
    assert torch.equal(block.eval()(x), x)


def test_logits_are_divided_by_the_root_of_their_width() -> None:
    x = clip(1, 8, 1, 2, 2)
    for kind, width in (("embedded_gaussian", 4), ("gaussian", 8)):
        torch.manual_seed(0)
        block = randomise(NonLocalBlock(8, instantiation=kind, subsample="none").double())
        tokens = x.flatten(2).transpose(1, 2)
        q = tokens if block.theta is None else block.theta(tokens)
        k = tokens if block.phi is None else block.phi(tokens)
        expected = (q @ k.transpose(1, 2) / width**0.5).softmax(2)
        torch.testing.assert_close(block(x, return_attention=True)[1].attention.flatten(2), expected)
        plain = NonLocalBlock(8, instantiation=kind, subsample="none", scale=False).double()
        plain.load_state_dict(block.state_dict())
        expected = (q @ k.transpose(1, 2)).softmax(2)
        torch.testing.assert_close(plain(x, return_attention=True)[1].attention.flatten(2), expected)


def test_subsampling_before_and_after_are_different_functions_of_the_same_weights() -> None:
    before, after = (NonLocalBlock(4, subsample=where).double().eval() for where in ("before", "after"))
    after.load_state_dict(randomise(before).state_dict())
    x = clip(1, 4, 2, 4, 4)
    assert not torch.allclose(before(x), after(x))


@pytest.mark.parametrize("kind", INSTANTIATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_low_precision(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = randomise(NonLocalBlock(8, instantiation=kind), std=0.3).eval()
    x = clip(2, 8, 2, 4, 4, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    y.float().sum().backward()
    assert y.dtype == dtype
    expected = block(x.detach().float())
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(block.to(torch.bfloat16)(x.detach().bfloat16()).float(), expected, rtol=0.1, atol=0.15)


def test_published_block_sizes() -> None:
    """4 C d + 3 d + C parameters with d = C / 2, and 2 C of the batch norm."""
    c, d = 512, 256
    sizes = [sum(p.numel() for p in NonLocalBlock(c, norm=norm).parameters()) for norm in (True, False)]
    assert sizes == [4 * c * d + 3 * d + 3 * c, 4 * c * d + 3 * d + c]


def test_recording() -> None:
    model = nn.Sequential(NonLocalBlock(4, subsample="none"))
    calls: list[str] = []
    for part in ("theta", "phi", "g", "out"):
        model[0].get_submodule(part).register_forward_hook(lambda *_, part=part: calls.append(part))
    with record_attention(model) as traces:
        model(clip(1, 4, 1, 2, 3, dtype=torch.float32))
    assert sorted(calls) == ["g", "out", "phi", "theta"]  # one forward pass, no second
    assert traces["0"].attention.shape == (1, 6, 1, 2, 3)


@pytest.mark.parametrize("arguments", [{"instantiation": "cosine"}, {"subsample": "both"}])
def test_unknown_choices_are_named(arguments: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        NonLocalBlock(4, **arguments)
