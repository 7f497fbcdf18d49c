"""The benchmark of blocks: its peers are the same functions, its ratios what they say they are, its command runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gcvideo.benchmark import blocks
from gcvideo.benchmark.harness import CPU
from gcvideo.benchmark.peers import PortedContextBlock, pytorchvideo_non_local
from gcvideo.cli import main
from gcvideo.layers import NonLocalBlock, gc_block


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_the_ported_block_is_the_same_function() -> None:
    ours = randomised(gc_block(8))
    port = PortedContextBlock(8).copy_from(ours)
    x = torch.randn(2, 8, 2, 3, 3)
    torch.testing.assert_close(port(x), ours(x), rtol=1e-5, atol=1e-5)


def test_pytorchvideos_block_is_the_same_function() -> None:
    ours = randomised(NonLocalBlock(8, subsample="none"))
    x = torch.randn(2, 8, 2, 3, 3)
    torch.testing.assert_close(pytorchvideo_non_local(ours)(x), ours(x), rtol=1e-4, atol=1e-4)


def row(stage: str, layout: str, dtype: str, batch: int = 8, **ratios: float) -> dict:
    values = {"forward.floor": 1.0, "train.floor": 1.0, "train.port": 1.0}
    return {"stage": stage, "layout": layout, "dtype": dtype, "batch": batch, **values, **ratios}


def test_ratios_are_medians_over_stages_of_the_worst_layout() -> None:
    rows = [
        row("res3", "contiguous", "fp32", **{"forward.floor": 1.0, "train.floor": 2.0}),
        row("res4", "contiguous", "fp32", **{"forward.floor": 1.4, "train.floor": 2.2}),
        row("res3", "channels_last", "fp32", **{"forward.floor": 1.5, "train.floor": 1.8}),
        row("res4", "channels_last", "fp32", **{"forward.floor": 1.1, "train.floor": 1.8}),
        row("res3", "contiguous", "bf16", **{"train.floor": 3.0, "train.port": 9.0}),
        row("res3", "channels_last", "bf16", **{"train.floor": 2.0, "train.port": 2.0}),
        row("res5", "contiguous", "bf16", **{"forward.floor": 2.5}),
        row("res3", "contiguous", "fp32", batch=1, **{"forward.floor": 2.9}),
    ]
    ratios = blocks.named_ratios(rows, [])
    assert ratios["gc.forward.floor"] == pytest.approx(1.3)
    assert ratios["gc.forward.floor.worst"] == 2.9
    assert ratios["gc.train.floor.fp32"] == pytest.approx(2.1)
    assert ratios["gc.train.floor.bf16"] == 3.0
    assert ratios["gc.train.port"] == 9.0


def test_ratios_of_the_rivals_are_those_of_res3() -> None:
    keys = ("nl.forward.peer", "gc.train.own_nl", "gc.train.peer_nl")
    rows = [
        {"stage": stage, "dtype": dtype, **dict(zip(keys, values, strict=True))}
        for stage, dtype, values in (
            ("res3", "fp32", (1.0, 40.0, 120.0)),
            ("res3", "bf16", (5.0, 50.0, 101.0)),
            ("res4", "fp32", (9.0, 1.0, 1.0)),
        )
    ]
    gc = [row("res3", "contiguous", dtype) for dtype in ("fp32", "bf16")]
    found = blocks.named_ratios(gc, rows)
    assert {name: found[name] for name in keys} == dict(zip(keys, (5.0, 40.0, 101.0), strict=True))
    assert not set(keys) & blocks.named_ratios(gc, rows[2:]).keys()


@pytest.mark.slow
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(blocks, "STAGES", {"res3": (8, 2, 4, 4), "res4": (16, 2, 2, 2)})
    out = tmp_path / "blocks.json"
    arguments = ["--rounds", "1", "--nl-rounds", "1", "--model-rounds", "0", "--batch", "1", "2", "--device", "cpu"]
    assert main(["benchmark", "blocks", *arguments, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    ratios = result["figures"]
    floors = {"gc.forward.floor", "gc.forward.floor.worst", "gc.train.floor.fp32", "gc.train.floor.bf16"}
    peers = {"gc.train.port", "gc.train.peer_nl", "gc.train.own_nl", "nl.forward.peer"}
    assert floors | peers <= set(ratios)
    assert all(value > 0 for value in ratios.values())
    assert len(result["gc"]) == 16
    assert {"stage", "batch", "layout", "dtype", "ms", "train.floor"} <= set(result["gc"][0])
    shown = capsys.readouterr().out
    assert "gc.train.port" in shown


@pytest.mark.slow
def test_the_compiled_block_is_one_more_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on a CPU, with a backend that compiles nothing."""
    monkeypatch.setattr(blocks, "STAGES", {"res3": (8, 2, 4, 4)})
    case = blocks.Case("res3", 2, "channels_last", "fp32")
    row = blocks.measure(case, blocks.gc_blocks, rounds=1, device=CPU, backend="eager")
    assert row["stage"] == "res3"
    assert {"forward.floor", "train.port", "forward.compiled", "train.compiled"} <= set(row)


def test_exponent_of_a_power_law_and_of_the_larger_sizes_only() -> None:
    sizes = [10, 100, 1000, 2000, 4000]
    costs = [5.0, 5.0, *(1e-3 * size**1.7 for size in sizes[2:])]  # small ones all cost the same
    assert blocks.fit_exponent(sizes, costs) == pytest.approx(1.7)


def test_multiply_adds_grow_in_a_line_for_gc_and_with_the_square_for_nl() -> None:
    shapes = [(t, 8, 8) for t in (4, 8, 16, 32)]
    found = blocks.measure_scaling(channels=8, shapes=shapes, rounds=1, device=CPU)
    assert found["GC"]["macs_exponent"] == pytest.approx(1, abs=0.1)
    assert found["NL, all keys"]["macs_exponent"] == pytest.approx(2, abs=0.1)
    points = found["NL"]["points"]
    assert [point["positions"] for point in points] == [256, 512, 1024, 2048]
    assert set(points[0]["ms"]) == {"q1", "median", "q3"}
    assert found["NL"]["time_exponent"] is not None


def test_the_block_makes_few_passes_over_memory() -> None:
    """Tensors of the size of x that the operators read or write, views left out; the floors are 3 and 7 passes."""
    block = randomised(gc_block(4))
    x = torch.randn(2, 4, 3, 8, 8, requires_grad=True)
    with _Passes(x.numel()) as watch:
        y = block(x)
    assert watch.passes == 4
    dy = torch.randn_like(y)
    with watch:
        torch.autograd.grad(y, (x, *block.parameters()), dy)
    assert watch.passes == 4 + 7


class _Passes(TorchDispatchMode):
    """Counts large tensors that operators take and return."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.passes = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket is not torch.ops.aten.detach:
            tensors = [*args, *(result if isinstance(result, (tuple, list)) else [result])]
            self.passes += sum(isinstance(t, torch.Tensor) and t.numel() == self.size for t in tensors)
        return result


def test_command_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "blocks", "--rounds", "0"]) == 2
    assert "--rounds: must be at least 1" in capsys.readouterr().err
    for option in ("--nl-rounds", "--model-rounds"):
        assert main(["benchmark", "blocks", option, "-1"]) == 2
        assert f"{option}: must be at least 0" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["benchmark", "blocks", "--device", "cuda"]) == 2
        assert "torch finds no GPU" in capsys.readouterr().err
        assert main(["benchmark", "device"]) == 2
        assert "benchmark device: needs an NVIDIA GPU, and torch finds none" in capsys.readouterr().err
