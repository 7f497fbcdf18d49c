"""Export a network: as ONNX or an exported program of PyTorch, checked against it; quantised; as a folder to publish.

A published network is a folder with ``config.yaml``, ``model.safetensors`` and a model card, ``README.md``.
"""

import contextlib
import copy
import importlib.util
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gcvideo import __version__
from gcvideo.config import DataConfig, RunConfig, config_to_dict, is_path, save_config
from gcvideo.console import percent
from gcvideo.data.annotations import load_records
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ViewDataset, make_views
from gcvideo.data.loader import eval_loader
from gcvideo.errors import ConfigError, DataError, InputShapeError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.optimize import fold_batch_norms, to_half
from gcvideo.eval.trained import TrainedNetwork, test_records
from gcvideo.files import hash_file, write_atomically
from gcvideo.predict.exported import FORMAT, METADATA, ExportedNetwork, quiet
from gcvideo.weights.reading import CARD, CONFIG, PREFIX, WEIGHTS, write_weights

# Smallest sizes to try of a dimension that may vary: some layers make a special case of a single position.
LEAST = {"T": (1, 2, 4, 8), "H": (32, 64, 128, 256), "W": (32, 64, 128, 256)}
# --half: the type of weights and activations. onnxruntime has no bfloat16 convolutions, and PyTorch's in float16 are
# slow on most CPUs.
HALF = {".onnx": ("fp16", torch.float16), ".pt2": ("bf16", torch.bfloat16)}
MOST_VIDEOS = 64  # to calibrate with
# --int8: convolutions and what lies between them. The softmax of attention and layer norms stay in float32, and so does
# the last layer, which costs next to nothing and decides.
QUANTISED = ["Conv", "Add", "Relu", "MaxPool"]
# Keys of ``data`` that name places or belong to the machine.
OF_THE_MACHINE = ("train", "val", "test", "classes", "quarantine", "workers", "backend", "worker_memory")


def export_network(
    model: nn.Module,
    config: RunConfig,
    *,
    format: str,
    classes: Sequence[str] | None = None,
    thresholds: Sequence[float] | None = None,
    dynamic: Sequence[str] | None = None,
    half: bool = False,
) -> tuple[bytes, dict[str, Any], float]:
    """Export a network with an open batch size, its batch norms folded.

    Args:
        model: (N, 3, data.frames, test.crop, test.crop) float32 -> (N, classes), in evaluation mode, on the CPU.
        config: of the run.
        format: ``.onnx`` or ``.pt2``.
        classes: names in label order.
        thresholds: of the scores, where a video has several labels.
        dynamic: which of T, H and W may vary; by default all that the network allows.
        half: weights and activations of half the size, see ``HALF``; clips, the last layer and logits stay float32.

    Returns:
        the content of the file; its entry ``gcvideo``, see ``gcvideo.predict.exported``; and its relative error on
        random clips, see ``compare``.

    Raises:
        InputShapeError: the network does not take such clips.
        ConfigError: a package for ONNX is missing, or a dimension cannot vary.
    """
    if format == ".onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        raise ConfigError("ONNX export needs further packages: pip install 'gcvideo[export]'")
    network = fold_batch_norms(copy.deepcopy(model).eval())
    precision, dtype = HALF[format] if half else ("fp32", torch.float32)
    sizes = {"T": config.data.frames, "H": config.test.crop, "W": config.test.crop}
    if half:
        network = HalfPrecision(network, dtype)
    pairs = not is_path(config.model.arch) and config.model.arch != "slow"  # see ResNet3d.check_input
    program, limits = _trace(network, sizes, dynamic, multiples={"T": 2 if pairs else 1, "H": 1, "W": 1})
    values = config_to_dict(config)
    about = {
        "format": FORMAT,
        "classes": classes and list(classes),
        "activation": "sigmoid" if config.model.multi_label else "softmax",
        "thresholds": thresholds and list(thresholds),
        "clip": [3, *sizes.values()],
        "dynamic": limits,
        "precision": precision,
        "model": {**values["model"], "weights": None},
        "data": {key: values["data"][key] for key in ("frames", "stride", "target_fps", "mean", "std")},
        "test": {key: value for key, value in values["test"].items() if key != "views_per_batch"},
    }
    content = (_to_onnx if format == ".onnx" else _to_pt2)(program, about)
    return content, about, compare(model, content, format=format)


