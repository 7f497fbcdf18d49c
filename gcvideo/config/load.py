"""Loading of configs: YAML files with ``_base_`` and ``key=value`` overrides into the dataclasses of ``schema``.

``load_config`` reads the file and its bases, merges the overrides, checks every key and type through an OmegaConf
structured config and returns plain dataclasses whose ``__post_init__`` rejects values that contradict each other. Every
error is a one-line ``ConfigError`` that names the file, the key and the nearest key that exists.
"""

import copy
import dataclasses
import functools
import json
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from gcvideo.config.data import AUGMENT_PRESETS, AugmentConfig
from gcvideo.config.reference import nearest_key
from gcvideo.config.schema import RunConfig
from gcvideo.errors import ConfigError, nearest


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Config of a file, its bases and ``key=value`` overrides.

    Args:
        path: a YAML file, or the name of a shipped one ("kinetics400/slow_r50_8x8.yaml").
        overrides: for example ``["optim.lr=0.02", "model.context.kind=gc"]``.

    Raises:
        ConfigError: one line, naming the file (or override), the key, and the nearest one that exists.
    """
    path = find_config(path)
    return _resolve([(str(path), {"name": path.stem}), *_with_bases(path)], overrides)


def save_config(config: RunConfig, path: str | Path) -> None:
    """Save the resolved config as YAML that ``load_config`` reads back."""
    Path(path).write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Config as plain dicts, lists and scalars: safe inside a checkpoint, JSON or YAML."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))  # tuples become lists


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a config as plain dicts: ``{"data.crop": 224}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def config_from_dict(values: dict[str, Any], *, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Config from ``config_to_dict``'s values and ``key=value`` overrides; ``where`` names the source in errors."""
    return _resolve([(where, values)], overrides)


def find_config(path: str | Path, *, beside: Path = Path()) -> Path:
    """Path of a config: the file itself, from the folder ``beside``, or a shipped config of that name."""
    path, shipped = Path(path).expanduser(), shipped_configs()
    for folder in (beside, shipped):
        if (folder / path).is_file():
            return folder / path
    names = [str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml")]
    raise ConfigError(f"{path}: no such config file{nearest(str(path), names)}")


def shipped_configs() -> Path:
    """Folder of the shipped configs, ``configs/``: beside the package in a source tree, inside it once installed."""
    package = Path(__file__).parent.parent
    beside = package.parent / "configs"
    return beside if beside.is_dir() and (package.parent / "setup.cfg").is_file() else package / "configs"


def _with_bases(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file, values), the farthest base first."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path}: _base_ refers back to itself through {' -> '.join(p.name for p in seen)}")
    with _named_errors(str(path)):
        values = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(values, dict):
            raise ConfigError(f"expected `key: value` lines, found a {type(values).__name__}")
        base = values.pop("_base_", None)
        base = find_config(base, beside=path.parent) if base else None
    if base:
        yield from _with_bases(base, (*seen, path))
    yield str(path), typing.cast(dict[str, Any], values)


def _resolve(sources: Sequence[tuple[str, dict[str, Any]]], overrides: Sequence[str]) -> RunConfig:
    """Config of (name, values) sources, each over those before it, and of overrides."""
    config: Any = copy.deepcopy(_defaults())
    for where, values in (*sources, *_parse_overrides(overrides)):
        with _named_errors(where):
            _assign(config, values)
    try:
        with _named_errors(where):
            return typing.cast(RunConfig, OmegaConf.to_object(config))
    except ConfigError:
        if overrides:  # is it the last one that contradicts the rest, or does the rest contradict itself?
            _resolve(sources, overrides[:-1])
        raise


@functools.cache
def _defaults() -> Any:
    """The config of nothing but defaults, which takes OmegaConf five times as long to make as to copy."""
    return OmegaConf.structured(RunConfig)


def _assign(section: Any, values: dict[Any, Any], prefix: str = "") -> None:
    """Set the values of a section of an OmegaConf config one by one, so that each error names its key."""
    for key, value in values.items():
        kind = OmegaConf.get_type(section, key)
        if kind is AugmentConfig:
            value = _with_preset(value)
        if not isinstance(value, dict) and (kind is dict or dataclasses.is_dataclass(kind)):
            raise ConfigError(f"{prefix}{key}: expected `key: value` lines, found {value!r}")
        if dataclasses.is_dataclass(kind):
            _assign(section[key], value, f"{prefix}{key}.")
        else:  # stages are replaced as a whole instead of added to the places of the bases
            OmegaConf.update(section, key, value, merge=key != "stages")


def _with_preset(value: Any) -> dict[Any, Any]:
    """Values of ``data.augment``: those of the preset that it is or names, and its own over them."""
    values = dict(value) if isinstance(value, dict) else {"preset": value}
    if "preset" not in values:
        return values
    name = values.pop("preset")
    if not isinstance(name, str) or name not in AUGMENT_PRESETS:
        raise ConfigError(f"data.augment: expected {', '.join(AUGMENT_PRESETS)} or `key: value` lines, found {name!r}")
    off = AugmentConfig()  # a preset takes the place of another one
    named = {key: getattr(off, key) for preset in AUGMENT_PRESETS.values() for key in preset}
    return {**named, **AUGMENT_PRESETS[name], **values}


def _parse_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for override in overrides:
        where = f"override {override!r}"
        if "=" not in override:
            raise ConfigError(f"{where}: write key=value, for example optim.lr=0.02")
        with _named_errors(where):
            yield where, OmegaConf.to_container(OmegaConf.from_dotlist([override]))


@contextmanager
def _named_errors(where: str) -> Iterator[None]:
    """Turn errors of OmegaConf, YAML and files into one line that names the source and the key."""
    try:
        yield
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise ConfigError(f"{where}: unknown key {error.full_key}{nearest_key(str(error.full_key))}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None  # the line number comes last
    except (OmegaConfBaseException, ConfigError, OSError, UnicodeDecodeError, TypeError) as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{where}: {f'{key}: ' if key else ''}{str(error).splitlines()[0]}") from None
