"""What is (IA)³'s own: which modules have their input scaled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from adapterkit import IA3Config, get_peft_model
from adapterkit.errors import CapabilityError, TargetError


def two_layers():
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))


def vectors(model):
    return {name: tuple(layer.adapters["default"].ia3_l.shape) for name, layer in model.base_model.layers.items()}


def test_feedforward_modules_scale_the_input():
    model = get_peft_model(two_layers(), IA3Config(target_modules=["0", "1"], feedforward_modules=["1"]))
    assert vectors(model) == {"0": (6, 1), "1": (1, 6)}
    x, base = torch.randn(2, 4), model.get_base_model()
    layers = model.base_model.layers
    with torch.no_grad():
        layers["0"].adapters["default"].ia3_l.fill_(2.0)
        layers["1"].adapters["default"].ia3_l.fill_(3.0)
        inner = base[0].base_layer(x) * 2
        torch.testing.assert_close(model(x), base[1].base_layer(inner * 3))


def test_the_default_targets_of_a_family():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=20, **sizes)
    model = get_peft_model(LlamaModel(config), IA3Config())
    prefix = "layers.0."
    assert vectors(model) == {
        f"{prefix}self_attn.k_proj": (8, 1),
        f"{prefix}self_attn.v_proj": (8, 1),
        f"{prefix}mlp.down_proj": (1, 16),
    }
    assert model.peft_config["default"].feedforward_modules == ["down_proj"]


def test_a_feedforward_module_that_is_no_target_is_refused():
    with pytest.raises(ValueError, match=r"feedforward_modules must be among target_modules, and \['1'\] are not"):
        IA3Config(target_modules=["0"], feedforward_modules=["1"])
    with pytest.raises(TargetError, match="feedforward_modules"):
        get_peft_model(two_layers(), IA3Config(target_modules="0", feedforward_modules=["1"]))


def test_an_unknown_family_needs_feedforward_modules_stated():
    with pytest.raises(TargetError, match="feedforward_modules"):
        get_peft_model(two_layers(), IA3Config(target_modules=["0"]))
    assert get_peft_model(two_layers(), IA3Config(target_modules=["0"], feedforward_modules=[]))


def test_half_precision_activations_stay_half():
    model = get_peft_model(two_layers().bfloat16(), IA3Config(target_modules=["0", "1"], feedforward_modules=["1"]))
    assert model(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_combined_feedforward_modules_are_those_of_any():
    model = get_peft_model(two_layers(), IA3Config(target_modules=["0"], feedforward_modules=["0"]), "a")
    model.add_adapter("b", IA3Config(target_modules=["0", "1"], feedforward_modules=["0", "1"]))
    model.add_adapter("c", IA3Config(target_modules=["0", "1"], feedforward_modules=["1"]))
    for names in (["a", "b"], ["b", "a"]):
        model.add_weighted_adapter(names, [0.5, 0.5], "-".join(names))
        assert model.peft_config["-".join(names)].feedforward_modules == ["0", "1"]
    with pytest.raises(CapabilityError, match="feedforward_modules of some name a layer, and of others do not: 0"):
        model.add_weighted_adapter(["a", "c"], [0.5, 0.5], "unlike")
