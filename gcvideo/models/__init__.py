"""Named networks.

``create_model("slow_r50_gc_c345", num_classes=10)`` builds one of ``MODELS``; overrides are fields of ``ModelConfig``.
"""

import dataclasses
from typing import Any, cast

from gcvideo.config import ContextConfig, ModelConfig, config_from_dict
from gcvideo.errors import ConfigError, nearest
from gcvideo.models.resnet3d import ResNet3d, build_model

__all__ = ["MODELS", "ResNet3d", "build_model", "create_model", "model_config"]

# Five blocks in every other residual block of c3 and c4 (Wang et al. 2018, table 2c); in a ResNet-101 at the places of
# the authors' Caffe2 code.
FIVE = {
    34: {"res3": [1, 3], "res4": [1, 3, 5]},
    50: {"res3": [1, 3], "res4": [1, 3, 5]},
    101: {"res3": [1, 3], "res4": [6, 13, 20]},
}
C345 = {"res3": "all", "res4": "all", "res5": "all"}
RESNEXT = {"groups": 32, "width_per_group": 4}


def _named_models() -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = {}
    for arch in ("slow", "i3d", "c2d"):
        for depth in (18, 34, 50, 101, 152):
            base = {"arch": arch, "depth": depth}
            models[f"{arch}_r{depth}"] = base
            if depth in FIVE:
                for kind in ("nl", "snl", "gc"):
                    models[f"{arch}_r{depth}_{kind}5"] = {**base, "context": {"kind": kind, "stages": FIVE[depth]}}
            for kind in ("gc", "se"):
                models[f"{arch}_r{depth}_{kind}_c345"] = {**base, "context": {"kind": kind, "stages": C345}}
        for depth in (50, 101):
            base = {"arch": arch, "depth": depth, **RESNEXT}
            models[f"{arch}_x{depth}_32x4d"] = base
            models[f"{arch}_x{depth}_32x4d_gc_c345"] = {**base, "context": {"kind": "gc", "stages": C345}}
    return models


# Name -> arguments of ModelConfig; `context` holds arguments of ContextConfig.
MODELS = _named_models()


def create_model(name: str, *, num_classes: int = 400, **overrides: Any) -> ResNet3d:
    """Named network with fresh weights, or with those of a file.

    Args:
        name: a key of ``MODELS``, for example "slow_r50_gc_c345".
        num_classes: width of the output.
        **overrides: fields of ``ModelConfig``, for example ``width=16, depth=18, dropout=0.0``. ``context`` may be a
            dict that changes fields of the name's own context: ``context={"reduction": 16}``. ``weights`` is a file, a
            run folder or ``hf:org/name``, loaded as ``model.weights`` is before a training.

    Returns:
        the network, in training mode.

    Raises:
        ConfigError: an unknown name or field, with the nearest ones, or values that contradict each other.
        CheckpointError: the weights cannot be read, or do not fit.
    """
    model = cast(ResNet3d, build_model(model_config(name, num_classes=num_classes, **overrides)))
    if model.config.weights is not None:
        from gcvideo.weights import load_initial_weights  # it imports this package

        load_initial_weights(model, model.config.weights)
    return model


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """Config of a named network; the arguments are those of ``create_model``."""
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}{nearest(name, MODELS) or '; gcvideo.models.MODELS lists them'}")
    context = overrides.pop("context", {})
    if isinstance(context, ContextConfig):
        context = dataclasses.asdict(context)
    fields = {**MODELS[name], **overrides, "context": {**MODELS[name].get("context", {}), **context}}
    return config_from_dict({"name": name, "model": fields}, where=f"model {name}").model
