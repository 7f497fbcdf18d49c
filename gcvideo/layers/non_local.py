"""Non-local block: every position gathers from every other.

Source: Wang et al., "Non-local Neural Networks" (CVPR 2018, arXiv 1711.07971), section 3, and the authors' Caffe2 code
(facebookresearch/video-nonlocal-net). With keys and values j, queries i and inner width d::

    y_i = 1/Z sum_j f(x_i, x_j) g(x_j)                        z_i = x_i + W_z y_i

==================  =========================  =========  ==============================================
instantiation       f(x_i, x_j)                Z          computed as
==================  =========================  =========  ==============================================
gaussian            exp(x_i . x_j / sqrt(C))   sum_j f    scaled dot-product attention
embedded_gaussian   exp(q_i . k_j / sqrt(d))   sum_j f    scaled dot-product attention
dot_product         q_i . k_j                  count      q (k' v): the d x d product first
concatenation       ReLU(w . [q_i, k_j])       count      prefix sums over the sorted keys
==================  =========================  =========  ==============================================

with q = theta(x), k = phi(x), v = g(x). No form keeps a THW x THW matrix, in either pass. The paper's equations have
no square root; its Caffe2 code divides by it, as here. (The 2D non-local block of xvjiarui/GCNet multiplies by it.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcvideo.errors import InputShapeError
from gcvideo.layers.trace import BlockTrace, TracedBlock, check_choice

INSTANTIATIONS = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")


class NonLocalBlock(TracedBlock):
    """Non-local block: pairwise attention over all positions of a clip.

    The last layer starts at zero (the scale of the batch norm, or W_z without one), so that a fresh block changes
    nothing. The other maps start from N(0, 0.01), as in the Caffe2 code.

    Args:
        channels: C, channels of input and output.
        instantiation: "gaussian", "embedded_gaussian", "dot_product" or "concatenation".
        reduction: the inner width d is max(C // reduction, 1).
        subsample: 2 x 2 spatial max-pooling of keys and values: "before" phi and g (the Caffe2 code, PySlowFast),
            "after" them (the paper's text, mmaction2), or "none".
        norm: batch norm after W_z.
        bias: whether theta, phi, g and W_z have biases.
        scale: divide the logits of the two softmax kinds by the square root of their width.
    """

    def __init__(
        self,
        channels: int,
        *,
        instantiation: str = "embedded_gaussian",
        reduction: int = 2,
        subsample: str = "before",
        norm: bool = True,
        bias: bool = True,
        scale: bool = True,
    ) -> None:
        super().__init__()
        check_choice("instantiation", instantiation, INSTANTIATIONS)
        check_choice("subsample", subsample, ("none", "before", "after"))
        inner = max(channels // reduction, 1)
        self.instantiation, self.subsample, self.inner = instantiation, subsample, inner
        # Linear maps stand for the paper's 1 x 1 x 1 convolutions.
        embedded = instantiation != "gaussian"
        self.theta = nn.Linear(channels, inner, bias=bias) if embedded else None
        self.phi = nn.Linear(channels, inner, bias=bias) if embedded else None
        self.g = nn.Linear(channels, inner, bias=bias)
        # w_f of the paper's equation 6.
        self.concat = nn.Linear(2 * inner, 1, bias=False) if instantiation == "concatenation" else None
        self.out = nn.Linear(inner, channels, bias=bias)
        self.norm = nn.BatchNorm3d(channels) if norm else None
        self.scale = (inner if embedded else channels) ** -0.5 if scale else 1.0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise again, the last layer at zero. Call it after any global initialisation."""
        for layer in (self.theta, self.phi, self.g, self.concat, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.norm is not None:
            self.norm.reset_parameters()
            nn.init.zeros_(self.norm.weight)
        else:
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, BlockTrace]:
        """Add to each position what it gathers from all of them.

        Args:
            x: (N, C, T, H, W), contiguous or channels_last_3d; H and W at least 2 where keys are sub-sampled.
            return_attention: also return what each query attended to. This makes the T * H * W x keys matrix that the
                plain forward pass avoids; the output is the same up to rounding.

        Returns:
            z (N, C, T, H, W), and with ``return_attention`` a ``BlockTrace``.

        Raises:
            InputShapeError: H or W is 1 and keys are sub-sampled.
        """
        if self.subsample != "none" and min(x.shape[3:]) < 2:
            raise InputShapeError(
                f"a non-local block gets {x.shape[3]} x {x.shape[4]} positions a frame, too few for its 2 x 2 "
                "sub-sampling: give larger clips, or set model.context.subsample=none"
            )
        query, key, value = self._embed(x)
        if return_attention:
            attention = self._attention_map(query, key)  # (N, Q, K)
            gathered = attention @ value  # (N, Q, d)
        else:
            gathered = self._gather(query, key, value)  # (N, Q, d)
        output = _to_grid(self.out(gathered), x)  # (N, C, T, H, W)
        if self.norm is not None:
            output = self.norm(output)
        if not return_attention:
            return x + output
        keys = (x.shape[2], *((side // 2 for side in x.shape[3:]) if self.subsample != "none" else x.shape[3:]))
        return x + output, BlockTrace(
            input=x, attention=attention.unflatten(2, keys), context=_to_grid(gathered, x), output=output
        )

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, Q, d), keys (N, K, d) and values (N, K, d); gaussian queries and keys have width C."""
        query = _to_tokens(x)  # (N, Q, C)
        source = _to_tokens(F.max_pool3d(x, (1, 2, 2))) if self.subsample == "before" else query
        key = source if self.phi is None else self.phi(source)
        value = self.g(source)
        if self.theta is not None:
            query = self.theta(query)
        if self.subsample == "after":
            key, value = (_to_tokens(F.max_pool3d(_to_grid(tokens, x), (1, 2, 2))) for tokens in (key, value))
        return query, key, value

    def _gather(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """sum_j f(x_i, x_j) v_j / Z for each query: (N, Q, d), in memory linear in the number of positions."""
        if self.instantiation == "dot_product":
            return query @ (key.transpose(1, 2) @ value) / key.shape[1]  # (N, Q, d) @ (N, d, d)
        if self.concat is not None:
            return _gather_relu(*self._concat_logits(query, key), value) / key.shape[1]
        width, value_width = query.shape[2], value.shape[2]
        if value_width < width:  # gaussian: PyTorch's fused kernels want one width for all three
            value = F.pad(value, (0, width - value_width))
        # One head: (N, 1, Q, d). The fused kernels also want the channels of a position side by side.
        query, key, value = (tokens.contiguous().unsqueeze(1) for tokens in (query, key, value))
        gathered = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return gathered.squeeze(1)[..., :value_width]

    def _attention_map(self, query: Tensor, key: Tensor) -> Tensor:
        """f(x_i, x_j) / Z for all pairs: (N, Q, K)."""
        if self.concat is not None:
            by_query, by_key = self._concat_logits(query, key)
            return (by_query.unsqueeze(2) + by_key.unsqueeze(1)).relu() / key.shape[1]
        logits = query @ key.transpose(1, 2)
        return logits / key.shape[1] if self.instantiation == "dot_product" else (logits * self.scale).softmax(2)

    def _concat_logits(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """w . [q_i, k_j] splits into a part of the query (N, Q) and a part of the key (N, K)."""
        assert self.concat is not None
        weight_query, weight_key = self.concat.weight.chunk(2, dim=1)  # (1, d) each
        return F.linear(query, weight_query).squeeze(2), F.linear(key, weight_key).squeeze(2)


def _gather_relu(by_query: Tensor, by_key: Tensor, value: Tensor) -> Tensor:
    """sum_j ReLU(a_i + b_j) v_j without the matrix of all pairs.

    With the keys in descending order of b, those that count for query i, the ones with b_j > -a_i, are the first n_i.
    So the sum is a_i V_n + B_n with the running sums V_n of v_j and B_n of b_j v_j.

    Args:
        by_query: a (N, Q).
        by_key: b (N, K).
        value: v (N, K, d).

    Returns:
        (N, Q, d).
    """
    dtype = value.dtype
    by_query, by_key, value = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (by_query, by_key, value))
    by_key, order = by_key.sort(dim=1, descending=True)
    value = value.gather(1, order.unsqueeze(2).expand_as(value))
    terms = torch.cat((value, by_key.unsqueeze(2) * value), 2)  # (N, K, 2d)
    sums = F.pad(terms.cumsum(1), (0, 0, 1, 0))  # (N, K + 1, 2d): row n sums the first n keys
    count = torch.searchsorted(-by_key.detach(), by_query.detach())  # (N, Q): how many b_j > -a_i
    sums = sums.gather(1, count.unsqueeze(2).expand(-1, -1, sums.shape[2]))  # (N, Q, 2d)
    sum_v, sum_bv = sums.chunk(2, dim=2)
    return (by_query.unsqueeze(2) * sum_v + sum_bv).to(dtype)


def _to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (N, C, T, H, W) -> (N, THW, C)


def _to_grid(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])  # (N, THW, C) -> (N, C, T, H, W)
