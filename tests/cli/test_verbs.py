"""Verbs: answered at once, with everything that is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from adapterkit import __version__
from adapterkit.architectures import ARCHITECTURES
from adapterkit.cli import USAGE, VERBS
from adapterkit.hydra.places import presets
from adapterkit.registry import KINDS, resolve
from tests.commandline import LORA, command, in_new_process


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_verbs_and_everything_installed(argv, capsys):
    told = command(capsys, *argv)
    assert told.code == 0
    for word in (*VERBS, *KINDS["method"], *KINDS["task"]):
        assert word in told.out
    assert len(told.out.splitlines()) < 40


def test_version(capsys):
    assert command(capsys, "--version").out == f"adapterkit {__version__}\n"


def test_an_unknown_verb(capsys):
    told = command(capsys, "valdate", "a=1")
    assert told.code == 2
    assert "no verb 'valdate'; did you mean 'validate'?" in told.err


def test_no_word_is_no_verb(capsys):
    told = command(capsys, "")
    assert (told.code, "no verb ''" in told.err) == (2, True)


def test_a_terminal_that_cannot_write_a_name_is_no_error(tmp_path):
    done = in_new_process("-m", "adapterkit", "list", "methods", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"(IA)\xb3" in done.stdout


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "adapterkit", "list"], stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_function_of_its_own(verb):
    assert callable(resolve(VERBS[verb][0]))


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, flag, capsys):
    told = command(capsys, verb, flag)
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("usage: ")
    assert f"adapterkit {verb}" in told.out


FLAGGED = [verb for verb in VERBS if verb not in USAGE]


@pytest.mark.parametrize("verb", FLAGGED)
def test_the_usage_of_a_verb_has_all_that_it_takes(verb, capsys):
    usage, _, rest = command(capsys, verb, "-h").out.partition("\n\n")
    taken = re.findall(r"^  (?:-h, )?(--[\w-]+|[\w]+)", rest, re.M)
    assert taken.pop(taken.index("--help"))
    assert taken
    assert set(taken) <= set(re.findall(r"[\w-]+", usage))
    assert set(re.findall(r"--[\w-]+", usage)) <= set(taken)


@pytest.mark.parametrize("verb", FLAGGED)
def test_a_flag_that_there_is_not_is_told_before_what_is_missing(verb, capsys):
    told = command(capsys, verb, "--hlp")
    assert (told.code, told.out) == (2, "")
    assert f"{verb} has no flag '--hlp'; did you mean '--help'?" in told.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["merge", "here", "--to"], ["merge: argument --to: expected one argument", "merge DIR --to OUT"]),
        (["merge", "here", "--to", "out", "--tolerance", "x"], ["invalid float value: 'x'"]),
        (["schema", "--to"], ["schema: argument --to: expected one argument"]),
        (["eval", "here", "--split", "dev"], ["invalid choice: 'dev'"]),
        (["predict", "here", "--input", "rows.csv"], ["the following arguments are required: --to"]),
        (["plugin", "new"], ["the following arguments are required: NAME"]),
        (["estimate", "--config"], ["argument --config: expected one argument"]),
    ],
)
def test_a_flag_without_its_value_is_told_with_the_usage(argv, words, capsys):
    told = command(capsys, *argv)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"adapterkit: {argv[0]}: ")
    assert all(word in told.err for word in [*words, f"usage: python -m adapterkit {argv[0]} "])
    assert len(told.err.splitlines()) < 4


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["validate", "--bogus", *LORA], ["no flag '--bogus'", "--config-dir"]),
        (["validate", "--mutlirun", *LORA], ["no flag '--mutlirun'; did you mean '--multirun'?"]),
        (["validate", "--cfg", "job", *LORA], ["no flag '--cfg'"]),
        (["--mutlirun", *LORA, "seed=0"], ["no flag '--mutlirun'; did you mean '--multirun'?"]),
        (["--multi", *LORA], ["no flag '--multi'; did you mean '--multirun'?"]),
        (["estimate", "--jsn", *LORA], ["estimate has no flag '--jsn'; did you mean '--json'?"]),
        (["estimate", "-m", *LORA], ["estimate has no flag '-m'"]),
        (["list", "--bogus"], ["no list of '--bogus'"]),
        (["plugins", "--bogus"], ["plugins takes no '--bogus'"]),
        (["show", "--bogus"], ["no section '--bogus'"]),
    ],
)
def test_a_flag_that_there_is_not_is_refused(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = command(capsys, *argv)
    assert (told.code, told.out) == (2, "")
    assert all(word in told.err for word in words), told.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_lists_have_every_plugin(kind, capsys):
    told = command(capsys, "list", f"{kind}s")
    assert told.code == 0
    for name in KINDS[kind]:
        assert any(line.startswith(name) for line in told.out.splitlines())


def test_lists_have_every_preset_and_model(capsys):
    listed = command(capsys, "list", "presets").out
    assert all(preset.choice in listed for preset in presets())
    models = command(capsys, "list", "models").out
    assert "model=tiny_t5" in models
    assert "model.name_or_path=builtin:bert" in models


def test_list_without_a_word_has_all_of_them(capsys):
    told = command(capsys, "list").out
    assert all(f"{word}\n" in told for word in ("methods", "tasks", "models", "presets"))


def test_list_of_what_there_is_none(capsys):
    told = command(capsys, "list", "method")
    assert told.code == 2
    assert "did you mean 'methods'" in told.err


@pytest.mark.parametrize("name", list(KINDS["method"]))
def test_show_has_every_field_of_a_method(name, capsys):
    told = command(capsys, "show", "method", name)
    assert told.code == 0
    for field, info in KINDS["method"][name].model_fields.items():
        assert f"method.{field}=" in told.out
        assert (info.description or "?").split()[0] in told.out
    assert told.out == command(capsys, "show", f"method={name}").out


@pytest.mark.parametrize("name", list(KINDS["method"]))
def test_show_has_a_command_that_runs_a_method_on_what_it_adapts(name, capsys):
    told = command(capsys, "show", "method", name).out
    words = next(line for line in told.splitlines() if line.startswith("run it:")).partition("adapterkit ")[2].split()
    checked = command(capsys, "validate", *(word for word in words if "<" not in word))
    assert checked.code == 0, checked.err
    assert ("data.columns.task_ids=<column>" in words) == (name == "multitask_prompt_tuning")
    family = words[1].replace("task=seq_cls", "bert").replace("task=causal_lm", "llama")
    assert {*getattr(KINDS["method"][name], "default_roles", ())} <= ARCHITECTURES[family].keys()


def test_show_has_the_settings_that_a_field_may_hold(capsys):
    told = command(capsys, "show", "method", "lora").out
    assert "  method.eva_config.rho=2.0\n      float, at least 1. A layer's rank" in told
    assert "  method.loftq_config.loftq_bits=4\n      4 | 8. Bits" in told


def test_show_has_the_bounds_of_what_may_be_null(capsys):
    assert "  trainer.loraplus_lr_ratio=null\n      float at least 1 or null." in command(capsys, "show", "trainer").out


def test_show_has_default_type_meaning_paper_package_and_presets(capsys):
    told = command(capsys, "show", "method", "lora").out
    assert "  method.r=8\n      int, above 0. Rank of the update." in told
    assert "https://arxiv.org/abs/2106.09685" in told
    assert f"adapterkit {__version__}" in told
    assert "presets: method=dora" in told
    assert "method.num_virtual_tokens=???" in command(capsys, "show", "method", "prefix_tuning").out


def test_show_has_sections_tasks_and_presets(capsys):
    assert "  trainer.learning_rate=" in command(capsys, "show", "trainer").out
    assert "  task.name=seq_cls" in command(capsys, "show", "task", "seq_cls").out
    assert "use_dora: true" in command(capsys, "show", "method", "dora").out
    assert "presets: model=qlora_4bit" in command(capsys, "show", "model").out
    assert "  seed=0" in command(capsys, "show", "run").out


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["method", "lroa"], "no method named 'lroa'; did you mean 'lora'?"),
        (["trianer"], "no section 'trianer'; did you mean 'trainer'?"),
        (["method"], "show which method? show method <name>"),
        (["lora"], "no section 'lora'; did you mean 'show method lora'?"),
        (["mehtod", "lora"], "no group 'mehtod'; did you mean 'method'?"),
        (["a", "b", "c"], "show what?"),
    ],
)
def test_show_of_what_there_is_not(argv, word, capsys):
    told = command(capsys, "show", *argv)
    assert told.code == 2
    assert word in told.err


def test_plugins_are_all_well(capsys):
    told = command(capsys, "plugins", "list")
    assert told.code == 0
    assert told.out == command(capsys, "plugins").out == command(capsys, "list", "plugins").out
    assert "scale_shift" in told.out
    assert "adapterkit-acme 0.3.1" in told.out
    assert command(capsys, "plugins", "lits").code == 2


def test_validate_starts_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(capsys, "validate", *LORA).out == "ok: method lora, task seq_cls\n"
    assert command(capsys, "validate", "-m", *LORA, "method.r=1,2,3").out == "ok: 3 trials\n"
    assert command(capsys, "validate", "experiment=rank_sweep").out == "ok: 9 trials\n"
    told = command(capsys, "validate", "-m", *LORA, "method.r=1,0")
    assert told.code == 2
    assert "1 of 2 trials would fail" in told.err
    assert not list(tmp_path.iterdir())


def test_a_schema_goes_into_directories_only(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file")
    told = command(capsys, "schema", "--to", str(tmp_path / "taken"))
    assert (told.code, "taken: not a directory that can be written to" in told.err) == (2, True)


def test_the_schema_has_every_plugin_and_refuses_unknown_keys(capsys, tmp_path):
    whole = json.loads(command(capsys, "schema").out)
    names = {definition["properties"].get("peft_type", {}).get("const") for definition in whole["$defs"].values()}
    assert {"LORA", "PREFIX_TUNING", "SCALE_SHIFT"} <= names
    told = command(capsys, "schema", "--to", str(tmp_path))
    assert told.code == 0
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(files) == {f"{name}.schema.json" for name in ("run", "experiment", "method", "task")}
    experiment = files["experiment.schema.json"]
    assert "required" not in json.dumps(experiment)
    assert "defaults" in experiment["properties"]
    rank = experiment["$defs"]["LoraConfig"]["properties"]["r"]
    assert [branch["type"] for branch in rank["anyOf"]] == ["integer", "string"]
    assert len(files["method.schema.json"]["anyOf"]) == len(KINDS["method"])


@pytest.mark.parametrize("argv", [[], ["list"], ["show", "method", "lora"], ["plugins"]])
def test_quick_verbs_import_nothing_heavy(argv, tmp_path):
    code = (
        "import sys; from adapterkit.cli import main; main(sys.argv[1:]); import time\n"
        "print('', sorted({'torch', 'transformers', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)), sep='\\n')"
    )
    assert in_new_process("-c", code, *argv, cwd=tmp_path).stdout.splitlines()[-1] == "[]"


def test_hydra_shows_the_composed_configuration(capsys):
    told = command(capsys, "--cfg", "job", *LORA, "-p", "method", "method.r=3")
    assert told.code == 0
    assert "peft_type: LORA\n" in told.out
    assert "\nr: 3\n" in told.out


def test_hydra_shows_where_nodes_come_from(capsys):
    told = command(capsys, *LORA, "--info", "defaults")
    assert told.code == 0
    assert "method/lora" in told.out


def complete(line: str, directory: Path) -> set[str]:
    """What the shell is offered for ``line``."""
    argv = ["-m", "adapterkit", "-sc", "query=bash"]
    return set(in_new_process(*argv, cwd=directory, COMP_LINE=line).stdout.split())


def test_completion_offers_groups_options_and_keys(tmp_path):
    assert {"method=lora", "method=dora", "method=scale_shift"} <= complete("adapterkit method=", tmp_path)
    assert {"+task=seq_cls"} <= complete("adapterkit +method=lora +task=", tmp_path)
    assert {"method.r=", "method.lora_alpha="} <= complete("adapterkit +method=lora method.", tmp_path)


def test_completion_leaves_the_environment_alone(capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "adapterkit +method=lora method.")
    assert command(capsys, "-sc", "query=bash").code == 0
    assert os.environ["COMP_LINE"] == "adapterkit +method=lora method."
