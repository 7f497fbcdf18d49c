"""Configs: bases, overrides, errors that name file, key and the nearest right one; documentation of the keys."""

import dataclasses
import functools
import re
import typing
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from gcvideo.cli import main
from gcvideo.config import (
    AUGMENT_PRESETS,
    RunConfig,
    config_from_dict,
    config_to_dict,
    flatten,
    load_config,
    save_config,
    shipped_configs,
)
from gcvideo.config.load import config_keys, field_docs, find_config, help_lines, reference_markdown
from gcvideo.errors import ConfigError
from gcvideo.train.optimizer import learning_rate

SHIPPED = sorted(shipped_configs().rglob("*.yaml"))
load_shipped = functools.cache(load_config)


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_bases_and_overrides_win_in_order(tmp_path):
    write(tmp_path, "model: {depth: 18, width: 16}\noptim: {lr: 0.5}", "base.yaml")
    path = write(tmp_path, "_base_: base.yaml\nmodel: {depth: 34}")
    config = load_config(path, ["optim.lr=1e-3", "data.short_side=[224,256]"])
    assert (config.model.depth, config.model.width, config.optim.lr) == (34, 16, 1e-3)
    assert tuple(config.data.short_side) == (224, 256)
    assert config.name == "run"  # a config without a name takes its file's


def test_a_base_may_be_a_shipped_config(tmp_path):
    path = write(tmp_path, "_base_: demo/synthetic_gc.yaml\nname: mine")
    assert load_config(path).model.context.kind == "gc"


def test_every_range_belongs_to_a_field():
    fields = {key.name for key in config_keys()}
    for section, ranges in yaml.safe_load((files("gcvideo.config") / "ranges.yaml").read_text()).items():
        assert {name if section == "run" else f"{section}.{name}" for name in ranges} <= fields


