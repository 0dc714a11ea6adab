"""What state adapters are in: PEFT's fields with PEFT's values."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import adapterkit
from tests.parity.helpers import peft, quiet


def bert():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, vocab_size=20)
    return BertForSequenceClassification(config)


def built(library, **fields):
    with quiet():
        config = library.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", **fields)
        return library.get_peft_model(bert(), config)


def second(model, library):
    model.add_adapter("other", library.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))


def activated(model, library):
    second(model, library)
    model.set_adapter("other")


def frozen(model, library):
    second(model, library)
    model.set_requires_grad("default", False)


def merged(model, library):
    model.merge_adapter()


STATES = [lambda model, library: None, second, activated, frozen, merged]


@pytest.mark.parametrize("change", STATES, ids=["fresh", "second", "activated", "frozen", "merged"])
def test_fields_are_pefts(change):
    ours, theirs = built(adapterkit), built(peft)
    for model, library in ((ours, adapterkit), (theirs, peft)):
        with quiet():
            change(model, library)
    mine, other = dataclasses.asdict(ours.get_model_status()), dataclasses.asdict(theirs.get_model_status())
    if change is merged:  # PEFT calls it irregular, because the head that is saved whole is not merged
        assert other["merged_adapters"] == "irregular"
        other["merged_adapters"] = ["default"]
    assert mine == other
    layers = [dataclasses.asdict(layer) for layer in ours.get_layer_status()]
    expected = [dataclasses.asdict(layer) for layer in theirs.get_layer_status()]
    for layer in expected:  # the wrapper of a module that is saved whole has another name
        layer["module_type"] = layer["module_type"].replace("ModulesToSaveWrapper", "modules_to_save.Linear")
        layer["active_adapters"] = sorted(set(layer["active_adapters"]) & set(other["active_adapters"]))
    assert [layer["name"] for layer in layers] == [layer["name"] for layer in expected]
    for layer, theirs_layer in zip(layers, expected, strict=True):
        assert layer.keys() == theirs_layer.keys()
        if not layer["module_type"].startswith("modules_to_save"):
            assert layer == theirs_layer


def test_disabled_and_irregular():
    model = built(adapterkit)
    with model.disable_adapter():
        assert not model.get_model_status().enabled
    status = model.get_model_status()
    assert status.enabled
    assert status.requires_grad == {"default": True}
    next(p for n, p in model.named_parameters() if "lora_A" in n).requires_grad_(False)
    assert model.get_model_status().requires_grad == {"default": "irregular"}
    assert model.get_layer_status()[0].requires_grad == {"default": "irregular"}


def test_merged_everywhere_or_irregular():
    model = built(adapterkit)
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]
    next(iter(model.base_model.layers.values())).unmerge()
    assert model.get_model_status().merged_adapters == "irregular"


def test_a_plain_model_with_injected_adapters():
    model = nn.Sequential(nn.Linear(4, 4))
    adapterkit.inject_adapter_in_model(adapterkit.LoraConfig(r=2, target_modules=["0"]), model)
    status = adapterkit.get_model_status(model)
    assert (status.base_model_type, status.adapter_model_type, status.peft_types) == ("other", "None", {})
    assert status.active_adapters == status.available_adapters == ["default"]
    assert adapterkit.get_layer_status(model)[0].name == "0"
    assert adapterkit.get_layer_status(model)[0].module_type == "lora.Linear"


def test_nothing_adapted_is_an_error():
    with pytest.raises(TypeError, match="no layer of this Sequential has an adapter"):
        adapterkit.get_layer_status(nn.Sequential(nn.Linear(4, 4)))
