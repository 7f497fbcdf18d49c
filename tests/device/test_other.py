"""Training and prediction on a device that is neither a CPU nor CUDA, as Apple's ``mps``; and who names CUDA."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml

from gcvideo import device as runtime
from gcvideo.data.worker_pool import WorkerPool
from gcvideo.train.logger import announce
from gcvideo.train.trainer import Trainer
from tests.device.conftest import ROOT
from tests.tiny import tiny_checkpoint, tiny_videos
from tests.training import make_videos, train_config

CASES = ("plain", "gc", "nl", "ema")
# Where CUDA is the matter: streams and graphs, the processes' backend, the name of the device in configs.
MAY_NAME_CUDA = ("device.py", "capture.py", "distributed.py", "benchmark/", "config/schema.py")


def mps_kernels() -> set[str]:
    """Operators with a kernel for MPS in this torch, or one for all devices."""
    text = (files("torchgen") / "packaged/ATen/native/native_functions.yaml").read_text()
    entries = {entry["func"].partition("(")[0]: entry for entry in yaml.load(text, Loader=yaml.CSafeLoader)}
    keys = {
        name: " ".join(entries[entry.get("structured_delegate", name)].get("dispatch", {"Composite": ""}))
        for name, entry in entries.items()
    }
    return {name for name, devices in keys.items() if re.search(r"\bMPS\b|Composite", devices)}


@pytest.mark.slow
def test_another_device_trains_and_predicts_like_the_cpu_without_float64(tmp_path: Path) -> None:
    """With operators that MPS has. The device refuses float64, as MPS does."""
    tiny_videos(tmp_path, 1)
    tiny_checkpoint(tmp_path)
    command = [sys.executable, "-m", "tests.device.other", str(tmp_path), *CASES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    line = next((line for line in done.stdout.splitlines() if line.startswith("OTHER ")), None)
    assert line is not None, done.stderr[-3000:]
    found = json.loads(line[6:])
    assert found["differs"].keys() == {*CASES, "predict", "analyze"}
    assert max(found["differs"].values()) < 1e-5
    used = {name.removeprefix("aten.").removesuffix(".default") for name in found["operators"]}
    assert used - mps_kernels() == set()


def test_only_the_rooms_of_the_gpu_name_cuda() -> None:
    """As an attribute (``torch.cuda``, ``is_cuda``) or a text; options whose name has it are meant for it."""
    found = []
    for path in sorted((ROOT / "gcvideo").rglob("*.py")):
        place = path.relative_to(ROOT / "gcvideo").as_posix()
        for node in () if place.startswith(MAY_NAME_CUDA) else ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
            if name in ("cuda", "is_cuda", "mps", "is_mps"):
                found.append(f"{place}:{node.lineno}")  # type: ignore[attr-defined]
    assert found == []


def test_apples_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    mps = torch.device("mps", 0)
    assert runtime.pick_device("auto") == runtime.pick_device("mps") == mps
    assert runtime.pick_device("cpu") == torch.device("cpu")
    assert runtime.pick_precision("auto", mps) == "fp32"
    assert runtime.pick_memory_format(None, "bf16", mps) == torch.contiguous_format
    assert runtime.describe(mps, "fp32") == "GPU of Apple, fp32"


def test_workers_do_without_what_only_linux_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anonymous files in memory, and the size of a process: macOS has neither."""
    exists = os.path.exists
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/proc" and exists(path))
    pool = WorkerPool[int, torch.Tensor](
        lambda task, hold: torch.full((3,), task), workers=1, on_death=print, memory_limit=2**34
    )
    assert [int(result.sum()) for result in pool.map([1, 2])] == [3, 6]


def test_a_training_without_decord_says_who_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gcvideo.video.reader.has_decord", lambda: False)
    parts = Trainer(train_config(make_videos(tmp_path), "run", data={"workers": 0})).build()
    announce(parts.state, parts.train_set, parts.val_set)
    assert "PyAV reads all videos: decord is not installed" in capsys.readouterr().out
