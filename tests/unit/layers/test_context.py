"""The three-step context block."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gcvideo.layers import BlockTrace, ContextBlock, gc_block, record_attention, se_block, snl_block
from gcvideo.layers.context import AttentionPool

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
POOLS = ("attention", "average")
TRANSFORMS = ("bottleneck", "squeeze", "linear")
FUSIONS = ("add", "scale", "scale_add")


def randomise(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Give every parameter a value that matters; fresh blocks hide behind zeros."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def clip(*shape: int, layout: str = "contiguous", dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=LAYOUTS[layout])


def reference_context_block(block: ContextBlock, x_NCTHW: Tensor) -> Tensor:
    """Context block in plain PyTorch: the definition of what ``block(x_NCTHW)`` computes, for reading and for tests."""
    x_NCP = x_NCTHW.flatten(2)
    if isinstance(block.pool, AttentionPool):
        attention_NP = torch.einsum("ncp,c->np", x_NCP, block.pool.weight[0]).softmax(1)
        context_NC = torch.einsum("ncp,np->nc", x_NCP, attention_NP)
    else:
        context_NC = x_NCP.mean(2)
    y_NCP = x_NCP
    if "scale" in block.transform:
        y_NCP = y_NCP * block.transform["scale"](context_NC).sigmoid().unsqueeze(2)
    if "add" in block.transform:
        y_NCP = y_NCP + block.transform["add"](context_NC).unsqueeze(2)
    return y_NCP.view_as(x_NCTHW)


def reference_pool(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The formulas, for autograd to differentiate."""
    attention = torch.einsum("nct,c->nt", x.flatten(2), weight[0]).softmax(1)
    return torch.einsum("nct,nt->nc", x.flatten(2), attention), attention


@pytest.mark.parametrize(("pool", "transform", "fusion"), list(itertools.product(POOLS, TRANSFORMS, FUSIONS)))
def test_gradients_of_the_whole_space(pool: str, transform: str, fusion: str) -> None:
    torch.manual_seed(0)
    block = randomise(ContextBlock(4, pool=pool, transform=transform, fusion=fusion, reduction=2).double())
    x = clip(2, 4, 2, 2, 1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *block.parameters()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("pool", "transform", "fusion"), list(itertools.product(POOLS, TRANSFORMS, FUSIONS)))
def test_the_fast_block_equals_the_reference(pool: str, transform: str, fusion: str, layout: str) -> None:
    torch.manual_seed(0)
    block = randomise(ContextBlock(6, pool=pool, transform=transform, fusion=fusion, reduction=2).double())
    x = clip(2, 6, 3, 2, 4, layout=layout, dtype=torch.float64).requires_grad_()
    outputs = block(x), reference_context_block(block, x)
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.pow(3).sum(), [x, *block.parameters()]) for y in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_pooling_in_closed_form(layout: str, batch: int) -> None:
    """Including the gradient of what is computed from the x that the pool returns."""
    weight = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = clip(batch, 5, 2, 3, 2, layout=layout, dtype=torch.float64)
    results = []
    pool = AttentionPool(5).double()
    for function in (lambda x: pool(x)[::2], lambda x: (reference_pool(x, pool.weight)[0], x)):
        pool.weight.data.copy_(weight)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        pooled, handed_on = function(leaf)
        assert handed_on.stride() == leaf.stride()
        (pooled.pow(3).sum() + handed_on.sin().sum()).backward()
        results.append((pooled.detach(), leaf.grad, pool.weight.grad))
        pool.weight.grad = None
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_the_backward_pass_writes_one_gradient_and_leaves_the_one_it_was_given() -> None:
    block = randomise(gc_block(8))
    x, dy = clip(2, 8, 4, 5, 5).requires_grad_(), clip(2, 8, 4, 5, 5, seed=1)
    y, given = block(x), dy.clone()
    written: set[int] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            written.update(t.data_ptr() for t in [result] if isinstance(t, Tensor) and t.numel() == x.numel())
            return result

    with Watch():
        y.backward(dy)
    assert x.grad is not None
    assert written - {x.data_ptr(), dy.data_ptr()} == {x.grad.data_ptr()}  # all else are views of x and dy
    assert torch.equal(dy, given)


