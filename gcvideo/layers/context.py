"""Global context block in three steps: pool a context, transform it, fuse it with every position.

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

``reference_context_block`` in tests/unit/layers/test_context.py states the block in a few lines of plain PyTorch;
``ContextBlock`` computes the same, faster and in less memory. Names of tensors end in their shape: N clips, C channels,
T frames, H x W pixels, P = T * H * W positions.
"""

from collections import OrderedDict
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gcvideo.device import casts_inside
from gcvideo.layers.trace import BlockTrace, TracedBlock, check_choice

# The transformed terms of each fusion, in the order in which they are fused.
FUSED_TERMS: dict[str, tuple[str, ...]] = {"add": ("add",), "scale": ("scale",), "scale_add": ("scale", "add")}


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
        layer_norm: layer norm in the bottleneck.
        relu: ReLU between the two layers of the bottleneck or squeeze.
        eps: of the layer norm; 1e-5 in the original code, 1e-6 in timm's blocks.
        bias: biases in the transform's linear layers.
        transform_first: transform every position before pooling instead of the pooled vector after it. A linear
            transform commutes with pooling, so the result is the same at T * H * W times the cost: the form of
            equation 2 of the paper, kept to show what equation 3 saves. Only for the pool, transform and fusion of SNL.

    Raises:
        ValueError: an unknown choice.
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
        check_choice("pool", pool, ("attention", "average"))
        check_choice("transform", transform, ("bottleneck", "squeeze", "linear"))
        check_choice("fusion", fusion, FUSED_TERMS)
        self.pool = AttentionPool(channels) if pool == "attention" else AveragePool()
        self.transform = nn.ModuleDict()
        self.transform_first = transform_first
        hidden = max(channels // reduction, 1)
        for term in FUSED_TERMS[fusion]:
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if transform == "linear":
                layers["fc"] = nn.Linear(channels, channels, bias=bias)
            else:
                layers["fc1"] = nn.Linear(channels, hidden, bias=bias)
                if layer_norm and transform == "bottleneck":
                    layers["norm"] = nn.LayerNorm(hidden, eps=eps)
                if relu:
                    layers["relu"] = nn.ReLU()
                layers["fc2"] = nn.Linear(hidden, channels, bias=bias)
            self.transform[term] = nn.Sequential(layers)
            _reset_transform(self.transform[term])

    def reset_parameters(self) -> None:
        """Initialise again, the last layer of each transform at zero. Call it after any global initialisation."""
        if isinstance(self.pool, AttentionPool):
            self.pool.reset_parameters()
        for transform in self.transform.values():
            _reset_transform(transform)

    def forward(self, x_NCTHW: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, BlockTrace]:
        """Fuse the context of each clip with its positions.

        Args:
            x_NCTHW: (N, C, T, H, W), contiguous or channels_last_3d.
            return_attention: also return what the block attended to and gathered.

        Returns:
            y (N, C, T, H, W) in the memory format of x, and with ``return_attention`` a ``BlockTrace``.
        """
        if self.transform_first:
            values_NPC = self.transform["add"](x_NCTHW.flatten(2).transpose(1, 2))
            context_NC, attention_NP, x_NCTHW = self.pool(x_NCTHW, values_NPC)
            terms = {"add": context_NC}
        else:
            context_NC, attention_NP, x_NCTHW = self.pool(x_NCTHW)
            # In the dtype of the weights: to cast these costs more kernels, and more memory traffic, than it saves.
            context_NC = context_NC.to(next(self.transform.parameters()).dtype)
            kind = x_NCTHW.device.type
            autocasts = kind != "meta" and torch.is_autocast_enabled(kind)
            with torch.autocast(kind, enabled=False) if autocasts else nullcontext():
                terms = {name: transform(context_NC) for name, transform in self.transform.items()}  # each (N, C)
        y_NCTHW = fuse(x_NCTHW, **terms)
        if not return_attention:
            return y_NCTHW
        output_NC = terms["add"] if "add" in terms else terms["scale"].sigmoid()
        attention = None if attention_NP is None else attention_NP.unflatten(1, (1, *x_NCTHW.shape[2:]))
        return y_NCTHW, BlockTrace(input=x_NCTHW, attention=attention, context=context_NC, output=output_NC)


def gc_block(channels: int, *, reduction: int = 4) -> ContextBlock:
    """GC block (GCNet, figure 4d); ratio 4 is the paper's on Kinetics, 16 on images."""
    return ContextBlock(channels, pool="attention", transform="bottleneck", fusion="add", reduction=reduction)


def snl_block(channels: int) -> ContextBlock:
    """Simplified non-local block (GCNet, figure 4b, equation 3)."""
    return ContextBlock(channels, pool="attention", transform="linear", fusion="add")


def se_block(channels: int, *, reduction: int = 16) -> ContextBlock:
    """Squeeze-and-excitation block (Hu et al. 2018, as in GCNet, figure 4c)."""
    return ContextBlock(channels, pool="average", transform="squeeze", fusion="scale", reduction=reduction)


def fuse(x_NCTHW: Tensor, scale: Tensor | None = None, add: Tensor | None = None) -> Tensor:
    """Fusion of terms (N, C) with every position: x * sigmoid(scale) + add; the original code scales before it adds."""
    if scale is not None:
        x_NCTHW = x_NCTHW * _per_channel(scale.sigmoid().to(x_NCTHW.dtype))
    if add is not None and casts_inside(x_NCTHW) and add.dtype != x_NCTHW.dtype and not torch.compiler.is_compiling():
        return _MixedAdd.apply(x_NCTHW, add)
    return x_NCTHW if add is None else x_NCTHW + _per_channel(add.to(x_NCTHW.dtype))


class _MixedAdd(torch.autograd.Function):
    """x (N, C, T, H, W) + t (N, C), of another dtype, in one kernel, and one for the gradient of t; slow on CPUs."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_NCTHW: Tensor, t_NC: Tensor) -> Tensor:
        ctx.dtype = t_NC.dtype  # type: ignore[attr-defined]
        return torch.add(x_NCTHW, _per_channel(t_NC), out=torch.empty_like(x_NCTHW))

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_NCTHW: Tensor) -> tuple[Tensor, Tensor]:
        return grad_NCTHW, grad_NCTHW.sum((2, 3, 4), dtype=ctx.dtype)  # type: ignore[attr-defined]


def _reset_transform(transform: nn.Module) -> None:
    """PyTorch's default initialisation, then the last layer to zero."""
    *inner, last = transform.children()
    for layer in inner:
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            layer.reset_parameters()
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


class AttentionPool(nn.Module):
    """Global attention pooling: p = sum_j a_j x_j with a = softmax_j(w . x_j) over all P = T * H * W positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels))  # a 1 x 1 x 1 convolution to one mask, without bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation by fan-in, as in the original code."""
        nn.init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x_NCTHW: Tensor, values_NPD: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pool a clip.

        Args:
            x_NCTHW: (N, C, T, H, W).
            values_NPD: (N, P, D) to be pooled in place of x, with the weights that x gives.

        Returns:
            the pooled vectors (N, C), in the dtype of the parameters, or (N, D) with values; the weights (N, P), which
            carry no gradient; and x. Use this x downstream: the pooling gradient is fused into its own, without another
            pass over memory.
        """
        dtype = _autocast_dtype(x_NCTHW)
        if values_NPD is None:
            return _AttentionPool.apply(x_NCTHW, self.weight, dtype)
        logits_NP = F.linear(x_NCTHW.to(dtype).flatten(2).transpose(1, 2), self.weight.to(dtype)).squeeze(2)
        attention_NP = logits_NP.softmax(1, dtype=torch.promote_types(dtype, torch.float32)).to(values_NPD.dtype)
        return torch.bmm(attention_NP.unsqueeze(1), values_NPD).squeeze(1), attention_NP.detach(), x_NCTHW


class AveragePool(nn.Module):
    """Global average pooling, the squeeze of SE."""

    def forward(self, x_NCTHW: Tensor) -> tuple[Tensor, None, Tensor]:
        """Mean over all positions (N, C); no attention weights; and x itself."""
        return x_NCTHW.mean((2, 3, 4)), None, x_NCTHW


class _AttentionPool(torch.autograd.Function):
    """Attention pooling with its gradient in closed form.

    Autograd would need several more passes over x, and would write out each rank-one product of the backward pass and
    add it up. Here the gradient of all that follows x passes through the pool too, and both rank-one terms are added to
    it in place. Besides x only the N x P weights are kept. With g = dL/dp::

        s_j = x_j . g       d_j = a_j (s_j - sum_k a_k s_k)       dL/dx_j += a_j g + d_j w       dL/dw = sum_j d_j x_j
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x_NCTHW: Tensor, weight_1C: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        z_NCTHW, w_1C = x_NCTHW.to(dtype), weight_1C.to(dtype)
        # Computes in float32 if need be, in one kernel; autocast would add casts to ``softmax``.
        attention_NP = torch._softmax(_dot(z_NCTHW, w_1C[0]), 1, False)
        ctx.save_for_backward(z_NCTHW, w_1C, attention_NP)
        ctx.dtype = weight_1C.dtype  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(attention_NP)
        # Autograd would make a view of x, and for a single clip that view no longer looks like channels_last_3d.
        return _weighted_sum(z_NCTHW, attention_NP, weight_1C.dtype), attention_NP, x_NCTHW.detach()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_NC: Tensor, _: None, grad_x_NCTHW: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        z_NCTHW, w_1C, a_NP = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_NC = grad_NC.to(z_NCTHW.dtype)
        s_NP = _dot(z_NCTHW, grad_NC)
        if casts_inside(z_NCTHW):  # the gradient of the softmax
            d_NP = torch._softmax_backward_data(s_NP, a_NP, 1, a_NP.dtype)
        else:
            d_NP = a_NP * (s_NP - (a_NP * s_NP).sum(1, keepdim=True))
        if casts_inside(z_NCTHW) and _is_channels_last(z_NCTHW):  # as one long clip, which saves the sum over clips
            z_NCTHW, d_1P = z_NCTHW.transpose(0, 1).flatten(1, 2).unsqueeze(0), d_NP.view(1, -1)
            grad_weight_1C = _weighted_sum(z_NCTHW, d_1P, ctx.dtype)  # type: ignore[attr-defined]
        else:
            grad_weight_1C = _weighted_sum(z_NCTHW, d_NP, ctx.dtype).sum(0, keepdim=True)  # type: ignore[attr-defined]
        dtype, grid = grad_x_NCTHW.dtype, (1, *grad_x_NCTHW.shape[2:])
        a_N1THW, d_N1THW = a_NP.to(dtype).unflatten(1, grid), d_NP.to(dtype).unflatten(1, grid)
        grad_x_NCTHW = torch.addcmul(grad_x_NCTHW, a_N1THW, _per_channel(grad_NC.to(dtype)))
        return grad_x_NCTHW.addcmul_(d_N1THW, _per_channel(w_1C.to(dtype))), grad_weight_1C, None


# Each product below is written for both memory formats, so that none copies x, and as the kind of matrix product that
# was fast on every processor measured: others of the same value take up to 90 times as long for one batch size, dtype
# or make of processor.


def _dot(x_NCTHW: Tensor, vector: Tensor) -> Tensor:
    """Dot product (N, P) of each position with vector (C,) or (N, C)."""
    x_NCP = x_NCTHW.flatten(2)
    if not _is_channels_last(x_NCTHW):
        return torch.bmm(vector.expand(x_NCP.shape[0], -1).unsqueeze(1), x_NCP).squeeze(1)
    x_NPC = x_NCP.transpose(1, 2)
    return x_NPC @ vector if vector.dim() == 1 else _dot_rows(x_NPC, vector)


def _weighted_sum(x_NCTHW: Tensor, weights_NP: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum (N, C) over the positions, each times its weight; in ``dtype``."""
    x_NCP, weights_N1P = x_NCTHW.flatten(2), weights_NP.unsqueeze(1)
    if casts_inside(x_NCTHW) and dtype != x_NCTHW.dtype:  # it has it in its accumulators
        return torch.bmm(weights_N1P, x_NCP.transpose(1, 2), out_dtype=dtype).squeeze(1)
    if not _is_channels_last(x_NCTHW):
        return _dot_rows(x_NCP, weights_NP).to(dtype)
    return torch.bmm(weights_N1P, x_NCP.transpose(1, 2)).squeeze(1).to(dtype)


def _dot_rows(matrix_NAB: Tensor, vector_NB: Tensor) -> Tensor:
    """Dot product (N, A) of each row of a matrix, whose rows are contiguous, with a vector."""
    if matrix_NAB.shape[0] == 1:
        return (matrix_NAB[0] @ vector_NB[0]).unsqueeze(0)
    return torch.bmm(vector_NB.unsqueeze(1), matrix_NAB.transpose(1, 2)).squeeze(1)


def _is_channels_last(x_NCTHW: Tensor) -> bool:
    return x_NCTHW.is_contiguous(memory_format=torch.channels_last_3d)


def _per_channel(vector_NC: Tensor) -> Tensor:
    return vector_NC[:, :, None, None, None]  # (N, C, 1, 1, 1)


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """Dtype that autocast gives the input of a convolution; it does not reach products inside a ``Function``."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # the meta device has no autocast
        return x.dtype
    return x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype(device)