class HalfPrecision(nn.Module):
    """A network in float16 or bfloat16 for clips and logits in float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        to_half(network, dtype)

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(clips.to(self.dtype)).float()


def compare(model: nn.Module, content: bytes, *, format: str) -> float:
    """The largest difference from the network's logits on random clips, in batches of one and three, and in the
    smallest and in larger sizes where these may vary.

    Returns:
        relative to the largest logit, or to 1 where all are smaller; NaN where a logit is not finite.
    """
    exported = ExportedNetwork(content, suffix=format, name="the exported file")
    _, *clip = exported.about["clip"]
    least, larger = list(clip), list(clip)
    for dim, limit in exported.about["dynamic"].items():
        least["THW".index(dim)] = limit["least"]
        larger["THW".index(dim)] += 2 * limit["multiple"]
    generator = torch.Generator().manual_seed(0)
    differences = []
    for shape in sorted({(1, *clip), (3, *clip), (2, *least), (2, *larger)}):
        clips = torch.randn(shape[0], 3, *shape[1:], generator=generator)
        with torch.no_grad():
            expected, logits = model(clips), exported(clips)
        differences.append((logits - expected).abs().max() / expected.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())


def _trace(
    network: nn.Module, sizes: dict[str, int], dynamic: Sequence[str] | None, *, multiples: dict[str, int]
) -> tuple[ExportedProgram, dict[str, dict[str, int]]]:
    """The exported program, and the limits of those of T, H and W that may vary in it, found by running it."""
    wanted = [dim for dim in sizes if dynamic is None or dim in dynamic]
    # Sizes that are large enough for every layer, and all different, so that none is taken for another.
    roomy = {"T": max(sizes["T"], 4), "H": max(sizes["H"], 128), "W": max(sizes["W"], 128) + 32}
    example = torch.zeros(2, 3, *(roomy[dim] if dim in wanted else size for dim, size in sizes.items()))
    free = {0: Dim("batch", min=1), **{2 + "THW".index(dim): Dim.AUTO for dim in wanted}}
    least: dict[str, int] = {}
    try:
        with torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=(free,))
    except Exception as error:
        if not wanted or isinstance(error, InputShapeError):
            raise
    else:
        nodes, inputs = program.graph.nodes, program.graph_signature.user_inputs
        shape = next(node.meta["val"].shape for node in nodes if node.name in inputs)
        varying = [dim for dim in wanted if not isinstance(shape[2 + "THW".index(dim)], int)]
        least = {dim: LEAST[dim][-1] for dim in varying}
        run = program.module()
        for dim in varying:
            for size in (size for size in LEAST[dim] if size % multiples[dim] == 0):
                with torch.no_grad(), contextlib.suppress(RuntimeError, AssertionError):  # a guard of the program
                    run(torch.zeros(1, 3, *{**sizes, **least, dim: size}.values()))
                    least[dim] = size
                    break
    found = [dim for dim in least if sizes[dim] >= least[dim]]
    if found == wanted:
        return program, {dim: {"least": least[dim], "multiple": multiples[dim]} for dim in found}
    if dynamic is None:
        return _trace(network, sizes, found, multiples=multiples)
    limits = ", ".join(f"{dim} from {size}" for dim, size in least.items()) or "one size only"
    raise ConfigError(f"--dynamic {' '.join(wanted)}: the network takes {limits}; the clips are {sizes}")


def _to_pt2(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """The bytes of a file for ``torch.export.load``; the metadata is its extra file ``gcvideo``."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def _to_onnx(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    """The bytes of an ONNX file, input ``clips``, output ``logits``; the metadata is its property ``gcvideo``."""
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["clips"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch", **{2 + "THW".index(dim): dim for dim in metadata["dynamic"]}},),
            custom_translation_table={torch.ops.aten.searchsorted.Tensor: _searchsorted()},
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props[METADATA] = json.dumps(metadata)
    return exported.model_proto.SerializeToString()


def _searchsorted() -> Any:
    """``torch.searchsorted`` in ONNX operators, for the concatenation form of the non-local block.

    ONNX has no such operator: the place of a value is the number of entries below it, counted over all pairs.
    """
    from onnxscript import INT64, opset18

    op: Any = opset18

    def count_below(ordered: Any, values: Any, **options: Any) -> Any:  # (N, K), (N, Q) -> (N, Q)
        below = op.Less(op.Unsqueeze(ordered, [1]), op.Unsqueeze(values, [2]))  # (N, Q, K)
        return op.ReduceSum(op.Cast(below, to=INT64.dtype), [2], keepdims=0)

    return count_below


def quantize(
    content: bytes, about: dict[str, Any], config: RunConfig, place: str | None
) -> tuple[bytes, dict[str, Any]]:
    """An ONNX file with weights and activations of 8 bits, by onnxruntime: scales from the extremes on the videos.

    Args:
        content: of a file in float32.
        about: its entry ``gcvideo``.
        config: of the run.
        place: videos to calibrate with, of which at most ``MOST_VIDEOS``, evenly spaced, are taken: an annotation, a
            folder of class folders, or a folder of videos; None: the validation videos of the run. The middle clip of
            each is seen.

    Returns:
        the content of the new file, and what changed on these videos: accuracy before and after (None where they have
        no labels), the share with the same best label, and the mean and largest difference of scores in [0, 1].

    Raises:
        DataError: there are no videos, or none can be read.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    records = load_records(place, classes=about["classes"]) if place else test_records(config, about["classes"])
    records = records.select(np.linspace(0, len(records) - 1, min(len(records), MOST_VIDEOS)).round())
    convention: Any = "pyslowfast_offset" if config.test.convention == "pyslowfast" else config.test.convention
    test = replace(config.test, clips=1, crops=1, convention=convention)
    found = list(eval_loader(ViewDataset(records, data=config.data, test=test)))
    failures = [views.failure for views in found if views.failure is not None]
    if len(failures) == len(found):
        raise DataError(f"--int8: no video can be read; {failures[0].path}: {failures[0].reason}")
    videos = [views for views in found if views.failure is None]
    clips = (normalize(make_views(views), mean=config.data.mean, std=config.data.std).numpy() for views in videos)
    inputs = ({"clips": clip} for clip in clips)  # (1, 3, T, H, W) each
    reader: Any = SimpleNamespace(get_next=lambda: next(inputs, None))  # all that a CalibrationDataReader has
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        source.write_bytes(content)
        options = {"quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt8, "per_channel": True}
        with quiet():  # it advises a step that the folded batch norms make needless
            quantize_static(source, target, reader, op_types_to_quantize=QUANTISED, **options)
        model = onnx.load(target)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA)
    entry.value = json.dumps({**about, "precision": "int8"})
    quantised = model.SerializeToString()
    networks = (ExportedNetwork(file, suffix=".onnx", name="the exported file") for file in (content, quantised))
    how: Any = {"test": test, "data": config.data, "multi_label": config.model.multi_label}
    before, after = (evaluate(network, videos, **how) for network in networks)
    difference = np.abs(after.averages["softmax"] - before.averages["softmax"])
    return quantised, {
        "videos": len(before),
        "top1_before": before.accuracy().get("video", {}).get("top1"),
        "top1_after": after.accuracy().get("video", {}).get("top1"),
        "same_label": float((before.scores.argmax(axis=1) == after.scores.argmax(axis=1)).mean()),
        "mean_difference": float(difference.mean()),
        "largest_difference": float(difference.max()),
    }


