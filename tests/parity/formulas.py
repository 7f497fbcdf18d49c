"""Blocks and whole networks in NumPy, written from the papers' formulas for the tests alone. No torch, no gcvideo.

Sums over positions and pairs are loops, as the equations have them. Only the names of the tensors, those of gcvideo's
state dict, are shared. Sources: Cao et al. 2019 (GCNet), figure 4; Wang et al. 2018, section 3.2 and table 1; Hu et al.
2018 (SE), section 3; Feichtenhofer et al. 2019 (Slow), table 1; He et al. 2016 (residual blocks). What they leave open
(eps 1e-5, zero padding, strides of the stem, logits over the square root of their width) is PySlowFast's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

Array = np.ndarray
State = dict[str, Array]


def below(state: State, prefix: str) -> State:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def linear(x: Array, p: State, name: str) -> Array:
    """(..., C) -> (..., D)."""
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def batch_norm(x: Array, p: State, name: str) -> Array:
    """In evaluation, of (N, C, T, H, W)."""
    weight, bias, mean, variance = (
        p[f"{name}.{leaf}"][:, None, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def context_block(x: Array, p: State) -> Array:
    """GC, SNL, SE and their relatives, by the parameters that are there."""
    fused = np.empty_like(x)
    for n, sample in enumerate(x):
        positions = sample.reshape(len(sample), -1).T  # (P, C)
        if "pool.weight" in p:
            weights = softmax(np.array([p["pool.weight"][0] @ x_j for x_j in positions]))
        else:
            weights = np.full(len(positions), 1 / len(positions))
        context = sum(weight * x_j for weight, x_j in zip(weights, positions, strict=True))
        terms = {name: _transform(context, below(p, f"transform.{name}.")) for name in ("scale", "add")}
        y = sample
        if terms["scale"] is not None:
            y = y * (1 / (1 + np.exp(-terms["scale"])))[:, None, None, None]
        if terms["add"] is not None:
            y = y + terms["add"][:, None, None, None]
        fused[n] = y
    return fused


def _transform(context: Array, p: State) -> Array | None:
    if not p:
        return None
    if "fc.weight" in p:
        return linear(context, p, "fc")
    hidden = linear(context, p, "fc1")
    if "norm.weight" in p:  # layer norm
        centred = hidden - hidden.mean()
        hidden = centred / np.sqrt((centred**2).mean() + 1e-5) * p["norm.weight"] + p["norm.bias"]
    return linear(relu(hidden), p, "fc2")


def non_local(x: Array, p: State, *, kind: str, subsample: str = "none", scale: bool = True) -> Array:
    """z_i = x_i + W_z sum_j f(x_i, x_j) g(x_j) / Z, a query at a time."""
    z = np.empty_like(x)
    for n in range(len(x)):
        one = x[n : n + 1]
        source = max_pool(one, (1, 2, 2)) if subsample == "before" else one

        def embed(grid: Array, name: str, pooled: bool) -> Array:
            moved = np.moveaxis(grid, 1, -1)
            moved = moved if kind == "gaussian" and name != "g" else linear(moved, p, name)
            y = np.moveaxis(moved, -1, 1)
            y = max_pool(y, (1, 2, 2)) if pooled else y
            return y[0].reshape(y.shape[1], -1).T  # (P, D)

        late = subsample == "after"
        queries, keys, values = embed(one, "theta", False), embed(source, "phi", late), embed(source, "g", late)
        gathered = []
        for q in queries:
            if kind in ("gaussian", "embedded_gaussian"):
                weights = softmax(np.array([q @ k for k in keys]) * (len(q) ** -0.5 if scale else 1))
            elif kind == "dot_product":
                weights = np.array([q @ k for k in keys]) / len(keys)
            else:
                w_f = p["concat.weight"][0]
                weights = np.array([max(w_f @ np.concatenate((q, k)), 0) for k in keys]) / len(keys)
            gathered.append(sum(weight * v for weight, v in zip(weights, values, strict=True)))
        y = linear(np.stack(gathered), p, "out").T.reshape(one.shape)
        if "norm.weight" in p:
            y = batch_norm(y, p, "norm")
        z[n] = (one + y)[0]
    return z


def _shifted(
    x: Array, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], fill: float
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """For each place of a kernel what it meets: its (t, y, x) and (N, C, T', H', W')."""
    padded = np.pad(x, ((0, 0), (0, 0), *((side, side) for side in padding)), constant_values=fill)
    sizes = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], kernel, stride, strict=True)]
    for place in itertools.product(*map(range, kernel)):
        cuts = [slice(p, p + (n - 1) * s + 1, s) for p, n, s in zip(place, sizes, stride, strict=True)]
        yield place, padded[(slice(None), slice(None), *cuts)]


def conv(x: Array, weight: Array, stride: int = 1) -> Array:
    """Convolution with "same" zero padding and a stride in space."""
    kernel = weight.shape[2:]
    met = _shifted(x, kernel, (1, stride, stride), tuple(k // 2 for k in kernel), 0.0)
    return sum(np.einsum("oc,ncthw->nothw", weight[(..., *place)], part, optimize=True) for place, part in met)


def max_pool(x: Array, kernel: tuple[int, ...], stride: tuple[int, ...] = (), padding: tuple[int, ...] = ()) -> Array:
    met = _shifted(x, kernel, stride or kernel, padding or (0, 0, 0), -np.inf)
    return np.maximum.reduce([part for _, part in met])


def network(x: Array, state: State, *, pooled_in_time: bool, kind: str = "", subsample: str = "before") -> Array:
    """Logits (N, classes) of clips (N, 3, T, H, W) by a ResNet with blocks where the state dict has them.

    Args:
        pooled_in_time: the 2 x 1 x 1 max-pooling after res2 of C2D and I3D.
        kind: instantiation of non-local blocks, which stand after the sum and ReLU (Wang et al., figure 2); without one
            blocks are GC, SNL or SE and stand before the sum (GCNet, section 4.1: after the last 1 x 1 convolution).
        subsample: of non-local blocks.
    """
    x = relu(batch_norm(conv(x, state["stem.conv.weight"], 2), state, "stem.norm"))
    x = max_pool(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage in (2, 3, 4, 5):
        for number in itertools.count():
            p = below(state, f"res{stage}.{number}.")
            if not p:
                break
            convs = [name for name in "abc" if f"branch2.conv_{name}.weight" in p]
            halved, stride = ("b" if len(convs) == 3 else "a"), (2 if number == 0 and stage > 2 else 1)
            y = x
            for name in convs:
                y = conv(y, p[f"branch2.conv_{name}.weight"], stride if name == halved else 1)
                y = batch_norm(y, p, f"branch2.norm_{name}")
                y = y if name == convs[-1] else relu(y)
            block = below(p, "context.")
            if block and not kind:
                y = context_block(y, block)
            if "branch1_conv.weight" in p:
                x = batch_norm(conv(x, p["branch1_conv.weight"], stride), p, "branch1_norm")
            x = relu(x + y)
            if block and kind:
                x = non_local(x, block, kind=kind, subsample=subsample)
        if stage == 2 and pooled_in_time:
            x = max_pool(x, (2, 1, 1))
    return linear(x.mean((2, 3, 4)), state, "head.proj")