def test_second_derivatives_are_refused() -> None:
    x = clip(1, 4, 2, 2, 2).requires_grad_()
    (first,) = torch.autograd.grad(AttentionPool(4)(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_low_precision_stays_close_in_both_layouts(layout: str, dtype: torch.dtype, batch: int) -> None:
    torch.manual_seed(0)
    block = randomise(gc_block(16).double(), std=0.2)
    x = clip(batch, 16, 3, 5, 4, layout=layout, dtype=torch.float64).to(dtype).double()
    expected, low = x.requires_grad_(), x.detach().to(dtype).requires_grad_()
    y = block(expected)
    y.pow(2).sum().backward()
    block = block.to(dtype)
    z = block(low)
    z.pow(2).sum().backward()
    assert z.dtype == dtype
    assert z.stride() == low.stride()
    assert low.grad is not None
    assert low.grad.stride() == low.stride()
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(z.double(), y, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(low.grad.double(), expected.grad, rtol=tolerance, atol=10 * tolerance)


def test_odd_memory_formats_are_read_rightly() -> None:
    pool = AttentionPool(4)
    base = clip(2, 8, 3, 4, 6)
    for x in (base[:, ::2], base[:, :4, :, :, ::2], base.transpose(3, 4)[:, :4], base[:1, :4].expand(2, 4, 3, 4, 6)):
        torch.testing.assert_close(pool(x)[0], reference_pool(x, pool.weight)[0], rtol=1e-5, atol=1e-5)


def test_pooling_keeps_only_its_input_and_the_weights_for_backward() -> None:
    x = clip(2, 8, 4, 5, 5).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        AttentionPool(8)(x)
    assert sorted(t.numel() for t in kept) == [8, 2 * 100, x.numel()]  # mask, weights, and x itself
    assert any(t.data_ptr() == x.data_ptr() for t in kept)


@pytest.mark.parametrize("make", [gc_block, snl_block])
def test_a_fresh_block_that_adds_changes_nothing(make: type) -> None:
    x = clip(2, 16, 2, 4, 4)
    assert torch.equal(make(16)(x), x)


@pytest.mark.parametrize("fusion", ["scale", "scale_add"])
def test_a_fresh_block_that_scales_halves_its_input(fusion: str) -> None:
    x = clip(2, 16, 2, 4, 4)
    assert torch.equal(ContextBlock(16, fusion=fusion)(x), x / 2)
    assert torch.equal(se_block(16)(x), x / 2)


def test_reset_restores_the_zeros_after_a_global_initialisation() -> None:
    block = randomise(ContextBlock(8, fusion="scale_add", reduction=2))
    block.reset_parameters()
    assert torch.equal(block(x := clip(1, 8, 2, 2, 2)), x / 2)
    assert block.pool.weight.abs().min() > 0


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [gc_block, snl_block, se_block])
def test_autocast(make: type, input_dtype: torch.dtype) -> None:
    block = randomise(make(8))
    if input_dtype == torch.float64:
        block = block.double()
    x = clip(2, 8, 2, 3, 3, dtype=input_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    y.float().sum().backward()
    assert y.dtype == input_dtype
    assert x.grad is not None
    assert x.grad.dtype == input_dtype
    torch.testing.assert_close(y.double(), block.double()(x.double()), rtol=0.05, atol=0.05)


def test_no_parameter_has_more_than_two_dimensions_and_the_mask_has_no_bias() -> None:
    for pool, transform, fusion in itertools.product(POOLS, TRANSFORMS, FUSIONS):
        block = ContextBlock(8, pool=pool, transform=transform, fusion=fusion).to(memory_format=torch.channels_last_3d)
        assert max(p.dim() for p in block.parameters()) <= 2
        assert "pool.bias" not in dict(block.named_parameters())


def test_published_block_sizes() -> None:
    """Closed forms: GC has C + 2 C p + 4 p + C parameters with p = C / r, SNL C + C^2 + C."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in (gc_block(512), snl_block(512))]
    assert sizes == [132480, 263168]


def test_transform_before_pooling_is_the_same_function() -> None:
    first, last = (ContextBlock(6, transform="linear", transform_first=flag).double() for flag in (True, False))
    randomise(first)
    last.load_state_dict(first.state_dict())
    x = clip(2, 6, 2, 3, 3, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(first(x), last(x))
    gradients = [torch.autograd.grad(block(x).pow(3).sum(), [x, *block.parameters()]) for block in (first, last)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("transform_first", [False, True])
def test_attention_comes_with_the_output(transform_first: bool) -> None:
    block = randomise(ContextBlock(6, transform="linear", transform_first=transform_first))
    x = clip(2, 6, 2, 3, 4)
    y, trace = block(x, return_attention=True)
    torch.testing.assert_close(y, block(x))
    assert trace.attention.shape == (2, 1, 2, 3, 4)
    torch.testing.assert_close(trace.attention.flatten(2)[:, 0], reference_pool(x, block.pool.weight)[1])
    torch.testing.assert_close(y - x, trace.output[:, :, None, None, None].expand_as(x), rtol=1e-5, atol=1e-5)
    assert not trace.attention.requires_grad
    if not transform_first:
        torch.testing.assert_close(trace.context, reference_pool(x, block.pool.weight)[0])


def test_average_pooling_has_no_attention_and_its_gate_is_traced() -> None:
    block = randomise(se_block(16))
    x = clip(2, 16, 2, 3, 3)
    y, trace = block(x, return_attention=True)
    assert trace.attention is None
    torch.testing.assert_close(trace.context, x.mean((2, 3, 4)))
    torch.testing.assert_close(y, x * trace.output[:, :, None, None, None])


def test_recording_a_model() -> None:
    model = nn.Sequential(randomise(gc_block(4)), nn.Conv3d(4, 4, 1), randomise(se_block(4)))
    x = clip(1, 4, 2, 2, 2)
    with record_attention(model) as traces:
        y = model(x)
    assert list(traces) == ["0", "2"]
    assert all(isinstance(trace, BlockTrace) for trace in traces.values())
    assert torch.equal(traces["0"].input, x)
    torch.testing.assert_close(y, model(x))  # and the blocks are themselves again
    assert "forward" not in vars(model[0])


def test_recording_ends_with_an_error_too() -> None:
    model = nn.Sequential(gc_block(4))
    with pytest.raises(RuntimeError), record_attention(model):
        model(torch.zeros(1, 3, 2, 2, 2))
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "max"}, "attention, average"),
        ({"transform": "conv"}, "bottleneck, squeeze, linear"),
        ({"fusion": "mul"}, "add, scale, scale_add"),
    ],
)
def test_unknown_choices_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextBlock(4, **arguments)


def test_a_bottleneck_without_its_relu_is_two_linear_maps() -> None:
    torch.manual_seed(0)
    block = randomise(ContextBlock(6, pool="average", layer_norm=False, relu=False, reduction=2).double())
    first, last = block.transform["add"]
    x = clip(3, 6, 2, 3, 3, dtype=torch.float64)
    hidden = first(x.mean((2, 3, 4)))
    assert (hidden < 0).any()
    torch.testing.assert_close(block(x) - x, last(hidden)[:, :, None, None, None].expand_as(x))
    block.reset_parameters()
    assert torch.equal(block(x), x)


def test_one_forward_pass_gives_output_and_trace() -> None:
    model = nn.Sequential(randomise(gc_block(4)))
    calls: list[str] = []
    for part in ("pool", "transform.add.fc1"):
        model[0].get_submodule(part).register_forward_hook(lambda *_, part=part: calls.append(part))
    with record_attention(model) as traces:
        model(clip(1, 4, 2, 2, 2))
    assert traces.keys() == {"0"}
    assert calls == ["pool", "transform.add.fc1"]


def test_a_narrow_block_keeps_one_hidden_channel() -> None:
    assert ContextBlock(8, reduction=16).transform["add"].fc1.out_features == 1
