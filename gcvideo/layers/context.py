"""The global context block in three steps: pool a context, transform it, fuse it with every position.

Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond" (ICCV workshops 2019,
arXiv 1904.11492), section 3.3, and its published 2D code (xvjiarui/GCNet, ``ContextBlock``)::

    x (N, C, T, H, W) --pool--> (N, C) --transform--> (N, C) --fuse with x--> y (N, C, T, H, W)

============  =========================================================================================
step          choices
============  =========================================================================================
pool          ``attention``: softmax-weighted sum over all positions; ``average``: their mean
transform     ``bottleneck``: C -> C/r, layer norm, ReLU, C/r -> C; ``squeeze``: the same without layer
              norm; ``linear``: C -> C
fusion        ``add``: x + t; ``scale``: x * sigmoid(t); ``scale_add``: both, each with its own transform
============  =========================================================================================

GC is attention + bottleneck + add, SNL attention + linear + add, SE average + squeeze + scale.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gcvideo.layers.trace import BlockTrace, TracedBlock


class ContextBlock(TracedBlock):
    """Global context of a clip, fused with each of its positions.

    The last layer of every transform starts at zero, as in the original code. A fresh block that adds therefore
    changes nothing at all, while one that scales starts by halving its input: sigmoid(0) = 1/2.

    No parameter has more than two dimensions, so that ``model.to(memory_format=torch.channels_last_3d)`` works. The
    mask has no bias, because a constant added to every logit cancels in the softmax.

    Args:
        channels: C, channels of input and output.
        pool: "attention" or "average".
        transform: "bottleneck", "squeeze" or "linear".
        fusion: "add", "scale" or "scale_add".
        reduction: r; the bottleneck has max(C // r, 1) channels.
        layer_norm: whether the bottleneck is normalised.
        relu: whether there is a ReLU between the two layers of the bottleneck or squeeze.
        eps: of the layer norm; 1e-5 in the original code, 1e-6 in timm's blocks.
        bias: whether the transform's linear layers have biases.
        transform_first: transform every position before pooling instead of the pooled vector after it. A linear
            transform commutes with pooling, so the result is the same at T * H * W times the cost: the form of
            equation 2 of the paper, kept to show what equation 3 saves. Needs transform "linear" and fusion "add".
    """

    def __init__(
        self,
        channels: int,
        *,
        pool: str = "attention",
        transform: str = "bottleneck",
        fusion: str = "add",
        reduction: int = 4,
        layer_norm: bool = True,
        relu: bool = True,
        eps: float = 1e-5,
        bias: bool = True,
        transform_first: bool = False,
    ) -> None:
        super().__init__()
        _check_choice("pool", pool, POOLS)
        _check_choice("transform", transform, ("bottleneck", "squeeze", "linear"))
        _check_choice("fusion", fusion, FUSED_TERMS)
        if transform_first and (pool, transform, fusion) != ("attention", "linear", "add"):
            raise ValueError(
                "transform_first needs attention pooling, a linear transform and add fusion, "
                f"not {pool!r}, {transform!r}, {fusion!r}"
            )
        hidden = max(channels // reduction, 1)
        self.pool = POOLS[pool](channels)
        self.transform = nn.ModuleDict()
        for term in FUSED_TERMS[fusion]:
            if transform == "linear":
                self.transform[term] = LinearTransform(channels, bias=bias)
            else:
                normalised = layer_norm and transform == "bottleneck"
                self.transform[term] = Bottleneck(
                    channels, hidden, layer_norm=normalised, relu=relu, eps=eps, bias=bias
                )
        self.fuse = Fusion()
        self.transform_first = transform_first

    def reset_parameters(self) -> None:
        """Initialise afresh, the last layer of each transform at zero. To be called after any global initialisation."""
        for module in self.modules():
            if isinstance(module, AttentionPool | LinearTransform | Bottleneck):
                module.reset_parameters()

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, BlockTrace]:
        """Fuse the context of each clip with its positions.

        Args:
            x: (N, C, T, H, W), contiguous or channels_last_3d.
            return_attention: also return what the block attended to and gathered.

        Returns:
            y (N, C, T, H, W) in the memory format of x, and with ``return_attention`` a ``BlockTrace``.
        """
        if self.transform_first:
            values = self.transform["add"](x.flatten(2).transpose(1, 2))  # (N, THW, C)
            context, attention, x = self.pool(x, values)  # (N, C), (N, THW), x
            terms = {"add": context}
        else:
            context, attention, x = self.pool(x)  # (N, C), (N, THW), x
            terms = {name: transform(context) for name, transform in self.transform.items()}  # each (N, C)
        y = self.fuse(x, **terms)
        if not return_attention:
            return y
        output = terms["add"] if "add" in terms else terms["scale"].sigmoid()
        grid = None if attention is None else attention.unflatten(1, (1, *x.shape[2:]))  # (N, 1, T, H, W)
        return y, BlockTrace(input=x, attention=grid, context=context, output=output)


def gc_block(channels: int, *, reduction: int = 4) -> ContextBlock:
    """The GC block (GCNet, figure 4d); ratio 4 is the paper's on Kinetics, 16 on images."""
    return ContextBlock(channels, pool="attention", transform="bottleneck", fusion="add", reduction=reduction)


def snl_block(channels: int) -> ContextBlock:
    """The simplified non-local block (GCNet, figure 4b, equation 3)."""
    return ContextBlock(channels, pool="attention", transform="linear", fusion="add")


def se_block(channels: int, *, reduction: int = 16) -> ContextBlock:
    """The squeeze-and-excitation block (Hu et al. 2018, as in GCNet, figure 4c)."""
    return ContextBlock(channels, pool="average", transform="squeeze", fusion="scale", reduction=reduction)


# ---------------------------------------------------------------- step 1: pool


class AttentionPool(nn.Module):
    """Global attention pooling: p = sum_j a_j x_j with a = softmax_j(w . x_j) over all T * H * W positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels))  # a 1 x 1 x 1 convolution to one mask, without bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation by fan-in, as in the original code."""
        nn.init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pool a clip.

        Args:
            x: (N, C, T, H, W).
            values: (N, THW, D) to be pooled in place of x, with the weights that x gives.

        Returns:
            the pooled vectors (N, C), or (N, D) with values; the weights (N, THW), which carry no gradient; and x
            itself. What goes on from this x rather than from the input sends its gradient back through the pool, which
            adds its own to it without another pass over memory.
        """
        dtype = _autocast_dtype(x)
        weight = self.weight.to(dtype)
        if values is None:
            pooled, attention, x = _AttentionPool.apply(x, weight)
            return pooled, attention, x
        logits = F.linear(x.to(dtype).flatten(2).transpose(1, 2), weight).squeeze(2)  # (N, THW)
        attention = logits.softmax(1, dtype=torch.promote_types(dtype, torch.float32)).to(values.dtype)
        return torch.bmm(attention.unsqueeze(1), values).squeeze(1), attention.detach(), x


class AveragePool(nn.Module):
    """Global average pooling, the squeeze of SE."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        """Mean over all positions of x (N, C, T, H, W): (N, C); no attention weights; and x itself."""
        return x.mean((2, 3, 4)), None, x


class _AttentionPool(torch.autograd.Function):
    """Attention pooling with its gradient in closed form.

    Left to autograd, this costs several more passes over x, and each rank-one product of the backward pass is written
    out and added up. Here the gradient of all that follows x comes back through the pool too, and both rank-one terms
    are added to it where it lies. Beside x only the N x THW weights are kept. With g = dL/dp::

        s_j = x_j . g       d_j = a_j (s_j - sum_k a_k s_k)       dL/dx_j += a_j g + d_j w       dL/dw = sum_j d_j x_j
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = x.to(weight.dtype)
        logits = _dot(z, weight[0])  # (N, P) with P = T * H * W
        attention = logits.softmax(1, dtype=torch.promote_types(z.dtype, torch.float32)).to(z.dtype)
        ctx.save_for_backward(z, weight, attention)
        ctx.mark_non_differentiable(attention)
        # Autograd would make a view of x, and for a single clip that view no longer looks like channels_last_3d.
        return _weighted_sum(z, attention), attention, x.detach()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: None, grad_x: Tensor
    ) -> tuple[Tensor, Tensor]:
        z, weight, a = ctx.saved_tensors  # type: ignore[attr-defined]
        s = _dot(z, grad.to(z.dtype))  # (N, P)
        d = a * (s - (a * s).sum(1, keepdim=True))  # (N, P), the gradient of the softmax
        grad_weight = _weighted_sum(z, d).sum(0, keepdim=True)
        dtype, grid = grad_x.dtype, (1, *grad_x.shape[2:])
        a, d = a.to(dtype).unflatten(1, grid), d.to(dtype).unflatten(1, grid)  # (N, 1, T, H, W)
        grad_x = torch.addcmul(grad_x, a, _per_channel(grad.to(dtype)))
        return grad_x.addcmul_(d, _per_channel(weight.to(dtype))), grad_weight