def test_a_later_source_replaces_the_placement_of_blocks(tmp_path):
    write(tmp_path, "model: {context: {kind: nl, stages: {res3: [1, 3], res4: [1, 3, 5]}}}", "base.yaml")
    path = write(tmp_path, "_base_: base.yaml\nmodel: {context: {kind: gc, stages: {res5: all}}}")
    assert load_config(path).model.context.stages == {"res5": "all"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gc", ("attention", "bottleneck", "add", "after_1x1", 4)),
        ("snl", ("attention", "linear", "add", "after_1x1", 4)),
        ("se", ("average", "squeeze", "scale", "after_1x1", 16)),
        ("nl", (None, None, None, "after_add", 2)),
    ],
)
def test_kinds_fill_in_their_own_defaults(tmp_path, kind, expected):
    path = write(tmp_path, "model: {context: {stages: {res3: all}, kind: gc}}")
    context = load_config(path, [f"model.context.kind={kind}"]).model.context
    assert (context.pool, context.transform, context.fusion, context.position, context.reduction) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {dept: 18}", "unknown key model.dept; did you mean 'model.depth'?"),
        ("lr: 3", "unknown key lr; did you mean 'optim.lr'?"),
        ("model: {depth: abc}", "model.depth: .*'abc'"),
        ("model: {depth: 19}", "model.depth: 19 is not one of 18, 34, 50, 101, 152"),
        ("model: {width: 1, width_per_group: 4}", "model.width_per_group: 4 is too few at model.width 1"),
        ("model: {context: {kind: gcc}}", "model.context.kind: .*'gcc'.*'gc'"),
        (
            "model: {context: {kind: gc, reduction: 0, stages: {res3: all}}}",
            "reduction: must be above 0, is 0",
        ),
        (
            "model: {context: {kind: gc, options: {a: 1}, stages: {res3: all}}}",
            "options: only for an own block",
        ),
        ("model: {arch: slo}", "model.arch: 'slo' is not one of slow, c2d, i3d, .*; did you mean 'slow'?"),
        ("model: {options: {a: 1}}", "model.options: only for an own backbone"),
        ("model: {context: {kind: gc}}", "kind 'gc' does not go with stages {}; set both"),
        ("model: {context: {stages: {res3: all}}}", "kind 'none' does not go with stages"),
        ("model: {context: {kind: gc, stages: {res9: all}}}", "no stage 'res9'"),
        ("model: {context: {kind: gc, stages: {res3: some}}}", "stages.res3: 'some' is not all"),
        (
            "model: {context: {kind: gc, stages: {res3: [0, 4]}}}",
            r"stages.res3: \[0, 4\] is not all, every_other or a list of 0 to 3",
        ),
        ("model: {context: {kind: nl, pool: average, stages: {res3: all}}}", "are for gc, snl and se"),
        ("model: 3", "model: expected `key: value` lines, found 3"),
        ("model:", "model: expected `key: value` lines, found None"),
        ("model: [gc]", r"model: expected `key: value` lines, found \['gc'\]"),
        ("model: ${train}", "model: expected `key: value` lines"),
        ("model: {context: gc}", "model.context: expected `key: value` lines, found 'gc'"),
        ("data: {val: val.txt}", "data.val: expected `key: value` lines, found 'val.txt'"),
        ("model: {context: {stages: [res3]}}", "model.context.stages: expected `key: value` lines"),
        ("model: {options: 3}", "model.options: expected `key: value` lines, found 3"),
        ("data: {backend: ffmpeg}", "data.backend: .*'ffmpeg', expected one of"),
        ("data: {short_side: [256, x]}", "data.short_side: .*'x'.* could not be converted to Integer"),
        ("name: x\nname: y", "duplicate key name"),
        ("name: a/b", "name: 'a/b' cannot name a run folder"),
        ("a: [", "while parsing"),
        ("[1, 2]", "expected `key: value` lines"),
        ("_base_: nowhere.yaml", "nowhere.yaml: no such config file"),
        ("_base_: run.yaml", "_base_ refers back to itself"),
        ("data: {short_side: [320, 256]}", "data.short_side: .* must rise"),
        ("data: {crop: 256, short_side: [224, 256]}", "must rise, from data.crop"),
        ("test: {crop: 300}", "test.crop: 300 does not fit"),
        ("optim: {warmup_epochs: 30}\ntrain: {epochs: 20}", "leaves nothing of train.epochs"),
        ("seed: -1", "seed: must be 0 or more, is -1"),
        ("optim: {schedule: step}", "needs optim.milestones"),
        ("train: {epochs: .inf}", "train.epochs: must be a finite number, is inf"),
        ("optim: {lr: .nan}", "optim.lr: must be a finite number, is nan"),
        ("optim: {schedule: step, milestones: [1, .nan]}", "optim.milestones: must be a finite number"),
        ("data: {std: [0.2, 0.2, .nan]}", "data.std: must be a finite number"),
        ("data: {augment: {mixup: .nan}}", "data.augment.mixup: must be a finite number"),
        ("optim: {momentum: -0.5, nesterov: false}", r"optim.momentum: must be in \[0, 1\), is -0.5"),
        ("optim: {momentum: 1.0}", r"optim.momentum: must be in \[0, 1\), is 1.0"),
    ],
)
def test_errors_are_one_line_that_names_file_and_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "write key=value"),
        ("optm.lr=3", "unknown key optm; did you mean 'optim'?"),
        ("lr=0.1", "unknown key lr; did you mean 'optim.lr'?"),
        ("train.lr=0.1", "unknown key train.lr; did you mean 'optim.lr'?"),
        ("context.kind=gc", "unknown key context; did you mean 'model.context'?"),
        ("model.context.knd=gc", "unknown key model.context.knd; did you mean 'model.context.kind'?"),
        ("zzz=1", "unknown key zzz; gcvideo train --help-config lists the keys"),
        ("optim.lr=fast", "optim.lr: .*'fast'"),
        ("optim.lr=", "optim.lr"),
    ],
)
def test_errors_in_overrides_quote_the_override(tmp_path, override, message):
    path = write(tmp_path, "name: x")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert repr(override) in str(caught.value)
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("harmless", [[], ["seed=3"], ["optim.nesterov=false", "seed=3"]])
@pytest.mark.parametrize("harm", ["optim.schedule=step", "optim.lr=${nothing}", "data.short_side=[320,256]"])
def test_the_override_that_contradicts_the_rest_is_the_one_that_is_named(tmp_path, harm, harmless):
    path = write(tmp_path, "name: run")
    for overrides in ([harm, *harmless], [*harmless, harm]):
        with pytest.raises(ConfigError, match=re.escape(f"override {harm!r}: ")):
            load_config(path, overrides)


def test_a_file_that_contradicts_itself_is_named_before_its_overrides(tmp_path):
    path = write(tmp_path, "name: run\nseed: -1")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: seed: must be 0 or more")):
        load_config(path, ["optim.nesterov=false"])


