"""Published network: a folder with ``config.yaml``, ``model.safetensors`` and a model card, ``README.md``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from gcvideo import __version__
from gcvideo.config import DataConfig, RunConfig, config_to_dict, is_path, save_config
from gcvideo.console import percent
from gcvideo.errors import ConfigError
from gcvideo.eval.trained import TrainedNetwork
from gcvideo.files import hash_file, write_atomically
from gcvideo.weights.reading import CARD, CONFIG, PREFIX, WEIGHTS, write_weights

# Keys of ``data`` that name places or belong to the machine.
OF_THE_MACHINE = ("train", "val", "test", "classes", "quarantine", "workers", "backend", "worker_memory")


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
