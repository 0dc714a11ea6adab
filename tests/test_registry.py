"""Names to plugins: found without an import, told apart, and unable to break one another."""

from __future__ import annotations

import sys

import pytest

from adapterkit.config.base import PeftConfig
from adapterkit.errors import BrokenPluginError, ConfigError, IncompatiblePluginError, UnknownPluginError
from adapterkit.methods.lora.config import LoraConfig
from adapterkit.registry import Registry, declared_as, methods, resolve, tasks
from tests.commandline import installed, write_distribution

GROUP = "adapterkit.methods"


def good(name: str = "GOOD", adapter: str = "tests.test_registry:good") -> str:
    """Source of a config class that can be used."""
    return f"""
from typing import ClassVar, Literal
from pydantic import Field
from adapterkit.config.layer import LayerConfig

class Config(LayerConfig):
    adapter: ClassVar[str] = "{adapter}"
    peft_type: Literal["{name}"] = Field("{name}", description="Name.")
    strength: int = Field(3, description="Strength.")
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Declare distributions, and get a fresh registry of methods."""
    stack = []

    def declare(**distributions):
        for name, (entries, files) in distributions.items():
            write_distribution(tmp_path / "site", name, {GROUP: entries}, **files)
        stack.append(installed(tmp_path / "site", monkeypatch))
        stack[-1].__enter__()
        return Registry("method")

    yield declare
    for context in stack:
        context.__exit__(None, None, None)


def test_nothing_is_imported_before_it_is_asked_for(site):
    registry = site(acme=({"quiet": "quiet_plugin:Config"}, {"quiet_plugin": good("QUIET")}))
    assert "quiet" in registry
    assert "quiet" in list(registry)
    assert registry.plugin("quiet").origin == "acme 1.0"
    assert "quiet_plugin" not in sys.modules
    assert registry["quiet"].__name__ == "Config"
    assert "quiet_plugin" in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_library", r"ModuleNotFoundError: No module named 'no_such_library'\n  at .*bad_plugin\.py:1"),
        ("x = 1\nx.y", r"AttributeError: 'int' object has no attribute 'y'\n  at .*bad_plugin\.py:2"),
        ("def f(:", r"SyntaxError: .*\n  at .*bad_plugin\.py:1"),
        ("class Confit: pass", r"bad_plugin has no 'Config'; did you mean 'Confit'\?\n  at .*bad_plugin\.py$"),
        ("class Config: pass", "bad_plugin:Config is no config class"),
        ("def Config(): pass", "bad_plugin:Config is no config class"),
    ],
)
def test_a_broken_plugin_is_named_with_its_place_and_hurts_no_other(site, source, message):
    registry = site(
        acme=({"bad": "bad_plugin:Config", "good": "good_plugin:Config"}, {"bad_plugin": source, "good_plugin": good()})
    )
    assert registry["good"]().strength == 3
    with pytest.raises(BrokenPluginError, match=rf"method 'bad' \(acme 1\.0\)(.|\n)*{message}"):
        registry["bad"]


@pytest.mark.parametrize(("api", "who"), [(99, "Upgrade adapterkit"), (0, "Upgrade acme")])
def test_another_api_says_who_has_to_be_upgraded(site, api, who):
    registry = site(
        acme=(
            {"far": "far_plugin:Config"},
            {"far_plugin": f"{good('FAR')}    api: ClassVar[int] = {api}\n"},
        )
    )
    with pytest.raises(IncompatiblePluginError, match=rf"speaks plugin API {api}; this adapterkit speaks 1\. {who}"):
        registry["far"]


def test_a_module_that_is_not_there(site):
    registry = site(acme=({"gone": "gone_plugin.config:Config"}, {}))
    with pytest.raises(BrokenPluginError, match=r"could not be imported: there is no module 'gone_plugin'$"):
        registry["gone"]


@pytest.mark.parametrize("value", ["bad_plugin", "acme-bad.config:Config", "bad_plugin:"])
def test_an_entry_point_that_names_no_class_is_told_and_hurts_no_other(site, value):
    registry = site(acme=({"bad": value, "good": "good_plugin:Config"}, {"good_plugin": good()}))
    with pytest.raises(BrokenPluginError, match=rf"'bad' \(acme 1\.0\): its entry point '{value}' names no class"):
        registry["bad"]
    assert declared_as(registry["good"]) == "method 'good' (acme 1.0)"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (good("OTHER"), "has peft_type 'OTHER': it is to be declared as 'other', or to have peft_type 'BAD'"),
        (good("BAD").replace("ClassVar[str]", "str"), r"has adapter among its fields: annotate it as a ClassVar\[str"),
        (good().replace("peft_type", "kind"), "has no peft_type: a Literal with a default, 'BAD'"),
        (
            good("BAD") + "    runtime_fields: ClassVar = {'speed'}\n",
            r"has runtime_fields=\{'speed'\}, and no fields speed",
        ),
        (
            good("BAD") + "    only_with: ClassVar = {'speed': ('strength', True)}\n",
            r"has only_with=\{.*\}, and no fields speed",
        ),
        (good("BAD") + "    runtime_fields: ClassVar = 'strength'\n", "has runtime_fields='strength', where a set"),
        (good("BAD", "gone_one.deep:X"), "has adapter 'gone_one.deep:X', and there is no module 'gone_one'"),
        (good("BAD", "bad_plugin.deep:X"), "has adapter .*there is no module 'bad_plugin.deep'"),
        (good("BAD", "bad_adapter:X"), r"has adapter .*, and bad_adapter has no 'X'\n  at .*bad_adapter\.py$"),
    ],
)
def test_a_config_class_that_cannot_be_used_is_refused_before_its_adapter_is_imported(site, source, message):
    files = {"bad_plugin": source, "bad_adapter": "raise RuntimeError\n\n\nclass Adapter: pass\n"}
    registry = site(acme=({"bad": "bad_plugin:Config"}, files))
    with pytest.raises(BrokenPluginError, match=rf"method 'bad' \(acme 1\.0\): bad_plugin:Config {message}"):
        registry["bad"]
    assert "bad_adapter" not in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from math import *", r"could not be imported: late_adapter has no 'Adapter'\n  at .*late_adapter\.py"),
        (
            "globals()['Adaptor'] = int",
            r"could not be imported: late_adapter has no 'Adapter'; did you mean 'Adaptor'\?",
        ),
        ("import no_such_library # Adapter", r"could not .*no_such_library'\n  at .*late_adapter\.py:1"),
        ("Adapter = 3", "is no LayerAdapter"),
        ("from adapterkit.nn.adapter import PromptAdapter as Adapter", "is no LayerAdapter"),
    ],
)
def test_what_only_an_import_can_tell_is_told_at_use(site, source, message):
    files = {"late_plugin": good("LATE", "late_adapter:Adapter"), "late_adapter": source}
    registry = site(acme=({"late": "late_plugin:Config"}, files))
    config = registry["late"]()
    assert "late_adapter" not in sys.modules
    resolve.cache_clear()
    with pytest.raises(
        BrokenPluginError, match=rf"^method 'late' \(acme 1\.0\): its adapter late_adapter:Adapter {message}"
    ):
        config.adapter_class()


