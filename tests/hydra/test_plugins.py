"""Plugins on the command line: found by name, imported when chosen, and never able to break one another."""

from __future__ import annotations

import sys

import pytest

from tests.commandline import LORA, METHOD, command, in_new_process, installed, stand_in, write_distribution

METHODS, TASKS, PRESETS = "adapterkit.methods", "adapterkit.tasks", "adapterkit.conf"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def method(name: str, extra: str = "") -> str:
    return METHOD.format(name=name.upper(), extra=extra)


def test_an_installed_method_runs_without_any_file(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    write_distribution(
        tmp_path / "site", "twice", {METHODS: {"twice": "twice_config:Config"}}, twice_config=method("twice")
    )
    with installed(tmp_path / "site", monkeypatch):
        result = command(capsys, "+method=twice", "task=seq_cls", "method.strength=5")
    assert (result.code, training.configs[0].method.strength) == (0, 5), result.err


def test_a_broken_plugin_is_told_where_it_breaks_and_hurts_no_other(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    entry_points = {METHODS: {"oft_x": "broken_plugin:Config"}}
    write_distribution(
        tmp_path / "site", "broken", entry_points, broken_plugin="import math\nraise OSError('no liboft.so')\n"
    )
    with installed(tmp_path / "site", monkeypatch):
        chosen = command(capsys, "+method=oft_x", "task=seq_cls", "seed=-1")
        other = command(capsys, *LORA)
        listed = command(capsys, "plugins")
    assert chosen.code == 2
    assert "method 'oft_x' (broken 1.0) could not be imported: OSError: no liboft.so" in chosen.err
    assert f"{tmp_path / 'site' / 'broken_plugin.py'}:2" in chosen.err
    assert "seed: must be greater than or equal to 0" in chosen.err
    assert "no method chosen" not in chosen.err
    assert (other.code, len(training.configs)) == (0, 1)
    assert listed.code == 1
    assert "! method 'oft_x' (broken 1.0) could not be imported" in listed.out


def test_a_plugin_for_a_newer_api_says_who_has_to_be_upgraded(capsys, tmp_path, monkeypatch):
    source = method("hra_x", "api: ClassVar[int] = 2")
    write_distribution(tmp_path / "site", "future", {METHODS: {"hra_x": "future_plugin:Config"}}, future_plugin=source)
    with installed(tmp_path / "site", monkeypatch):
        chosen = command(capsys, "+method=hra_x", "task=seq_cls")
        listed = command(capsys, "plugins")
    assert chosen.code == 2
    assert "speaks plugin API 2; this adapterkit speaks 1. Upgrade adapterkit." in chosen.err
    assert listed.code == 1
    assert "incompatible" in listed.out


def test_what_is_no_config_class_is_refused(capsys, tmp_path, monkeypatch):
    write_distribution(tmp_path / "site", "odd", {METHODS: {"odd": "odd_plugin:Config"}}, odd_plugin="Config = 3\n")
    with installed(tmp_path / "site", monkeypatch):
        chosen = command(capsys, "+method=odd", "task=seq_cls")
    assert chosen.code == 2
    assert "odd_plugin:Config is no config class" in chosen.err


def test_a_method_without_an_adapter_is_refused(capsys, tmp_path, monkeypatch):
    source = "from typing import Literal\nfrom adapterkit.config.layer import LayerConfig\n\n\n"
    source += "class Config(LayerConfig):\n    peft_type: Literal['BARE'] = 'BARE'\n"
    write_distribution(tmp_path / "site", "bare", {METHODS: {"bare": "bare_plugin:Config"}}, bare_plugin=source)
    with installed(tmp_path / "site", monkeypatch):
        chosen = command(capsys, "+method=bare", "task=seq_cls")
    assert chosen.code == 2
    assert "method 'bare' (bare 1.0): bare_plugin:Config has no adapter" in chosen.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"tests.commandline:Training"',
            '"tests.gone:X"',
            "has adapter 'tests.gone:X', and there is no module 'tests.gone'",
        ),
        ("tests.commandline:Training", "bare_adapter:Adapter", "and bare_adapter has no 'Adapter'"),
        ("BARE", "OTHER", "has peft_type 'OTHER': it is to be declared as 'other', or to have peft_type 'BARE'"),
        ("peft_type:", "kind:", "has no peft_type: a Literal with a default, 'BARE'"),
    ],
)
def test_a_method_that_cannot_be_used_is_one_problem(capsys, tmp_path, monkeypatch, old, new, message):
    files = {"bare_plugin": method("bare").replace(old, new), "bare_adapter": "class Adaptor: ..."}
    write_distribution(tmp_path / "site", "bare", {METHODS: {"bare": "bare_plugin:Config"}}, **files)
    with installed(tmp_path / "site", monkeypatch):
        chosen = command(capsys, "+method=bare", "task=seq_cls")
        checked = command(capsys, "validate", "+method=bare", "task=seq_cls")
        listed = command(capsys, "plugins", "list")
    assert (chosen.code, checked.code, listed.code) == (2, 2, 1)
    assert chosen.err == checked.err
    assert chosen.err.startswith("adapterkit: method 'bare' (bare 1.0): bare_plugin:Config has ")
    assert message in chosen.err
    assert f"! {chosen.err.removeprefix('adapterkit: ').strip()}" in listed.out


