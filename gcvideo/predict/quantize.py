"""Static quantisation of an exported ONNX file to 8-bit integers, calibrated on videos, and what it costs."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from gcvideo.config import RunConfig
from gcvideo.data.annotations import load_records
from gcvideo.data.crops import normalize
from gcvideo.data.dataset import ViewDataset, make_views
from gcvideo.data.loader import eval_loader
from gcvideo.errors import DataError
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.test_run import test_records
from gcvideo.predict.exported import METADATA, ExportedNetwork, quiet

MOST_VIDEOS = 64
# Convolutions and what lies between them. The softmax of attention and layer norms stay in float32, and so does the
# last layer, which costs next to nothing and decides.
QUANTISED = ["Conv", "Add", "Relu", "MaxPool"]


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