# Each product below is written for both memory formats, so that none copies x, and as the kind of matrix product that
# was fast on every processor measured: others of the same value cost up to 90 times as much for one batch size, number
# format or make of processor.


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def _dot(x: Tensor, vector: Tensor) -> Tensor:
    """Dot product of each position of x (N, C, T, H, W) with vector (C,) or (N, C): (N, P)."""
    tokens = x.flatten(2)  # (N, C, P)
    if not _is_channels_last(x):
        return torch.bmm(vector.expand(x.shape[0], -1).unsqueeze(1), tokens).squeeze(1)
    tokens = tokens.transpose(1, 2)  # (N, P, C)
    return tokens @ vector if vector.dim() == 1 else _dot_rows(tokens, vector)


def _weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Sum over the positions of x (N, C, T, H, W), each times its weight (N, P): (N, C)."""
    tokens = x.flatten(2)  # (N, C, P)
    if not _is_channels_last(x):
        return _dot_rows(tokens, weights)
    return torch.bmm(weights.unsqueeze(1), tokens.transpose(1, 2)).squeeze(1)


def _dot_rows(matrix: Tensor, vector: Tensor) -> Tensor:
    """Dot product of each row of matrix (N, A, B), whose rows lie in one piece, with vector (N, B): (N, A)."""
    if matrix.shape[0] == 1:
        return (matrix[0] @ vector[0]).unsqueeze(0)
    return torch.bmm(vector.unsqueeze(1), matrix.transpose(1, 2)).squeeze(1)


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """What autocast makes of the input of a convolution, for products inside a Function, which it would not reach."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # the meta device has no autocast
        return x.dtype
    return x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)


