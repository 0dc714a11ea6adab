"""The files of ``conf/``: each one composes, says what it does and how to run it, and explains its keys."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from adapterkit.hydra import places
from adapterkit.hydra.arguments import parse
from adapterkit.hydra.diagnosis import composer_for
from adapterkit.hydra.places import conf_dir, presets
from adapterkit.hydra.source import GROUPS
from adapterkit.hydra.validation import check
from adapterkit.registry import KINDS

OURS = [preset for preset in presets() if preset.path.is_relative_to(conf_dir())]
CHOOSABLE = [preset for preset in OURS if not preset.group.startswith("hydra/")]


@pytest.mark.parametrize("preset", CHOOSABLE, ids=lambda preset: preset.choice)
def test_a_preset_composes_and_validates(preset):
    rest = {"method": "lora", "task": "question_ans" if preset.name == "squad" else "seq_cls"}
    if preset.group == "experiment":
        rest = {"method": "lora"} if preset.name == "compare_lora_variants" else {}
    chosen = {**rest, preset.group: preset.name}
    named = ["model.name_or_path=any/model"] if "qlora" in preset.name else []
    arguments = parse([*(f"{group}={name}" for group, name in chosen.items()), *named])
    config, problems = check(composer_for(arguments).compose(arguments.overrides))
    assert not problems
    assert config is not None


@pytest.mark.parametrize("r", [None, 32])
def test_variants_are_compared_at_the_same_rank(r):
    experiment = yaml.safe_load((conf_dir() / "experiment" / "compare_lora_variants.yaml").read_text(encoding="utf-8"))
    methods = experiment["hydra"]["sweeper"]["params"]["method"].split(",")
    given = [] if r is None else [f"method.r={r}"]
    found = set()
    for method in methods:
        arguments = parse(["experiment=compare_lora_variants", f"method={method}", *given])
        config, _ = check(composer_for(arguments).compose(arguments.overrides))
        assert config is not None
        found.add((config.method.r, config.method.lora_alpha))
    assert found == {(r or 8, 8)}


@pytest.mark.parametrize("preset", OURS, ids=lambda preset: preset.choice)
def test_a_preset_explains_itself(preset):
    text = preset.path.read_text(encoding="utf-8")
    assert 20 < len(preset.summary) < 130
    assert f"{preset.name}" in text.split("\n\n")[0] or preset.group == "experiment"
    assert "#   python -m adapterkit" in text
    assert preset.choice in text
    lines = text.splitlines()
    for number in leaves(yaml.compose(text)):
        assert "#" in lines[number], f"{preset.path}:{number + 1}: {lines[number]!r} has no comment"


def leaves(node: yaml.Node) -> list[int]:
    """Lines of the keys that set a value, but for defaults lists, lists of axes and column names."""
    found = []
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        if key.value in ("defaults", "columns", "params"):
            continue
        found += (
            leaves(value) if isinstance(value, yaml.MappingNode) and not value.flow_style else [key.start_mark.line]
        )
    return found


def test_the_groups_are_those_of_the_primary_config():
    listed = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    assert {key for entry in listed if isinstance(entry, dict) for key in entry} == set(GROUPS)


def test_no_preset_has_the_name_of_a_plugin():
    for kind, registry in KINDS.items():
        assert not {preset.name for preset in presets() if preset.group == kind} & set(registry)


def test_conf_is_found_inside_the_package_and_beside_it(tmp_path, monkeypatch):
    for place in ("adapterkit/conf", "conf"):
        root = tmp_path / place.replace("/", "_")
        shutil.copytree(conf_dir(), root / place)
        monkeypatch.setattr(places, "__file__", str(root / "adapterkit" / "hydra" / "places.py"))
        conf_dir.cache_clear()
        assert conf_dir() == root / place
    monkeypatch.undo()
    conf_dir.cache_clear()
    assert (conf_dir() / "config.yaml").is_file()


def test_a_missing_conf_is_an_error_that_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "__file__", str(tmp_path / "adapterkit" / "hydra" / "places.py"))
    conf_dir.cache_clear()
    with pytest.raises(places.ConfigError, match=str(tmp_path)):
        conf_dir()
    conf_dir.cache_clear()


def test_a_file_is_summarised_by_its_first_sentence_of_comment(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("# @package _global_\n#\n# What it is.\n# More.\na: 1\n")
    assert places.Preset("method", Path(file), "us").summary == "What it is."
    file.write_text("a: 1  # no header\n")
    assert places.Preset("method", Path(file), "us").summary == ""
