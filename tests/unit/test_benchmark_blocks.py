"""The benchmark of blocks: its peers are the same functions, its figures what they say they are, its command runs."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from gcvideo.analysis import blocks
from gcvideo.analysis.block_peers import PortedContextBlock, pytorchvideo_non_local
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


def test_memory_of_the_non_local_block_is_linear() -> None:
    assert blocks.memory_exponent((8, 24)) == pytest.approx(1, abs=0.01)


def test_the_watch_sees_matrices_of_all_pairs() -> None:
    x = torch.randn(1, 6, 4, requires_grad=True)
    with blocks._LargestTensor() as watch:
        (x @ x.transpose(1, 2)).softmax(2).sum().backward()
    assert watch.elements == 36


def row(stage: str, layout: str, dtype: str, batch: int = 8, **ratios: float) -> dict:
    values = {"forward.floor": 1.0, "train.floor": 1.0, "train.port": 1.0}
    return {"stage": stage, "layout": layout, "dtype": dtype, "batch": batch, **values, **ratios}


def test_figures_are_medians_over_stages_of_the_worst_layout() -> None:
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
    figures = blocks.gc_figures(rows)
    assert figures["gc.forward.floor"] == pytest.approx(1.3)
    assert figures["gc.forward.floor.worst"] == 2.9
    assert figures["gc.train.floor.fp32"] == pytest.approx(2.1)
    assert figures["gc.train.floor.bf16"] == 3.0
    assert figures["gc.train.port"] == 9.0


def test_figures_of_the_rivals_are_those_of_res3() -> None:
    keys = ("nl.forward.peer", "gc.train.own_nl", "gc.train.peer_nl", "difference")
    rows = [
        {"stage": stage, "dtype": dtype, **dict(zip(keys, values, strict=True))}
        for stage, dtype, values in (
            ("res3", "fp32", (1.0, 40.0, 120.0, 1e-6)),
            ("res3", "bf16", (5.0, 50.0, 101.0, 1e-2)),
            ("res4", "fp32", (9.0, 1.0, 1.0, 1.0)),
        )
    ]
    expected = {"nl.forward.peer": 5.0, "nl.forward.peer.fp32": 1.0, "nl.forward.peer.difference": 1e-2}
    assert blocks.non_local_figures(rows) == {**expected, "gc.train.own_nl": 40.0, "gc.train.peer_nl": 101.0}
    assert blocks.non_local_figures(rows[2:]) == {}


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(blocks, "STAGES", {"res3": (8, 2, 4, 4), "res4": (16, 2, 2, 2)})
    out = tmp_path / "blocks.json"
    arguments = ["--rounds", "1", "--nl-rounds", "1", "--model-rounds", "0", "--batch", "1", "2", "--json", str(out)]
    assert main(["benchmark", "blocks", *arguments]) == 0
    result = json.loads(out.read_text())
    assert set(blocks.GOALS) - set(result["figures"]) == {"gc.model.overhead"}
    assert all(value > 0 for value in result["figures"].values())
    assert result["figures"]["nl.forward.peer.difference"] < 0.05
    assert len(result["gc"]) == 16
    assert {"stage", "batch", "layout", "dtype", "ms", "train.floor"} <= set(result["gc"][0])
    assert "gc.train.port" in capsys.readouterr().out


def test_command_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "blocks", "--rounds", "0"]) == 2
    assert "--rounds: must be 1 or more" in capsys.readouterr().err