# ---------------------------------------------------------------- step 2: transform


class Bottleneck(nn.Sequential):
    """C -> C/r, layer norm, ReLU, C/r -> C on pooled vectors (N, C), the last layer starting at zero."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        layer_norm: bool = True,
        relu: bool = True,
        eps: float = 1e-5,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        if layer_norm:
            self.norm = nn.LayerNorm(hidden, eps=eps)
        if relu:
            self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, channels, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's defaults, then the last layer to zero."""
        self.fc1.reset_parameters()
        if hasattr(self, "norm"):
            self.norm.reset_parameters()
        _zero(self.fc2)


class LinearTransform(nn.Sequential):
    """C -> C on vectors (..., C), starting at zero."""

    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All zero."""
        _zero(self.fc)


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


# ---------------------------------------------------------------- step 3: fuse


class Fusion(nn.Module):
    """Give every position the transformed context: x * sigmoid(scale) + add, each term optional."""

    def forward(self, x: Tensor, scale: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        """Fuse (N, C) terms with x (N, C, T, H, W); the original code scales before it adds."""
        if scale is not None:
            x = x * _per_channel(scale.sigmoid())
        return x if add is None else x + _per_channel(add)


def _per_channel(vector: Tensor) -> Tensor:
    return vector[:, :, None, None, None]  # (N, C) -> (N, C, 1, 1, 1)


# ---------------------------------------------------------------- choices

POOLS: dict[str, type[AttentionPool | AveragePool]] = {"attention": AttentionPool, "average": AveragePool}
FUSED_TERMS: dict[str, tuple[str, ...]] = {"add": ("add",), "scale": ("scale",), "scale_add": ("scale", "add")}


def _check_choice(step: str, choice: str, choices: Iterable[str]) -> None:
    if choice not in choices:
        raise ValueError(f"{step} must be one of {', '.join(choices)}, not {choice!r}")
