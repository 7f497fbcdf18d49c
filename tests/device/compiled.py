"""A GC block compiled by Inductor for sm_90 on the null GPU, forward and backward: prints its launches as JSON."""

import json

import torch

from gcvideo.layers import gc_block
from tests.device import null


def main() -> None:
    torch.cuda.init()
    block = torch.compile(gc_block(16).cuda(), fullgraph=True)
    x = torch.zeros(2, 16, 4, 8, 8, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()

    def run() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            y = block(x)
        y.backward(torch.ones_like(y))

    run()  # compiles
    before = null.cuda_counts()
    run()
    print("COMPILED", json.dumps({name: value - before[name] for name, value in null.cuda_counts().items()}))


if __name__ == "__main__":
    null.leave(main)
