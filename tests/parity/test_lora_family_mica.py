"""MiCA: PEFT's numbers and files; the frozen factor; and what does not go with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterkit import LoraConfig, PeftModel, create_lorafa_optimizer, get_peft_model
from adapterkit.errors import CapabilityError, ConfigError
from adapterkit.hotswap import hotswap_adapter
from tests.parity.helpers import add_noise, assert_parity, peft
from tests.parity.layers import Net, seeded, single

MICA = {"r": 3, "init_lora_weights": "mica"}


@pytest.mark.parametrize("layer", ["linear", "transposed", "embedding"])
def test_every_layer_kind(layer):
    factory, inputs = single(layer)
    assert_parity({**MICA, "target_modules": ["target"]}, LoraConfig, peft.LoraConfig, factory, inputs)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "lora_alpha": 3}, {"bias": "lora_only"}], ids=str)
def test_a_model_of_several_layers(fields):
    torch.manual_seed(3)
    kwargs = {**MICA, "target_modules": ["query", "value"], **fields}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(Net), torch.randn(3, 5, 8))


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Conv1d(2, 4, 1), nn.Embedding(9, 6))


def adapted(**fields) -> PeftModel:
    return get_peft_model(base()[:1], LoraConfig(**{**MICA, "target_modules": ["0"], **fields}))


def test_the_second_factor_has_the_directions_that_the_weight_uses_least():
    model = adapted()
    adapter = model.get_base_model()[0].adapters["default"]
    weight, minor = adapter.layer.weight, adapter.lora_B.weight
    torch.testing.assert_close(minor.T @ minor, torch.eye(3))
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close((minor.T @ weight).norm(dim=1), values[-3:])
    x = torch.randn(5, 8)
    assert torch.equal(model(x), base()[:1](x))


def test_the_second_factor_is_never_trained(tmp_path):
    model = adapted()
    adapter = model.get_base_model()[0].adapters["default"]

    def trained() -> list[bool]:
        return [factor.weight.requires_grad for factor in (adapter.lora_A, adapter.lora_B)]

    assert trained() == [True, False]
    model.set_requires_grad("default", False)
    assert trained() == [False, False]
    model.set_requires_grad("default")
    assert trained() == [True, False]
    assert model.get_nb_trainable_parameters()[0] == 3 * 8
    add_noise(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base()[:1], tmp_path, is_trainable=True)
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == [
        name for name, p in model.named_parameters() if p.requires_grad
    ]
    assert torch.equal(loaded(x := torch.randn(5, 8)), model(x))


def test_a_combination_is_trained_whole():
    model = adapted()
    add_noise(model)
    model.add_weighted_adapter(["default"], [2.0], "twice", "linear")
    assert model.peft_config["twice"].init_lora_weights is True
    model.set_adapter("twice")
    assert all(p.requires_grad for p in model.get_base_model()[0].adapters["twice"].parameters())


def test_one_factor_at_least_is_trained():
    with pytest.raises(CapabilityError, match="LoRA-FA does not go with init_lora_weights='mica'"):
        create_lorafa_optimizer(adapted(), 3, 8, 1e-3)


def test_a_swapped_in_adapter_is_trained_as_the_old_one_was(tmp_path):
    model, other = adapted(), adapted()
    add_noise(other)
    other.save_pretrained(tmp_path)
    hotswap_adapter(model, tmp_path, "default")
    adapter = model.get_base_model()[0].adapters["default"]
    assert [f.weight.requires_grad for f in (adapter.lora_A, adapter.lora_B)] == [True, False]
    assert torch.equal(model(x := torch.randn(5, 8)), other(x))


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"use_dora": True}, ValueError, "init_lora_weights='mica' and use_dora exclude each other"),
        ({"lora_bias": True}, ValueError, "init_lora_weights='mica' and lora_bias exclude each other"),
        ({"alora_invocation_tokens": [1]}, ValueError, "exclude each other"),
        ({"use_qalora": True}, ValueError, "use_qalora starts from true, false or gaussian, not 'mica'"),
        ({"r": 7}, ConfigError, r"takes r=7 directions; a weight \(6, 8\) has fewer"),
        ({"target_modules": ["1"]}, CapabilityError, "for linear layers and embeddings only"),
    ],
    ids=str,
)
def test_what_does_not_go_with_it(fields, error, said):
    with pytest.raises(error, match=said):
        get_peft_model(base(), LoraConfig(**{**MICA, "target_modules": ["0"], **fields}))