def save_pretrained(network: TrainedNetwork, folder: str | Path, *, repository: str | None = None) -> None:
    """Write a network as a folder to publish, which ``gcvideo.load`` reads; paths of the machine are left out.

    The card is filled from the run: its accuracy is that of ``results.json`` if this very checkpoint was tested.

    Args:
        network: from a checkpoint.
        folder: new or empty.
        repository: ``org/name`` on the Hub, for the card.

    Raises:
        ConfigError: the folder holds something.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; give a new folder")
    state = {key: network.checkpoint.get(key) for key in ("classes", "fingerprint", "epoch", "step", "best")}
    state["thresholds"] = network.thresholds
    card = _card(network, state, f"{PREFIX}{repository}" if repository else str(folder))
    write_weights(folder / WEIGHTS, {"model": network.model.state_dict(), **state})
    save_config(shareable(network.config), folder / CONFIG)
    write_atomically(folder / CARD, card.encode())


def shareable(config: RunConfig) -> RunConfig:
    """Config without the places and settings of the machine that it ran on."""
    fresh = DataConfig()
    data = replace(config.data, **{name: getattr(fresh, name) for name in OF_THE_MACHINE})
    return replace(config, output="runs", device="auto", data=data, model=replace(config.model, weights=None))


def _card(network: TrainedNetwork, state: dict[str, Any], place: str) -> str:
    config = network.config
    model = config.model
    blocks = "" if model.context.kind == "none" else f" with {model.context.kind} blocks in {model.context.stages}"
    # The accuracy of the run, if this very checkpoint was tested.
    file = network.run_folder / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    tested = results.get("checkpoint", {}).get("sha256")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), trim_blocks=True)
    return environment.get_template("model_card.md.j2").render(
        **{**state, "classes": state["classes"] or []},
        name=place.removeprefix(PREFIX).rpartition("/")[2],
        place=place,
        network=(model.arch if is_path(model.arch) else f"{model.arch}, ResNet-{model.depth}") + blocks,
        parameters=sum(parameter.numel() for parameter in network.model.parameters()),
        results=results if "video" in results and tested == hash_file(network.path) else None,
        percent=percent,
        version=__version__,
        **{key: config_to_dict(config)[key] for key in ("data", "model")},
    )
