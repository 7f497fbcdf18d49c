"""Optimize a trained network for inference: fold batch norms, choose precision and memory layout, compile."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gcvideo.device import pick_memory_format, reach_onednn


def optimize_for_inference(model: nn.Module, *, precision: str = "fp32", compile: bool = False) -> nn.Module:
    """A copy of a network that computes the same predictions faster; for inference only.

    Batch norms are folded into the convolutions before them (equal to 1e-5). ``bf16`` turns weights and activations
    into bfloat16, which gains only in the channels-last layout; float32 in oneDNN gains by it too. The last layer stays
    in float32: bfloat16 tells logits apart to one part in 256 at best, so that classes would tie. The logits of a clip,
    as a vector, are within 5e-3 of float32's, relative to their Euclidean norm. ``compile`` hands the network to
    ``torch.compile``, on a CPU with frozen weights; the first batch then takes a minute or so, and there are no
    gradients.

    Args:
        model: on the device it is to run on. It is left as it is.
        precision: ``fp32`` or ``bf16``.
    """
    model = fold_batch_norms(copy.deepcopy(model).eval())
    device = next(model.parameters()).device
    if precision == "bf16":
        to_half(model, torch.bfloat16)
    for module in model.modules():  # outputs follow the layout of the convolutions' weights
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=pick_memory_format(None, precision, device))
    if device.type == "cpu" and not compile:
        reach_onednn(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return compile_network(model) if compile else model


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold each ``BatchNorm3d`` into the ``Conv3d`` registered right before it, in place; returns the model.

    That the two follow each other in ``forward`` too is a convention of this package's networks (and pytorchvideo's),
    which the tests check for every kind of them. Own blocks and backbones are left as they are.
    """
    for parent in model.modules():
        package = type(parent).__module__.partition(".")[0]
        if package not in ("gcvideo", "pytorchvideo") and type(parent) is not nn.Sequential:
            continue
        for (conv_name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if not isinstance(conv, nn.Conv3d) or not isinstance(norm, nn.BatchNorm3d):
                continue
            if conv.out_channels == norm.num_features:
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return model


def to_half(model: nn.Module, dtype: torch.dtype) -> None:
    """Change everything to bfloat16 or float16 but the last layer, which costs next to nothing and decides."""
    name = [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
    last = copy.deepcopy(model.get_submodule(name))
    model.to(dtype)
    if isinstance(last, nn.Linear):
        last.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
        model.set_submodule(name, last)


def compile_network(model: nn.Module) -> nn.Module:
    """The network under ``torch.compile``; on a CPU its weights are constants, laid out once as the convolutions want.

    ``torch.compile(..., options={"freezing": True})`` is not enough: the weights become constants only where the
    setting holds while the network is traced, which is before the options come into force, so it is set around calls.
    """
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
    if next(model.parameters()).device.type == "cpu":
        compiled.forward = torch._inductor.config.patch(freezing=True)(compiled.forward)
    return compiled
