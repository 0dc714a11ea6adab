"""What the author of a method may get wrong, and what is said of it."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

import peft
import pytest
import torch
from torch import nn

from adapterkit import PromptTuningConfig, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from adapterkit.config.base import PeftConfig
from adapterkit.config.layer import LayerConfig
from adapterkit.errors import BrokenPluginError, CapabilityError, ConfigError
from adapterkit.nn.adapter import LayerAdapter, PromptAdapter, WeightAdapter
from tests.models import net
from tests.parity.prompts import llama


class Scaling(LayerAdapter):
    """Nothing is wrong here."""

    def __init__(self, config: Any, layer: Any) -> None:
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.ones(layer.out_features))

    def adapt_output(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y * self.scale.to(y.dtype)


class Idle(LayerAdapter):
    def __init__(self, config: Any, layer: Any) -> None:
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.ones(layer.out_features))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y * self.scale


class OneKind(Scaling):
    kinds = "linear"


class NoSuchKind(Scaling):
    kinds = frozenset({"Linear"})


class NoSuper(Scaling):
    def __init__(self, config: Any, layer: Any) -> None:
        self.scale = nn.Parameter(torch.ones(layer.out_features))


class NoLayer(Scaling):
    def __init__(self, config: Any) -> None:
        super().__init__(config, None)


class OwnLayer(Scaling):
    def __init__(self, config: Any, layer: Any) -> None:
        super().__init__(config, layer)
        self.layer = nn.Linear(2, 2)


class OwnPrefix(Scaling):
    def __init__(self, config: Any, layer: Any) -> None:
        super().__init__(config, layer)
        self.prefix = nn.Parameter(torch.ones(2))


class NoWeight(WeightAdapter):
    pass


class Narrow(Scaling):
    def adapt_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return weight[:3]


class Forgetful(Scaling):
    def adapt_weight(self, weight: torch.Tensor) -> torch.Tensor:
        weight * self.scale[:, None]


class Words(PromptAdapter):
    def __init__(self, config: Any) -> None:
        super().__init__(config, None)


def of(kind: type[Any]) -> type[LayerConfig]:
    class MineConfig(LayerConfig):
        adapter: ClassVar[str] = f"tests.test_mistakes:{kind.__name__}"
        peft_type: Literal["MINE"] = "MINE"

    return MineConfig


class NoAdapter(LayerConfig):
    peft_type: Literal["MINE"] = "MINE"


class NotAName(NoAdapter):
    adapter: ClassVar[Any] = Scaling


class NoLayers(PeftConfig):
    adapter: ClassVar[str] = "tests.test_mistakes:Scaling"
    peft_type: Literal["MINE"] = "MINE"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (of(Idle), "MineConfig: tests.test_mistakes:Idle defines neither adapt_input nor adapt_output"),
        (of(OneKind), "OneKind has kinds='linear', where a set of any, attention, conv, embedding, linear, other"),
        (of(NoSuchKind), "NoSuchKind has kinds=frozenset({'Linear'}), where a set of any, attention, conv"),
        (of(OwnLayer), "OwnLayer has something of its own in the attribute 'layer'"),
        (NoAdapter, "NoAdapter: its adapter is None: a ClassVar that names the class is needed"),
        (NotAName, "NotAName: its adapter is <class 'tests.test_mistakes.Scaling'>: a ClassVar that names the class"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_method_that_cannot_work_is_refused(config, message):
    base = net()
    with pytest.raises(BrokenPluginError, match=re.escape(message)):
        get_peft_model(base, config(target_modules=["query"]))
    assert type(base.layers[0].query) is nn.Linear


@pytest.mark.parametrize("given", [peft.LoraConfig(), {"peft_type": "LORA"}], ids=["of peft", "dictionary"])
def test_what_is_no_config_of_ours_is_refused(given):
    model = get_peft_model(net(), of(Scaling)(target_modules=["query"]))
    makers = [
        lambda: get_peft_model(net(), given),
        lambda: model.add_adapter("other", given),
        lambda: inject_adapter_in_model(given, net()),
    ]
    for make in makers:
        with pytest.raises(
            ConfigError,
            match=r"^peft_config: a config of .* is wanted, not (an instance of peft|\{'peft_type': 'LORA'\})",
        ):
            make()


def test_a_config_that_adapts_nothing_is_refused():
    with pytest.raises(BrokenPluginError, match="NoLayers: its config is no LayerConfig and no PromptConfig"):
        get_peft_model(net(), NoLayers())


@pytest.mark.parametrize("kind", [NoSuper, NoLayer, OwnPrefix, NoWeight])
def test_an_error_in_making_names_the_method_and_the_layer(kind, monkeypatch):
    monkeypatch.setattr(NoWeight, "adapt_output", Scaling.adapt_output)
    with pytest.raises((TypeError, AttributeError, KeyError)) as caught:
        get_peft_model(net(), of(kind)(target_modules=["query"]))
    [note] = caught.value.__notes__
    assert f"MineConfig: making tests.test_mistakes:{kind.__name__} at 'layers.0.query', Linear(in_features=8" in note


def test_an_error_in_making_a_prompt_names_the_method(monkeypatch):
    monkeypatch.setattr(PromptTuningConfig, "adapter_class", lambda _: Words)
    with pytest.raises(TypeError) as caught:
        get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    [note] = caught.value.__notes__
    assert re.match(r"method 'prompt_tuning' \(adapterkit .*\): making .* for a LlamaForCausalLM", note)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"place": "keys"}, "has place='keys': choose one of embeddings, cache"),
        (
            {"conditional": True},
            "is conditional, and its config does not take the rows' tasks: forward_inputs is to name",
        ),
    ],
    ids=["place", "conditional"],
)
def test_a_prompt_that_cannot_be_what_it_says_is_refused(claim, message, monkeypatch):
    monkeypatch.setattr(PromptTuningConfig, "adapter_class", lambda _: type("Claiming", (PromptAdapter,), claim))
    with pytest.raises(BrokenPluginError, match=message):
        get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


class Gated(PromptAdapter):
    def __init__(self, config: Any, model: nn.Module) -> None:
        super().__init__(config, model)
        self.embedding, self.gate = nn.Embedding(3, 16), nn.Linear(16, 16)

    def table(self) -> torch.Tensor:
        return self.gate(self.embedding.weight)


def test_a_prompt_that_cannot_do_without_its_network_is_refused(monkeypatch):
    monkeypatch.setattr(PromptTuningConfig, "adapter_class", lambda _: Gated)
    model = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(BrokenPluginError, match=r"Gated\.table\(\) needs gate, which are None once a table is loaded"):
        set_peft_model_state_dict(model, {"prompt_embeddings": torch.ones(3, 16)})


@pytest.mark.parametrize(("kind", "given"), [(Narrow, "(3, 8)"), (Forgetful, "a NoneType")])
def test_a_weight_of_another_shape_is_not_merged(kind, given):
    model = get_peft_model(net(), of(kind)(target_modules=["query"]))
    with pytest.raises(CapabilityError, match=re.escape(f"{kind.__name__}.adapt_weight gives {given} for the weight")):
        model.merge_adapter()
    assert not model.base_model.merged_adapters


@pytest.mark.parametrize("name", ["schedule", "derived_inputs"])
def test_a_reference_to_nothing_is_named(name):
    declared = {name: "nowhere:x", "__annotations__": {name: ClassVar[str]}}
    model = get_peft_model(net(), type("Config", (of(Scaling),), declared)(target_modules=["query"]))
    with pytest.raises(BrokenPluginError, match=f"its {name} nowhere:x could not be imported: there is no module"):
        model.base_model.update_and_allocate(1) if name == "schedule" else model(torch.zeros(2, 3, dtype=torch.long))
