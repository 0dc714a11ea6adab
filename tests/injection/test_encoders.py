"""Adapters in `torch.nn.TransformerEncoder` as PyTorch makes it: in inference it goes past the modules it holds."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from adapterkit import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    get_peft_model,
    inject_adapter_in_model,
)

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")

CONFIGS = {
    "lora": lambda: LoraConfig(r=2, target_modules=["linear1"]),
    "attention": lambda: LoraConfig(r=2, target_modules=["self_attn"]),
    "first layer": lambda: LoraConfig(r=2, target_modules=["0.linear1"]),
    "last layer": lambda: LoraConfig(r=2, target_modules=["1.linear2"]),
    "biases": lambda: LoraConfig(r=2, target_modules=["linear1"], bias="all"),
    "ia3": lambda: IA3Config(target_modules=["linear1", "linear2"], feedforward_modules=["linear2"]),
    "loha": lambda: LoHaConfig(r=2, target_modules=["linear1"]),
    "lokr": lambda: LoKrConfig(r=2, target_modules=["linear1"]),
    "oft": lambda: OFTConfig(r=0, oft_block_size=4, target_modules=["linear1"]),
    "copy": lambda: LoraConfig(r=2, target_modules=["head"], modules_to_save=["linear2"]),
    "copied layer": lambda: LoraConfig(r=2, target_modules=["0.linear1"], modules_to_save=["layers.1"]),
}


class Encoder(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, **settings)
        self.head = nn.Linear(8, 8)

    def forward(self, x, padding):
        return self.head(self.encoder(x, src_key_padding_mask=padding))


X = torch.linspace(-1, 1, 120).reshape(3, 5, 8).cos()
PADDING = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)


def base(**settings):
    return Encoder(**settings).eval()


def adapted(config, **settings):
    model = get_peft_model(base(**settings), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def inferred(model, *args, **kwargs):
    with torch.no_grad():
        return model(*(args or (X, PADDING)), **kwargs)


def hooks(model):
    held = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return [name for name, module in model.named_modules() if any(getattr(module, field) for field in held)]


@pytest.mark.parametrize("name", CONFIGS)
class TestEncoder:
    def test_computes_what_it_does_without_nested_tensors(self, name):
        model, other = adapted(CONFIGS[name]()), adapted(CONFIGS[name](), enable_nested_tensor=False)
        expected = inferred(other)[~PADDING]
        torch.testing.assert_close(inferred(model)[~PADDING], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(X, PADDING)[~PADDING], expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(inferred(model), inferred(base()), atol=1e-2)

    def test_gradients_are_those_without_nested_tensors(self, name):
        model, other = adapted(CONFIGS[name]()), adapted(CONFIGS[name](), enable_nested_tensor=False)
        for each in (model, other):
            each(X, PADDING)[~PADDING].square().sum().backward()
        pairs = [(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True) if p.requires_grad]
        assert pairs
        for own, expected in pairs:
            torch.testing.assert_close(own.grad, expected.grad, atol=1e-5, rtol=1e-4)

    def test_a_fresh_adapter_changes_nothing_and_padding_gives_zeros(self, name):
        model = get_peft_model(base(), CONFIGS[name]()).eval()
        expected = inferred(base())
        torch.testing.assert_close(inferred(model), expected, atol=1e-5, rtol=1e-4)
        encoder = model.get_base_model().encoder
        assert not inferred(encoder, X, src_key_padding_mask=PADDING)[PADDING].any()

    def test_disabled_it_is_the_base(self, name):
        model = adapted(CONFIGS[name]())
        with model.disable_adapter():
            torch.testing.assert_close(inferred(model), inferred(base()), atol=1e-5, rtol=1e-4)

    def test_nothing_stays_on_the_base(self, name):
        model = adapted(CONFIGS[name]())
        expected = inferred(model)
        merged = copy.deepcopy(model).merge_and_unload()
        assert hooks(merged) == []
        torch.testing.assert_close(inferred(merged), expected, atol=1e-5, rtol=1e-4)
        plain = pickle.loads(pickle.dumps(model)).unload()
        assert hooks(plain) == []
        assert torch.equal(inferred(plain), inferred(base()))


def test_rows_have_their_own_adapters():
    model = adapted(CONFIGS["lora"]())
    model.add_adapter("other", LoraConfig(r=2, target_modules=["linear2"], init_lora_weights=False))
    rows = inferred(model, X, PADDING, adapter_names=["default", "__base__", "other"])
    torch.testing.assert_close(rows[0], inferred(model)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows[1], inferred(base())[1], atol=1e-5, rtol=1e-4)
    model.set_adapter("other")
    torch.testing.assert_close(rows[2], inferred(model)[2], atol=1e-5, rtol=1e-4)


def test_the_last_adapter_to_go_takes_the_hooks_with_it():
    model = adapted(CONFIGS["first layer"]())
    model.add_adapter("other", CONFIGS["last layer"]())
    model.delete_adapter("default")
    assert hooks(model) == [f"base_model.model.encoder.layers.{layer}" for layer in (0, 1)]
    model.delete_adapter("other")
    assert hooks(model) == []


def test_a_second_injection_finds_the_hooks_of_the_first():
    model = inject_adapter_in_model(CONFIGS["first layer"](), base(), "a")
    model = inject_adapter_in_model(CONFIGS["last layer"](), model, "b")
    assert [len(layer._forward_pre_hooks) for layer in model.encoder.layers] == [1, 1]


def test_a_row_of_padding_only_gives_no_bad_numbers():
    model = adapted(CONFIGS["lora"]())
    padding = PADDING.clone()
    padding[1] = True
    output = model(X, padding)
    output.square().sum().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_layers_outside_an_encoder_call_what_they_hold():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    before = inferred(layer, X)
    model = get_peft_model(layer, LoraConfig(r=2, target_modules=["linear1"], init_lora_weights=False)).eval()
    assert not torch.allclose(inferred(model, X), before, atol=1e-3)
    assert hooks(model.unload()) == []