def test_an_override_may_mend_what_another_contradicts(tmp_path):
    overrides = ["optim.schedule=step", "optim.milestones=[10]"]
    assert load_config(write(tmp_path, "name: run"), overrides).optim.milestones == [10.0]


def test_options_are_added_to_those_of_the_bases_and_stages_replace_them(tmp_path):
    write(tmp_path, "model: {context: {kind: 'my:block', stages: {res3: all}, options: {a: 1}}}", "base.yaml")
    path = write(tmp_path, "_base_: base.yaml\nmodel: {context: {stages: {res4: all}}}")
    config = load_config(path, ["model.context.options.b=2"])
    assert config.model.context.stages == {"res4": "all"}
    assert config.model.context.options == {"a": 1, "b": 2}


def test_a_missing_config_names_the_nearest_shipped_one():
    with pytest.raises(ConfigError, match=r"did you mean 'kinetics400/slow_r50_8x8\.yaml'"):
        load_config("kinetics400/slow_r50_8x.yaml")


def test_shipped_configs_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("kinetics400/slow_r50_8x8.yaml") == find_config("configs/kinetics400/slow_r50_8x8.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_is_named_after_its_file(path):
    assert load_shipped(path).name.endswith(path.stem)


@pytest.mark.parametrize("name", ["kinetics400/slow_r50_8x8.yaml", "kinetics400/slow_r50_gc_c345_8x8.yaml"])
def test_the_kinetics_recipe_measures_batch_norms_as_pyslowfast_does(name):
    assert load_config(name).train.precise_bn == 200  # BN.USE_PRECISE_STATS and BN.NUM_BATCHES_PRECISE


@pytest.mark.parametrize("name", ["slow_r50_8x8", "slow_r50_nl5_8x8", "slow_r50_gc_c345_8x8"])
def test_recipes_of_larger_batches_scale_the_rate_and_change_nothing_else(name):
    small, large = load_config(f"kinetics400/{name}.yaml"), load_config(f"kinetics400/{name}_b512.yaml")

    def rate(config, epoch):
        train = config.train
        return learning_rate(config.optim, epoch=epoch, epochs=train.epochs, batch_size=train.batch_size)

    assert large.train.batch_size == 8 * small.train.batch_size
    assert all(rate(large, epoch) == pytest.approx(8 * rate(small, epoch)) for epoch in (34, 100, 195))
    assert rate(large, 0) == small.optim.lr  # Goyal et al. 2017, section 2.2
    assert large.train.precise_bn * large.train.batch_size == small.train.precise_bn * small.train.batch_size
    own = ["name", "optim.lr_for_batch", "optim.warmup_start_lr", "train.batch_size", "train.precise_bn"]
    before, after = (flatten(config_to_dict(config)) for config in (small, large))
    assert sorted(key for key in before if before[key] != after[key]) == own


def test_a_decoder_of_older_runs_is_read_as_auto():
    stored = config_to_dict(load_config("kinetics400/slow_r50_8x8.yaml"))
    stored["data"]["backend"] = "torchcodec"
    assert config_from_dict(stored, where="best.pt").data.backend == "auto"


def test_no_two_shipped_configs_write_into_one_run_folder():
    names = [load_shipped(path).name for path in SHIPPED]
    assert len(names) == len(set(names))


def test_a_saved_config_reads_back_the_same(tmp_path):
    config = load_config("kinetics400/slow_r50_gc_c345_8x8.yaml", ["test.clips=4"])
    save_config(config, tmp_path / "config.yaml")
    assert config_to_dict(load_config(tmp_path / "config.yaml")) == config_to_dict(config)
    assert config_to_dict(config_from_dict(config_to_dict(config), where="checkpoint")) == config_to_dict(config)


def test_workers_are_a_number_or_one_a_core(monkeypatch):
    recipe = "kinetics400/slow_r50_8x8.yaml"
    monkeypatch.setattr("gcvideo.distributed.cores", lambda: 6)
    assert load_config(recipe).data.workers == "auto"
    assert [load_config(recipe, [f"data.workers={n}"]).data.worker_count for n in ("auto", 3, 0)] == [6, 3, 0]
    for wrong in ("many", "-1", "1.5"):
        with pytest.raises(ConfigError, match=r"data\.workers: "):
            load_config(recipe, [f"data.workers={wrong}"])


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