TASK = """
from typing import ClassVar, Literal
from adapterkit.tasks.seq_cls.config import SeqClsConfig

class Config(SeqClsConfig):
    name: Literal["stars"] = "stars"
    {}: ClassVar[str] = "RATING"
"""


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("task_type", "has task_type 'RATING', and no task is declared as 'rating': .*seq_cls"),
        ("default_metric", "has default_metric 'RATING', which is none of its measures: accuracy, f1"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused(field, message, tmp_path, monkeypatch):
    source = {"stars_plugin": TASK.format(field)}
    write_distribution(tmp_path / "site", "acme", {"adapterkit.tasks": {"stars": "stars_plugin:Config"}}, **source)
    monkeypatch.delitem(sys.modules, "stars_plugin", raising=False)
    with installed(tmp_path / "site", monkeypatch), pytest.raises(BrokenPluginError, match=message):
        Registry("task")["stars"]


def test_two_third_parties_are_an_error_only_when_the_name_is_chosen(site):
    registry = site(
        acme=({"same": "acme_same:Config"}, {"acme_same": good("SAME")}),
        bolt=(
            {"same": "bolt_same:Config", "own": "bolt_own:Config"},
            {"bolt_same": good("SAME"), "bolt_own": good("OWN")},
        ),
    )
    assert registry["own"].__module__ == "bolt_own"
    assert "same" in registry
    with pytest.raises(
        ConfigError,
        match=r"declared by several packages; choose one of acme/same \(acme 1\.0, acme_same:Config\), bolt/same",
    ):
        registry["same"]
    assert registry["acme/same"].__module__ == "acme_same"
    assert registry["bolt/same"].__module__ == "bolt_same"


def test_a_third_party_cannot_shadow_ours(site):
    registry = site(acme=({"lora": "acme_lora:Config"}, {"acme_lora": good("LORA")}))
    assert registry["lora"] is LoraConfig
    assert registry["acme/lora"].__module__ == "acme_lora"
    assert registry["adapterkit/lora"] is LoraConfig
    assert "acme_lora" not in {plugin.load().__module__ for plugin in registry.declared["lora"][:1]}


def test_one_distribution_found_twice_is_one(tmp_path, monkeypatch):
    """As an editable install and a build folder are, or a path that is on ``sys.path`` twice."""
    for place in ("one", "two"):
        write_distribution(tmp_path / place, "acme", {GROUP: {"twice": "acme_twice:Config"}}, acme_twice=good("TWICE"))
    monkeypatch.syspath_prepend(str(tmp_path / "one"))
    with installed(tmp_path / "two", monkeypatch):
        registry = Registry("method")
        assert len(registry.declared["twice"]) == 1
        assert registry["twice"]().strength == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lorra", r"no method named 'lorra'; did you mean 'lora'\?"),
        ("acme/lora", "no method named 'acme/lora'"),
        ("", "no method named ''"),
        ("zzzzzz", r"no method named 'zzzzzz'\s*\n  Installed: .*lora"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UnknownPluginError, match=message):
        methods[name]
    assert name not in methods
    assert methods.get(name) is None
    with pytest.raises(KeyError):
        methods[name]


def test_it_is_a_mapping():
    assert sorted(methods) == list(methods)
    assert len(methods) == len(list(methods)) >= 1
    assert 3 not in methods
    assert all(issubclass(config, PeftConfig) for config in methods.values())
    assert {"seq_cls", "token_cls", "causal_lm", "seq_2_seq_lm", "question_ans", "feature_extraction"} <= set(tasks)


def test_registering_by_hand_is_for_this_registry():
    registry = Registry("method")
    registry.register("mine", LoraConfig)
    assert registry["mine"] is LoraConfig
    assert "mine" in list(registry)
    assert "mine" not in Registry("method")
    for taken in ("mine", "lora"):
        with pytest.raises(ConfigError, match="already taken"):
            registry.register(taken, LoraConfig)


def test_references_are_resolved():
    assert resolve("adapterkit.methods.lora.config:LoraConfig") is LoraConfig
    assert resolve("adapterkit.methods.lora.config:LoraConfig.from_dict") == LoraConfig.from_dict
    with pytest.raises(AttributeError):
        resolve("adapterkit.methods.lora.config:Nope")
