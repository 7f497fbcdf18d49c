"""Exported network: an ONNX file or an exported program that runs in the place of the network it was made from.

The file's entry ``gcvideo`` (a metadata property of ONNX, an extra file of an exported program) is JSON:

================ =====================================================================================================
``format``       1
``classes``      class names in label order, or null
``activation``   "softmax" or, where a video may have several labels, "sigmoid": what makes scores of logits
``thresholds``   with "sigmoid": scores (K,) above which a class is a label; else null
``clip``         [3, T, H, W] of the views that it was exported for
``dynamic``      the dimensions that may differ from ``clip``: {"T": {"least": 2, "multiple": 1}, ...}; N always may
``precision``    "fp32", "fp16", "bf16" or "int8": of weights and arithmetic; clips and logits are float32
``model``        config of the network
``data``         ``frames``, ``stride``, ``target_fps``: frames of a clip; ``mean``, ``std`` for pixels in [0, 1]
``test``         ``clips``, ``crops``, ``short_side``, ``crop``, ``whole_frame``, ``convention``, ``ensemble``: views
================ =====================================================================================================
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from gcvideo.device import pick_device
from gcvideo.errors import CheckpointError, ConfigError, InputShapeError

METADATA = "gcvideo"
FORMAT = 1
SUFFIXES = (".onnx", ".pt2")
CPU = torch.device("cpu")
Run = Callable[[Tensor], Tensor]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines and warnings of exporters and engines about their own work."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class ExportedNetwork(nn.Module):
    """Network of an exported file: clips (N, 3, T, H, W) float32 in, logits (N, K) float32 out; no gradients or layers.

    Args:
        content: of the file.
        suffix: ``.onnx`` or ``.pt2``.
        name: of the file, for errors.
        device: the GPU needs onnxruntime-gpu for ONNX.
        engine: of ONNX: ``onnxruntime`` or ``openvino``.

    Attributes:
        about: the file's entry ``gcvideo``, see the module's table.

    Raises:
        CheckpointError: the file cannot be read, or ``gcvideo export`` did not write it.
        ConfigError: the engine is not installed, or not for this device.
    """

    def __init__(
        self, content: bytes, *, suffix: str, name: str, device: torch.device = CPU, engine: str = "onnxruntime"
    ) -> None:
        super().__init__()
        if device.type != "cpu" and not _has_gpu(suffix, engine):
            raise ConfigError(f"{name}: {engine} has no GPU here: pip install onnxruntime-gpu, or run on the CPU")
        opened = _open_program if suffix == ".pt2" else ENGINES[engine]
        try:
            with quiet():
                self._run, text = opened(content, device)
        except ImportError as error:
            raise ConfigError(f"{name}: {error}; pip install 'gcvideo[export,openvino]'") from None
        except Exception as error:  # each engine has its own
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise CheckpointError(f"{name}: damaged, or not a {suffix} file: {reason}") from None
        self.name = name
        self.about: dict[str, Any] = json.loads(text or "{}")
        if self.about.get("format") != FORMAT:
            raise CheckpointError(f"{name}: was not written by this gcvideo; export it again, or update gcvideo")
        # Tells where clips go: onnxruntime and OpenVINO take them from the CPU.
        self.place = nn.Parameter(torch.empty(0, device=device if suffix == ".pt2" else CPU), requires_grad=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (N, K) of clips.

        Raises:
            InputShapeError: the file does not take clips of this shape.
        """
        _, *sizes = self.about["clip"]
        for dim, size, given in zip("THW", sizes, clips.shape[2:], strict=True):
            limits = self.about["dynamic"].get(dim)
            if given != size if limits is None else given < limits["least"] or given % limits["multiple"]:
                wanted = size if limits is None else f"{limits['least']} or more, a multiple of {limits['multiple']}"
                raise InputShapeError(f"{self.name}: takes clips whose {dim} is {wanted}, not {(*clips.shape,)}")
        return self._run(clips)


def _open_onnxruntime(content: bytes, device: torch.device) -> tuple[Run, str | None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type != "cpu":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": str(device.index or 0), "use_tf32": "0"}))
    session = onnxruntime.InferenceSession(content, options, providers=providers)

    def run(clips: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"clips": clips.cpu().contiguous().numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA)


def _open_openvino(content: bytes, device: torch.device) -> tuple[Run, str | None]:
    import openvino

    model = openvino.Core().read_model(content)
    # Else it would compute in bfloat16 where that is faster.
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", options)

    def run(clips: Tensor) -> Tensor:
        return torch.from_numpy(compiled(clips.contiguous().numpy())[0].copy())

    entry = ["framework", METADATA]
    return run, model.get_rt_info(entry).astype(str) if model.has_rt_info(entry) else None


def _open_program(content: bytes, device: torch.device) -> tuple[Run, str | None]:
    files = {METADATA: ""}
    program = torch.export.load(io.BytesIO(content), extra_files=files)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    module = program.module()
    # A function, for such a module has no eval() and must not become part of another one.
    return lambda clips: module(clips), files[METADATA]


ENGINES = {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}


def open_exported(path: Path, *, device: torch.device | str = CPU, engine: str = "onnxruntime") -> ExportedNetwork:
    """Network of an exported file; for the arguments see ``ExportedNetwork``.

    Args:
        device: ``auto`` is the GPU if there is one that the engine can use.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such exported file")
    if not isinstance(device, torch.device):
        device = CPU if device == "auto" and not _has_gpu(path.suffix, engine) else pick_device(device)
    return ExportedNetwork(path.read_bytes(), suffix=path.suffix, name=str(path), device=device, engine=engine)


def _has_gpu(suffix: str, engine: str) -> bool:
    """Whether what runs a file can use a GPU."""
    if suffix == ".onnx" and engine == "onnxruntime" and find_spec("onnxruntime"):
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return suffix == ".pt2"
