"""Loading of weights into a network: the one place that does it.

``restore_model`` gives the network of a checkpoint; ``load_initial_weights`` starts a training from a file of weights
of any toolkit (``model.weights``).
"""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from gcvideo.config import RunConfig
from gcvideo.console import say
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.models.resnet3d import ResNet3d, build_model
from gcvideo.weights.convert import Report, find_naming, to_gcvideo
from gcvideo.weights.naming import GCVIDEO
from gcvideo.weights.reading import CONFIG, PREFIX, WEIGHTS, Weights, fetch, is_hub, read_weights, refuse_code

MOTION = "motion"  # the weights that come with gcvideo, see docs/motion.md
# Fields of ModelConfig that the shapes of a plain network's weights depend on.
BACKBONE = ("arch", "depth", "width", "groups", "width_per_group", "inflation", "temporal_kernels")


def find_checkpoint(place: str | Path) -> Path:
    """Path of a checkpoint: the file itself, or the best (else the last) checkpoint of a run folder.

    Args:
        place: may also be the folder of a published network, or ``hf:org/name`` on the Hugging Face Hub, which is
            downloaded: their weights are ``model.safetensors``.

    Raises:
        CheckpointError: the folder holds no checkpoint, or the Hub does not give it.
    """
    path = fetch(place) if is_hub(place) else Path(place).expanduser()
    if not path.is_dir():
        return path
    for name in ("checkpoints/best.pt", "checkpoints/last.pt", WEIGHTS):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{place}: neither checkpoints/best.pt nor checkpoints/last.pt in this folder, nor {WEIGHTS}")


def read_published(path: Path, place: str | Path) -> dict[str, Any]:
    """Content of a published network as that of a checkpoint: ``model``, ``config``, ``classes`` and so on.

    Args:
        path: of ``model.safetensors``; ``config.yaml`` lies beside it.
        place: that it was asked for by; from the Hub, own parts are refused.

    Raises:
        CheckpointError: a file is missing or damaged, or the config names own parts.
    """
    weights, file = read_weights(path), path.with_name(CONFIG)
    try:
        config = dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file}: is no config: {' '.join(str(error).split())[:200]}") from None
    name = path.parent.resolve().name
    if is_hub(place):
        name = str(place).removeprefix(PREFIX).replace("/", "--")
        refuse_code(config, place)
    return {**weights.extra, "model": weights.tensors, "config": {**config, "name": name}}


def restore_model(state: dict[str, Any], config: RunConfig, path: Path) -> nn.Module:
    """Network of a checkpoint, on the CPU, in training mode.

    Args:
        state: the checkpoint; its entry ``model`` holds the weights.
        config: of the run; own parts that it names by dotted path are imported, which runs their code.
        path: of the checkpoint, for errors.

    Raises:
        CheckpointError: the weights are not those of the config's network.
        ConfigError: an own part cannot be imported.
    """
    try:
        model = build_model(config.model)
        model.load_state_dict(state["model"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except RuntimeError as error:
        details = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CheckpointError(f"{path}: the weights do not fit the network of its config: {details[0][:200]}") from None
    return model


def load_initial_weights(model: nn.Module, place: str | Path, *, classes: Sequence[str] | None = None) -> Report:
    """Initial weights from a file into a network that is about to be trained; prints which layers stay fresh.

    The file may be a gcvideo checkpoint, a 2D ImageNet network with torchvision's or timm's keys (its kernels are
    inflated), or the checkpoint of another toolkit; its keys tell which. Two parts may be absent from it or not fit,
    and then start fresh: context blocks, so that they can be put into a trained plain network, which they do not change
    at first; and the head, where the number of classes differs. Where file and data both name their classes, the head
    keeps the rows of the classes of the same name, in the order of the data; other rows start fresh.

    Args:
        model: a ``ResNet3d`` or an own backbone (whose head, to be replaced, is called ``head``); changed in place.
        place: the file, or a run folder; or ``motion``, the weights from procedural motion that come with gcvideo, of
            which there are three: for frames, for differences of frames, and for these with GC blocks.
        classes: class names of the data, by label.

    Returns:
        the account of every tensor.

    Raises:
        CheckpointError: the file is unreadable or unsafe to read, or does not fill the network besides its head and
            context blocks. The model is then as it was.
    """
    own = model.state_dict()
    weights = read_weights(_motion_file(model) if str(place) == MOTION else find_checkpoint(place))
    naming = GCVIDEO
    if 2 * len(own.keys() & weights.tensors.keys()) < len(weights.tensors):  # not this network's own names
        naming = find_naming(weights.tensors, where=weights.path)
    state, report = to_gcvideo(weights.tensors, naming, model)
    _keep_named_rows(state, own, weights, classes, report)
    head = {key for key in own if key.startswith("head.")}
    if not head <= state.keys():
        state = {key: tensor for key, tensor in state.items() if key not in head}  # the whole head or nothing of it
    report.copied = list(state)
    report.source = f"{weights.path} ({naming.title})"
    report.missing = {key: "starts fresh" for key in own if key not in state}
    lacking = [key for key in report.missing if key not in head and ".context." not in key]
    if lacking:
        unused = next((f"; {key}: {reason}" for key, reason in report.unmatched.items()), "")
        raise CheckpointError(
            f"{weights.path}: has nothing for {lacking[0]} and {len(lacking) - 1} others of this network{unused}; set "
            f"{' '.join(_changes(model, weights, BACKBONE)) or 'model.* to the network that the file is of'}"
        )
    model.load_state_dict({**own, **state})
    report.notes += [f"the source was trained with {what}" for what in _changes(model, weights, ("frame_difference",))]
    for line in report.lines():
        say(f"initial weights: {line}")
    return report


def _motion_file(model: nn.Module) -> Path:
    """The weights from procedural motion that were trained with the input and the blocks of a network."""
    name = "motion_frames"
    if isinstance(model, ResNet3d) and model.config.frame_difference:
        name = "motion_gc" if model.config.context.kind == "gc" and model.config.context.stages else "motion"
    return Path(__file__).with_name(f"{name}.safetensors")


def _changes(model: nn.Module, weights: Weights, keys: Sequence[str]) -> list[str]:
    """Changes to fields of the config, as ``key=value``, that make its network that of a gcvideo checkpoint."""
    trained = weights.extra.get("config", {}).get("model", {})
    own = dataclasses.asdict(model.config) if isinstance(model, ResNet3d) else {}
    changed = [key for key in keys if key in own and trained.get(key, own[key]) != own[key]]
    return [shlex.quote(f"model.{key}={json.dumps(trained[key]).strip(chr(34))}") for key in changed]


def _keep_named_rows(
    state: dict[str, Tensor], own: dict[str, Tensor], weights: Weights, classes: Sequence[str] | None, report: Report
) -> None:
    """Sort the rows of the head by class name, where the source names its classes and the data others."""
    trained = weights.extra.get("classes")
    if not trained or not classes or list(classes) == list(trained):
        return
    rows = {name: index for index, name in enumerate(trained)}
    common = {label: rows[name] for label, name in enumerate(classes) if name in rows}
    for key in own:
        source = weights.tensors.get(key)
        if not key.startswith("head.") or source is None or source.shape[:1] != (len(trained),):
            continue
        state.pop(key, None)
        if common and own[key].shape == (len(classes), *source.shape[1:]):
            state[key] = own[key].clone()
            state[key][list(common)] = source[list(common.values())].to(own[key].dtype)
            report.unmatched.pop(key, None)
    kept = f"its head keeps the rows of {len(common)} of {len(classes)} classes by name, the others start fresh"
    report.notes.append(f"the source has other classes: {kept}")