def test_two_packages_with_one_name_are_an_error_only_when_it_is_chosen(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    for number, package in enumerate(("acme-a", "acme-b"), start=3):
        module = f"plugin_{package[-1]}"
        source = method("both").replace("Field(3", f"Field({number}")
        write_distribution(tmp_path / "site", package, {METHODS: {"both": f"{module}:Config"}}, **{module: source})
    with installed(tmp_path / "site", monkeypatch):
        other = command(capsys, *LORA)
        chosen = command(capsys, "+method=both", "task=seq_cls")
        qualified = command(capsys, "+method=acme-b/both", "task=seq_cls")
        listed = command(capsys, "plugins")
    assert (other.code, chosen.code, qualified.code) == (0, 2, 0), qualified.err
    assert "acme-a/both" in chosen.err
    assert "acme-b/both" in chosen.err
    assert training.configs[1].method.strength == 4
    assert training.configs[1].method.peft_type == "BOTH"
    assert listed.out.count("conflict") == 2


def test_a_third_party_cannot_take_a_name_of_ours(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    write_distribution(
        tmp_path / "site", "thief", {METHODS: {"lora": "thief_plugin:Config"}}, thief_plugin=method("lora")
    )
    with installed(tmp_path / "site", monkeypatch):
        plain = command(capsys, *LORA, "method.r=3")
        qualified = command(capsys, "+method=thief/lora", "task=seq_cls", "method.strength=9")
        listed = command(capsys, "plugins")
    assert (plain.code, qualified.code) == (0, 0), qualified.err
    assert (training.configs[0].method.r, training.configs[1].method.strength) == (3, 9)
    assert "shadowed" in listed.out


def test_presets_of_a_plugin_are_found_without_running_its_code(capsys, tmp_path, monkeypatch):
    training = stand_in(monkeypatch)
    write_distribution(tmp_path / "site", "presetter", {PRESETS: {"p": "presetter_pkg.conf"}})
    package = tmp_path / "site" / "presetter_pkg"
    (package / "conf" / "method").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "conf" / "method" / "lora_wide.yaml").write_text("# Wide.\ndefaults: [lora, _self_]\nr: 99\n")
    with installed(tmp_path / "site", monkeypatch):
        result = command(capsys, "+method=lora_wide", "task=seq_cls")
        listed = command(capsys, "list", "presets")
    assert (result.code, training.configs[0].method.r) == (0, 99), result.err
    assert "method=lora_wide" in listed.out
    assert "Wide." in listed.out
    assert "presetter_pkg" not in sys.modules


def test_a_hydra_plugin_that_stops_every_program_is_named(tmp_path):
    package = tmp_path / "site" / "hydra_plugins" / "bad_sweeper"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ValueError('mutable default')\n")
    result = in_new_process("-m", "adapterkit", *LORA, "method.r=0", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert result.returncode == 2
    assert "the Hydra plugin 'bad_sweeper' stops every Hydra program here: ValueError: mutable default" in result.stderr


def test_configs_of_every_plugin_load_without_torch_hydra_or_numpy(tmp_path):
    code = (
        "import sys\nfrom adapterkit.registry import KINDS\n"
        "loaded = [registry[name] for registry in KINDS.values() for name in registry]\n"
        "print(len(loaded), sorted({'torch', 'transformers', 'numpy', 'hydra', 'omegaconf'} & set(sys.modules)))"
    )
    count, heavy = in_new_process("-c", code, cwd=tmp_path).stdout.split(" ", 1)
    assert int(count) >= 8
    assert heavy.strip() == "[]"


class TestAcme:
    """The package in ``tests/plugin``, installed as a user would."""

    def test_method_task_and_preset_are_on_the_command_line(self, capsys, monkeypatch):
        training = stand_in(monkeypatch)
        result = command(
            capsys, "+method=scale_only", "task=acme_triage", "task.queue=second_line", "method.init_scale=0.5"
        )
        assert result.code == 0, result.err
        config = training.configs[0]
        assert (config.method.peft_type, config.method.train_shift, config.method.init_scale) == (
            "SCALE_SHIFT",
            False,
            0.5,
        )
        assert config.task.queue == "second_line"

    def test_its_fields_are_validated_like_ours(self, capsys):
        told = command(capsys, "+method=scale_shift", "task=acme_triage", "task.queue=third", "method.init_scal=1")
        assert told.code == 2
        assert "task.queue: must be 'first_line' or 'second_line' (got 'third')" in told.err
        assert "did you mean 'method.init_scale'" in told.err

    def test_it_can_be_swept(self, capsys, monkeypatch):
        training = stand_in(monkeypatch)
        result = command(capsys, "-m", "+method=scale_shift,lora", "task=acme_triage,seq_cls")
        assert result.code == 0, result.err
        assert len(training.configs) == 4
