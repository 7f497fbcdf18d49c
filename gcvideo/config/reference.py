"""Config reference: type, default and documentation of every key, read from the dataclasses and their docstrings.

``gcvideo train --help-config [KEY]`` prints it (``help_lines``); the documentation site shows it
(``reference_markdown``).
"""

import dataclasses
import difflib
import inspect
import math
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from omegaconf import MISSING

from gcvideo.config.data import AUGMENT_PRESETS, AugmentConfig
from gcvideo.config.schema import RunConfig
from gcvideo.errors import ConfigError


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
