"""Inflation of 2D kernels over time.

A 2D kernel repeated T times and divided by T gives for T equal frames what the 2D kernel gives for one of them
(Carreira and Zisserman 2017, section 2.1). So an inflated network sees a still picture exactly as the 2D network does,
except for frames so near either end that the zero padding in time reaches them. The context of a context or non-local
block is that of the whole clip, so behind such blocks the padding reaches all frames.
"""

from collections.abc import Sequence

from torch import Tensor


def inflate(kernel: Tensor, frames: int) -> Tensor:
    """Inflated kernel: a 2D kernel repeated over time.

    Args:
        kernel: (C_out, C_in, H, W).
        frames: T.

    Returns:
        (C_out, C_in, T, H, W), each frame a T-th of the kernel.
    """
    return kernel.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames


def fit(tensor: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Tensor in the shape wanted, or None where that takes more than inflation or dimensions of size one."""
    if tensor.shape == tuple(shape):
        return tensor
    if tensor.dim() == 4 and len(shape) == 5 and tensor.shape == (*shape[:2], *shape[3:]):
        return inflate(tensor, shape[2])
    if [size for size in tensor.shape if size > 1] == [size for size in shape if size > 1]:
        return tensor.reshape(*shape)  # (C, D) is (C, D, 1, 1, 1): a linear map is a convolution with a kernel of one
    return None


def with_dims(tensor: Tensor, dims: int) -> Tensor:
    """Tensor with ``dims`` dimensions: trailing ones of size one are appended or removed."""
    while tensor.dim() > dims and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    return tensor.reshape(*tensor.shape, *[1] * (dims - tensor.dim()))
