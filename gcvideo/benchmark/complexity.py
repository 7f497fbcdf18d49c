"""Parameters and multiply-adds of networks, counted from shapes alone.

A multiply-add of a convolution, a linear layer or a matrix product counts one, those of attention and of attention
pooling included; normalisation, activations and pooling by mean or maximum count nothing. This is the rule under which
the increments of GCNet's Kinetics table (arXiv 1904.11492, table 4) come out: +0.03, +0.02 and +0.06 G.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gcvideo.analysis.attention import PAPER_TABLES
from gcvideo.benchmark import harness
from gcvideo.config import ContextConfig, ModelConfig, RunConfig, is_path, load_config
from gcvideo.errors import ConfigError
from gcvideo.files import write_atomically
from gcvideo.models import MODELS, build_model, model_config

# Config -> parameters (millions) and multiply-adds (G) in GCNet's Kinetics table as remembered, not verified.
PAPER = PAPER_TABLES["complexity"]


class Complexity(NamedTuple):
    """Cost of one forward pass.

    Attributes:
        params: trainable parameters.
        macs: multiply-adds for the whole input.
    """

    params: int
    macs: int


def count(model: nn.Module, input_shape: Sequence[int]) -> Complexity:
    """Count a network's cost for one input, on PyTorch's meta device: nothing is computed and no memory is taken.

    Args:
        model: any module; it is left as it is.
        input_shape: (N, C, T, H, W).

    Raises:
        InputShapeError: the network refuses the shape.
    """
    model = copy.deepcopy(model).to("meta").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):  # counts nothing, and takes most of the time on this device
            module.forward = lambda x: x  # type: ignore[assignment, method-assign]
    # The one product that PyTorch's counter has no formula for.
    own = {torch.ops.aten.mv: lambda matrix, vector, **_: 2 * matrix[0] * matrix[1]}
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with torch.no_grad(), counter:
        model(torch.empty(tuple(input_shape), device="meta"))
    # The counter counts a multiply-add as two.
    return Complexity(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def count_config(config: ModelConfig, input_shape: Sequence[int]) -> Complexity:
    """Count a config's cost without drawing its weights."""
    with torch.device("meta"):
        model = build_model(config)
    return count(model, input_shape)


def receptive_field(config: ModelConfig) -> tuple[int, int, int]:
    """Frames, rows and columns of the input that reach one position before the head, past the context blocks.

    Of a ResNet of this package: each kernel k adds (k - 1) times the product of the strides before it.
    """
    with torch.device("meta"):
        model = build_model(replace(config, context=ContextConfig()))
    field, stride = np.ones(3, int), np.ones(3, int)
    for name, module in model.named_modules():
        # Shortcuts (branch1) see no more than branches.
        if isinstance(module, nn.Conv3d | nn.MaxPool3d) and "branch1" not in name:
            field += (np.broadcast_to(module.kernel_size, 3) - 1) * stride
            stride *= np.broadcast_to(module.stride, 3)
    frames, height, width = field.tolist()
    return frames + config.frame_difference, height, width


def run(args: argparse.Namespace) -> None:
    """Count, show, and write what was asked for."""
    rows = []
    for name, config in read_configs(args.configs):
        without_blocks = replace(config.model, context=ContextConfig())
        for frames, size in product(args.frames or [config.data.frames], args.size or [config.data.crop]):
            shape = (1, 3, frames, size, size)
            cost, plain = count_config(config.model, shape), count_config(without_blocks, shape)
            added = {"added_params": cost.params - plain.params, "added_macs": cost.macs - plain.macs}
            field = None if is_path(config.model.arch) else receptive_field(config.model)
            rows.append({"config": name, "input": shape, **cost._asdict(), **added, "field": field})
    table = [
        {
            "config": row["config"],
            "input": " x ".join(map(str, row["input"][2:])),
            "params (M)": f"{row['params'] / 1e6:.2f}",
            "GMAC": f"{row['macs'] / 1e9:.2f}",
            "blocks add (M)": f"{row['added_params'] / 1e6:+.2f}",
            "(GMAC)": f"{row['added_macs'] / 1e9:+.2f}",
            "field without blocks": " x ".join(map(str, row["field"] or "–")),
        }
        for row in rows
    ]
    harness.finish(args, {"networks": rows}, {"parameters and multiply-adds": table})
    if args.markdown:
        from gcvideo.report.page import render

        write_atomically(args.markdown, render("complexity.md.j2", rows=rows, paper=PAPER).encode())


def read_configs(arguments: Sequence[str]) -> list[tuple[str, RunConfig]]:
    """(name, config) of each YAML file, file of a folder, or named model."""
    found: list[tuple[str, RunConfig]] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            files = sorted(path.glob("*.yaml"))
            if not files:
                raise ConfigError(f"{path}: no *.yaml in this folder")
            found += [(str(file), load_config(file)) for file in files]
        elif argument in MODELS or not argument.endswith((".yaml", ".yml")):
            found.append((argument, RunConfig(name=argument, model=model_config(argument))))
        else:
            found.append((argument, load_config(path)))
    return found
