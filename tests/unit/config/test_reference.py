"""Documentation of the config keys: complete, and the same in the help and on the site."""

import dataclasses
import typing

import pytest

from gcvideo.cli import main
from gcvideo.config import AUGMENT_PRESETS, RunConfig, reference_markdown
from gcvideo.config.reference import config_keys, field_docs, help_lines
from gcvideo.errors import ConfigError


def sections(schema: type = RunConfig) -> list[type]:
    nested = [hint for hint in typing.get_type_hints(schema).values() if dataclasses.is_dataclass(hint)]
    return [schema, *(found for hint in nested for found in sections(hint))]


@pytest.mark.parametrize("schema", sections(), ids=lambda schema: schema.__name__)
def test_every_field_has_documentation_and_every_entry_a_field(schema):
    docs = field_docs(schema)
    assert list(docs) == [entry.name for entry in dataclasses.fields(schema)]
    assert all(text.endswith(".") for text in docs.values()), docs


def test_every_key_is_in_the_help_and_on_the_page():
    page, text = reference_markdown(), "\n".join(help_lines())
    for key in config_keys():
        assert f"`{key.name}`" in page
        assert f"\n{key.name}" in f"\n{text}"


def test_help_of_one_key_gives_type_default_and_documentation():
    assert help_lines("optim.lr") == [
        "optim.lr: float = 0.1",
        "    highest learning rate, for ``train.batch_size`` clips per step over all processes.",
    ]
    assert help_lines("test.crops")[0] == "test.crops: 1 / 3 / 5 = 3"
    assert help_lines("model.context.pool")[0] == "model.context.pool: attention / average / null = null"
    assert help_lines("data.short_side")[0] == "data.short_side: tuple[int, int] = [256, 320]"


def test_help_of_a_section_lists_its_keys():
    names = [line.partition(":")[0] for line in help_lines("optim") if not line.startswith(" ")]
    assert names[:3] == ["optim.*", "optim.optimizer", "optim.lr"]
    assert all(name.startswith("optim.") for name in names)


def test_help_of_augmentation_shows_the_values_of_each_preset():
    about = " ".join(line.strip() for line in help_lines("data.augment")[1:8])
    assert all(f"{name}: {{" in about for name in AUGMENT_PRESETS)
    assert "erase: 0.25}" in about


def test_help_of_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no such key; did you mean 'optim\.momentum'"):
        help_lines("optim.momentun")


def test_the_command_prints_the_help_without_a_config(capsys):
    assert main(["train", "--help-config", "optim.lr"]) == 0
    assert capsys.readouterr().out.splitlines() == help_lines("optim.lr")
    assert main(["train", "--help-config"]) == 0
    assert capsys.readouterr().out.splitlines() == help_lines()
    assert main(["train", "--help-config", "optim.lrr"]) == 2
    assert "did you mean 'optim.lr'" in capsys.readouterr().err
