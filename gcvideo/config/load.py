"""Run configs: read from YAML files with ``_base_`` and ``key=value`` overrides, and the documentation of every key.

``load_config`` reads a file and its bases, merges ``key=value`` overrides, checks every key and type through an
OmegaConf structured config and returns the dataclasses of ``schema``, whose ``__post_init__`` rejects values that
contradict each other. Every error is a one-line ``ConfigError`` that names the file, the key and the nearest key that
exists.

Type, default and documentation of a key come from the dataclasses and their docstrings: ``gcvideo train --help-config
[KEY]`` prints them (``help_lines``), and the documentation site shows them (``reference_markdown``).
"""

import copy
import dataclasses
import difflib
import functools
import inspect
import json
import math
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from gcvideo.config.data import AUGMENT_PRESETS, AugmentConfig
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
    return json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists


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
    for folder in (beside, shipped, *[shipped.parent] * (path.parts[:1] == ("configs",))):
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
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(values, dict):
            raise ConfigError(f"expected `key: value` lines, found a {type(values).__name__}")
        base = values.pop("_base_", None)
        base = find_config(base, beside=path.parent) if base else None
    if base:
        yield from _with_bases(base, (*seen, path))
    yield str(path), values


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


class Key(NamedTuple):
    """One config key: its dotted name, type, default (as YAML) and documentation; a section has no type or default."""

    name: str
    type: str
    default: str
    doc: str


def field_docs(schema: type) -> dict[str, str]:
    """Documentation of each field, from the ``Attributes:`` section of a dataclass's Google-style docstring."""
    section = re.search(r"^Attributes:\n(.*?)(?=^\S|\Z)", inspect.getdoc(schema) or "", re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def config_keys(schema: type = RunConfig, prefix: str = "") -> Iterator[Key]:
    """All keys of a config section in the order of their declaration, each section before its keys."""
    hints, docs = typing.get_type_hints(schema), field_docs(schema)
    for entry in dataclasses.fields(schema):
        name, hint = f"{prefix}{entry.name}", hints[entry.name]
        if dataclasses.is_dataclass(hint):
            presets = f" Presets: {_yaml(AUGMENT_PRESETS)[1:-1]}." if hint is AugmentConfig else ""
            yield Key(name, "", "", docs[entry.name] + presets)
            yield from config_keys(typing.cast(type, hint), f"{name}.")
        else:
            yield Key(name, _type(str(entry.type)), _default(entry), docs[entry.name])


def help_lines(key: str = "") -> list[str]:
    """Lines of help for one key, for all keys of a section, or for all keys (``key`` empty).

    Raises:
        ConfigError: there is no such key; names the nearest one.
    """
    keys = list(config_keys())
    chosen = [entry for entry in keys if not key or entry.name == key or entry.name.startswith(f"{key}.")]
    if not chosen:
        raise ConfigError(f"--help-config {key}: no such key{nearest_key(key)}")
    lines = []
    for entry in chosen:
        lines.append(f"{entry.name}: {entry.type} = {entry.default}" if entry.type else f"{entry.name}.*")
        lines += textwrap.wrap(entry.doc, 112, initial_indent="    ", subsequent_indent="    ")
    return lines


def nearest_key(key: str) -> str:
    """End of an error message about an unknown key: the key with the nearest last word, of its own section if any."""
    section, _, word = key.rpartition(".")
    names = sorted((entry.name for entry in config_keys()), key=lambda name: name.rpartition(".")[0] == section)
    by_word = {name.rpartition(".")[2]: name for name in names}
    near = difflib.get_close_matches(word, by_word, n=1)
    return f"; did you mean {by_word[near[0]]!r}?" if near else "; gcvideo train --help-config lists the keys"


def reference_markdown() -> str:
    """Markdown with a heading and a table (key, type, default, meaning) for each section of the config."""
    lines = []
    keys = [Key("", "", "", (inspect.getdoc(RunConfig) or "").splitlines()[0]), *config_keys()]
    for section in (entry for entry in keys if not entry.type):
        own = [entry for entry in keys if entry.type and entry.name.rpartition(".")[0] == section.name]
        lines += ["", f"## `{section.name}`" if section.name else "## Top level", "", section.doc, ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for entry in own:
            lines.append(f"| `{entry.name}` | `{entry.type}` | `{entry.default}` | {entry.doc} |")
    return "\n".join(lines) + "\n"


def _type(annotation: str) -> str:
    """Type as a user reads it: the choices of a ``Literal``, otherwise the annotation."""
    choices = re.sub(r"Literal\[(.*?)\]", lambda match: re.sub("['\"]", "", match[1]).replace(", ", " / "), annotation)
    return choices.replace("|", "/").replace("None", "null")


def _default(entry: dataclasses.Field[Any]) -> str:
    value = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
    return _yaml(list(value) if isinstance(value, tuple) else "" if value == MISSING else value)


def _yaml(value: Any) -> str:
    """Value as a line of YAML."""
    line = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return line.removesuffix("\n").removesuffix("\n...")
