"""Loading of configs: YAML files with ``_base_`` and ``key=value`` overrides into the dataclasses of ``schema``.

``load_config`` reads the file and its bases, merges the overrides, checks every key and type through an OmegaConf
structured config and returns plain dataclasses whose ``__post_init__`` rejects values that contradict each other. Every
error is a one-line ``ConfigError`` that names the file, the key and the nearest key that exists.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gcvideo.config.checks import nearest
from gcvideo.config.schema import RunConfig
from gcvideo.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Config of a file, its bases and ``key=value`` overrides.

    Args:
        path: a YAML file, or the name of a shipped one ("kinetics400/slow_r50_8x8.yaml").
        overrides: for example ``["optim.lr=0.02", "model.context.kind=gc"]``.

    Raises:
        ConfigError: one line, naming the file (or override), the key, and the nearest one that exists.
    """
    merged = OmegaConf.structured(RunConfig)
    path = find_config(path)
    for file, values in _with_bases(path):
        merged = _merge(merged, values, where=str(file))
    merged = _override(merged, overrides)
    if OmegaConf.is_missing(merged, "name"):
        merged.name = path.stem
    return _to_config(merged, where=str(path))


def save_config(config: RunConfig, path: str | Path) -> None:
    """Save the resolved config as YAML that ``load_config`` reads back."""
    Path(path).write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Config as plain dicts, lists and scalars: safe inside a checkpoint, JSON or YAML."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))  # tuples become lists


def config_from_dict(values: dict[str, Any], *, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Config from ``config_to_dict``'s values and ``key=value`` overrides; ``where`` names the source in errors."""
    merged = _merge(OmegaConf.structured(RunConfig), values, where=where)
    return _to_config(_override(merged, overrides), where=where)


def find_config(path: str | Path) -> Path:
    """Path of a config: the file itself, or a shipped config of that name."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    shipped = shipped_configs()
    if (shipped / path).is_file():
        return shipped / path
    names = [str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml")]
    raise ConfigError(f"{path}: no such config file{nearest(str(path), names)}")


def shipped_configs() -> Path:
    """Folder of the shipped configs, ``configs/``: beside the package in a source tree, inside it once installed."""
    package = Path(__file__).parent.parent
    beside = package.parent / "configs"
    return beside if beside.is_dir() and (package.parent / "setup.cfg").is_file() else package / "configs"


def _with_bases(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (file, values), the farthest base first."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: _base_ refers back to itself through {' -> '.join(p.name for p in seen)}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path)) if path.read_text().strip() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    base = values.pop("_base_", None)
    for name in [base] if isinstance(base, str) else base or []:
        if not (path.parent / str(name)).is_file():
            raise ConfigError(f"{path}: _base_ file {name!r} does not exist in {path.parent}")
        yield from _with_bases(path.parent / str(name), (*seen, path))
    yield path, typing.cast(dict[str, Any], values)


def _to_config(merged: Any, *, where: str) -> RunConfig:
    try:
        return typing.cast(RunConfig, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, ConfigError) as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from None


def _override(config: Any, overrides: Sequence[str]) -> Any:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r}: write key=value, for example optim.lr=0.02")
        try:
            values = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(f"override {override!r}: {_first_line(error)}") from None
        config = _merge(config, values, where=f"override {override!r}")
    return config


def _merge(config: Any, values: Any, *, where: str) -> Any:
    check_keys(RunConfig, values, where=where)
    try:
        # Each source replaces the places of blocks as a whole instead of adding to those of its bases.
        if "stages" in (values.get("model") or {}).get("context", {}):
            config.model.context.stages = {}
        return OmegaConf.merge(config, values)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise ConfigError(f"{where}: {key}: {_first_line(error)}") from None


def check_keys(schema: type, values: Any, *, where: str, prefix: str = "") -> None:
    """Refuse keys that the dataclass does not have, naming the nearest one that exists."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {prefix.rstrip('.')}: expected `key: value` lines, got {values!r}")
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {prefix}{key}{_nearest_key(str(key), prefix, list(hints))}")
        if dataclasses.is_dataclass(hints[key]):
            check_keys(typing.cast(type, hints[key]), value, where=where, prefix=f"{prefix}{key}.")


def _nearest_key(name: str, prefix: str, siblings: list[str]) -> str:
    """The nearest key of the same section, else of another section, as the end of an error message."""
    own = difflib.get_close_matches(name, siblings, n=1)
    keys = {key.rpartition(".")[2]: key for key in reversed(list(_all_keys(RunConfig)))}
    near = [f"{prefix}{key}" for key in own] or [
        keys[k] for k in difflib.get_close_matches(name, keys, n=1, cutoff=0.75)
    ]
    return f"; did you mean {near[0]!r}?" if near else "; gcvideo train --help-config lists the keys"


def _all_keys(schema: type, prefix: str = "") -> Iterator[str]:
    for key, hint in typing.get_type_hints(schema).items():
        yield f"{prefix}{key}"
        if dataclasses.is_dataclass(hint):
            yield from _all_keys(typing.cast(type, hint), f"{prefix}{key}.")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, yaml.YAMLError):
        return " ".join(text.split())  # the line number comes last
    return text.splitlines()[0] if text else type(error).__name__
