"""A GC block on the null GPU as it is, and compiled by Inductor for sm_90; and a small network compiled.

Prints the launches of a forward and backward pass of each as a line of JSON.
"""

import json
from unittest import mock

import torch
from torch import Tensor, nn

from gcvideo.layers import gc_block
from gcvideo.models import resnet3d
from tests.device import null
from tests.device.steps import CASES, tiny


def count(name: str, network: nn.Module, x: Tensor) -> None:
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    dy = None

    def run() -> Tensor:
        network.zero_grad()
        x.grad = None
        with torch.autocast("cuda", torch.bfloat16):
            y: Tensor = network(x)
        y.backward(torch.ones_like(y) if dy is None else dy)
        return y.detach()

    dy = run()  # compiles
    before = null.cuda_counts()
    run()
    found = {name: value - before[name] for name, value in null.cuda_counts().items()}
    print(name, json.dumps(found), flush=True)


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, fullgraph=True)  # type: ignore[return-value]


def main() -> None:
    torch.cuda.init()
    block, x = gc_block(64).cuda(), torch.zeros(2, 64, 4, 8, 8, device="cuda", dtype=torch.bfloat16)
    count("EAGER", block, x)
    count("BLOCK", compiled(block), x)
    with mock.patch.object(resnet3d, "BLOCKS_PER_STAGE", {18: (1, 1, 1, 1)}):  # each takes seconds
        network = resnet3d.build_model(tiny(**CASES["gc"]).model).cuda()
    clips = torch.zeros(2, 3, 4, 32, 32, device="cuda")
    count("NETWORK", compiled(network.to(memory_format=torch.channels_last_3d)), clips)


if __name__ == "__main__":
    null.leave(main)
