"""Adapters on `torch.nn.MultiheadAttention`, of any method that adapts linear layers and merges."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from adapterkit import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, convert_to_lora, get_peft_model
from adapterkit.errors import CapabilityError

METHODS = {
    "lora": lambda: LoraConfig(r=2, target_modules=["self_attn"]),
    "dora": lambda: LoraConfig(r=2, use_dora=True, target_modules=["self_attn"]),
    "pissa": lambda: LoraConfig(r=2, init_lora_weights="pissa", target_modules=["self_attn"]),
    "loha": lambda: LoHaConfig(r=2, target_modules=["self_attn"]),
    "lokr": lambda: LoKrConfig(r=2, target_modules=["self_attn"]),
    "ia3": lambda: IA3Config(target_modules=["self_attn"], feedforward_modules=[]),
}


def base():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def adapted(config):
    model = get_peft_model(base(), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


X = torch.linspace(-1, 1, 120).reshape(3, 5, 8).cos()


@pytest.mark.parametrize("method", METHODS)
class TestAttention:
    def test_changes_what_comes_out_with_and_without_gradients(self, method):
        model = adapted(METHODS[method]())
        with torch.no_grad():  # where PyTorch takes a path of its own past the layers
            inferred = model(X)
            assert not torch.allclose(inferred, base()(X), atol=1e-3)
        torch.testing.assert_close(inferred, model(X), atol=1e-5, rtol=1e-4)

    def test_merge_equals_forward_and_is_undone_exactly(self, method):
        model = adapted(METHODS[method]())
        expected = model(X).detach()
        attention = model.get_base_model().layers[0].self_attn.base_layer
        before = (attention.in_proj_weight, attention.out_proj.weight)
        model.merge_adapter()
        torch.testing.assert_close(model(X), expected, atol=1e-5, rtol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(model(X), base()(X))
        model.unmerge_adapter()
        assert attention.in_proj_weight is before[0]
        assert attention.out_proj.weight is before[1]
        merged = copy.deepcopy(model).merge_and_unload()
        assert [name for name, _ in merged.named_parameters()] == [name for name, _ in base().named_parameters()]
        with torch.no_grad():
            torch.testing.assert_close(merged(X), expected, atol=1e-5, rtol=1e-4)

    def test_one_made_beside_a_merged_one_starts_as_the_base(self, method):
        model = adapted(METHODS[method]())
        model.merge_adapter()
        model.add_adapter("other", METHODS[method]())
        model.unmerge_adapter()
        model.set_adapter("other")
        torch.testing.assert_close(model(X), base()(X), atol=1e-5, rtol=1e-4)

    def test_save_and_load(self, method, tmp_path):
        model = adapted(METHODS[method]())
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(PeftModel.from_pretrained(base(), tmp_path)(X), model(X))

    def test_every_parameter_receives_a_gradient(self, method):
        model = adapted(METHODS[method]())
        model(X).square().sum().backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert all(p.grad is not None and p.grad.any() for p in trained.values())


def test_attention_without_biases_is_merged_and_has_none():
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.MultiheadAttention(8, 2, bias=False)), LoraConfig(r=2, target_modules=["0"])
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    expected = model.base_model.model[0](X, X, X)
    merged = model.merge_and_unload()[0]
    torch.testing.assert_close(merged(X, X, X), expected, atol=1e-5, rtol=1e-4)
    assert merged.in_proj_bias is merged.out_proj.bias is None


@pytest.mark.parametrize("target", ["linear1", "linear2"])
def test_adapters_beside_attention_are_not_passed_over_in_inference(target):
    model = adapted(LoraConfig(r=2, target_modules=[target]))
    with torch.no_grad():
        torch.testing.assert_close(model(X), model.merge_and_unload()(X), atol=1e-5, rtol=1e-4)


def test_all_linear_means_the_attention_and_not_its_part():
    model = get_peft_model(base(), LoraConfig(r=2, target_modules="all-linear"))
    names = [name.rpartition(".")[2] for name in model.base_model.layers]
    assert sorted(set(names)) == ["linear1", "linear2", "self_attn"]


def test_the_part_that_is_never_called_is_refused():
    with pytest.raises(CapabilityError, match=r"never called: 'layers\.0\.self_attn' reads its weight"):
        get_peft_model(base(), LoraConfig(r=2, target_modules=["out_proj"]))


@pytest.mark.parametrize("fields", [{"lora_dropout": 0.1}, {"lora_bias": True}])
def test_settings_that_need_a_call_are_refused(fields):
    with pytest.raises(CapabilityError, match=next(iter(fields))):
        get_peft_model(base(), LoraConfig(r=2, target_modules=["self_attn"], **fields))


def test_projections_of_their_own_are_refused():
    model = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=4))
    with pytest.raises(CapabilityError, match="several input projections"):
        get_peft_model(model, LoraConfig(r=2, target_modules=["0"]))


def test_routing_is_refused():
    with pytest.raises(CapabilityError, match="MultiheadAttention"):
        adapted(METHODS["lora"]())(X, adapter_names=["default", "__base__", "default"])


@pytest.mark.parametrize("rank", [2, 0.7])
def test_conversion(rank):
    model = adapted(METHODS["loha"]())
    config, state = converted = convert_to_lora(model, rank)
    assert len(converted.errors) == 4
    for name, rows in (("", 24), ("base_layer.out_proj.", 8)):
        stem = f"base_model.model.layers.0.self_attn.{name}"
        r = config.at("layers.0.self_attn").r
        assert state[f"{stem}lora_A.weight"].shape == (r, 8)
        assert state[f"{stem}lora_B.weight"].shape == (rows, r)
