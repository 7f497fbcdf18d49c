"""A device that is neither a CPU nor CUDA, as ``mps``: tensors on it are computed on the CPU, and float64 is refused.

torch without MPS cannot make tensors that claim ``mps``, so this one is called ``apple``. It is a device of the whole
process, which should do nothing else: ``python -m tests.device.other FOLDER`` trains and tests tiny networks on it and
on the CPU, prints how far they differ as JSON, and which operators ran.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.device.fake_cuda import _apply

CPU = torch.device("cpu")


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class AppleTensor(Tensor):
    """Wraps a tensor on the CPU, ``raw``."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> AppleTensor:
        if raw.dtype == torch.float64:
            raise TypeError("the device has no float64")
        found: AppleTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            *(cls, raw.size(), raw.stride(), raw.storage_offset()), dtype=raw.dtype, device="apple:0"
        )
        found.raw = raw
        return found

    def tolist(self) -> Any:
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Apple.run(function, args, kwargs or {})


class Apple(TorchDispatchMode):
    """Takes what is made or moved to the device, too."""

    operators: ClassVar[set[str]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(function, args, kwargs or {})

    @classmethod
    def run(cls, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        wrappers: dict[int, AppleTensor] = {}

        def unwrap(wrapper: AppleTensor) -> Tensor:
            wrappers[id(wrapper.raw)] = wrapper
            return wrapper.raw

        raw_args, raw = tree_map_only(AppleTensor, unwrap, (args, kwargs))
        target = raw.get("device") or ("apple" if wrappers else "cpu")
        on_device = torch.device(target).type == "apple"
        if raw.get("device") is not None:
            raw = {**raw, "device": CPU, "pin_memory": False} if "pin_memory" in raw else {**raw, "device": CPU}
        if function is torch.ops.aten.copy_.default and not isinstance(args[0], AppleTensor):
            on_device = False
        found = function(*raw_args, **raw)
        if not on_device:
            return tree_map_only(Tensor, lambda tensor: tensor.clone() if id(tensor) in wrappers else tensor, found)
        cls.operators.add(str(function))
        return tree_map_only(
            Tensor, lambda tensor: wrappers[id(tensor)] if id(tensor) in wrappers else AppleTensor(tensor), found
        )


def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **rest: Any) -> AppleTensor:
    return AppleTensor(torch.empty_strided(size, stride, dtype=dtype))


def train(kind: str, device: torch.device) -> Tensor:
    """The weights after three steps."""
    from gcvideo.data.dataset import ClipBatch
    from gcvideo.train.step import TrainStep
    from tests.device.steps import CASES, tiny

    step = TrainStep(tiny(**CASES[kind]), device)
    step.train_mode()
    clips = torch.randint(0, 256, (4, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = ClipBatch(clips.to(device), torch.arange(4).to(device), torch.arange(4), [])
    for number in range(3):
        step.step(iter([batch]), number=number, lr=0.01)
    assert step.meter.read()["steps"] == 3
    assert step.precision == "fp32" or device == CPU
    return torch.cat([parameter.detach().flatten().cpu() for parameter in step.tested_network.parameters()])


def predict(folder: Path, device: torch.device) -> Tensor:
    """The scores of a video."""
    from gcvideo.eval.trained import load_trained
    from gcvideo.predict.predictor import Predictor

    network = load_trained(folder / "runs" / "tiny", device=device)
    model, precision = network.for_inference(precision="fp32" if device == CPU else "auto")
    assert precision == "fp32" or device == CPU
    predictor = Predictor(model, config=network.config, classes=network.classes)
    return torch.tensor([found.score for found in predictor.predict(folder / "video_0.mp4")])


def analyze(device: torch.device) -> Tensor:
    """Measures of attention maps; pairs of them are drawn."""
    from gcvideo.analysis.attention import mean_cosine_distance, mean_evenness, mean_js_divergence

    maps = torch.rand(300, 20, generator=torch.Generator().manual_seed(0)).softmax(1).to(device)
    found = mean_js_divergence(maps)
    return torch.tensor([found["jsd"], found["jsd_error"], mean_evenness(maps), mean_cosine_distance(maps)])


def main() -> None:
    _setup_privateuseone_for_python_backend("apple", backend_module=Backend())
    library = torch.library.Library("aten", "IMPL")  # what torch.tensor calls, past the modes
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", lambda source, target, non_blocking=False: target.raw.copy_(source), "PrivateUse1")
    apple, found = torch.device("apple", 0), {}
    with mock.patch.object(nn.Module, "_apply", _apply), Apple():
        for kind in sys.argv[2:]:
            one, other = train(kind, CPU), train(kind, apple)
            found[kind] = float((one - other).norm() / one.norm())
        one, other = predict(Path(sys.argv[1]), CPU), predict(Path(sys.argv[1]), apple)
        found["predict"] = float((one - other).norm() / one.norm())
        one, other = analyze(CPU), analyze(apple)
        found["analyze"] = float((one - other).norm() / one.norm())
    print("OTHER", json.dumps({"differs": found, "operators": sorted(Apple.operators)}))


if __name__ == "__main__":
    main()
