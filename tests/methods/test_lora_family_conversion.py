"""Conversion to LoRA: exact where the rank suffices, as near as can be where not, for every method that merges."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from adapterkit import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    inject_adapter_in_model,
    save_as_lora,
)
from adapterkit.checkpoint.state import set_peft_model_state_dict
from adapterkit.errors import CapabilityError, ConfigError, StateError

TARGETS = ["query", "value"]
METHODS = {
    "lora": lambda: LoraConfig(r=4, target_modules=TARGETS),
    "dora": lambda: LoraConfig(r=4, use_dora=True, target_modules=TARGETS),
    "pissa": lambda: LoraConfig(r=2, init_lora_weights="pissa", target_modules=TARGETS),
    "loha": lambda: LoHaConfig(r=2, target_modules=TARGETS),
    "lokr": lambda: LoKrConfig(r=2, target_modules=TARGETS),
    "oft": lambda: OFTConfig(oft_block_size=4, target_modules=TARGETS),
    "ia3": lambda: IA3Config(target_modules=TARGETS, feedforward_modules=["value"]),
    "beside": lambda: LoraConfig(r=4, bias="all", modules_to_save=["head"], target_modules=TARGETS),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8, bias=False)}) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer["value"](layer["query"](x)))
        return self.head(x)


class Single(nn.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.target = make()

    def forward(self, x):
        return self.target(x)


def noisy(model, config):
    model = get_peft_model(model, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_the_full_rank_is_exact(method, tmp_path):
    model, x = noisy(Net(), METHODS[method]()), torch.randn(5, 8)
    errors = save_as_lora(tmp_path, model, 8)
    assert list(errors) == [f"layers.{i}.{name}" for i in range(2) for name in TARGETS]
    assert max(errors.values()) < 1e-5
    again = PeftModel.from_pretrained(Net(), tmp_path)
    torch.testing.assert_close(again(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["loha", "oft"])
def test_a_low_rank_is_the_nearest_and_says_how_far(method):
    model = noisy(Net(), METHODS[method]())
    config, state = converted = convert_to_lora(model, 2)
    for name, error in converted.errors.items():
        layer = model.base_model.layers[name]
        change = layer.adapters["default"].adapt_weight(layer.view.weight).detach() - layer.view.weight
        stem = f"base_model.model.{name}."
        assert config.at(name).lora_alpha == config.at(name).r
        near = state[f"{stem}lora_B.weight"] @ state[f"{stem}lora_A.weight"]
        values = torch.linalg.svdvals(change)
        torch.testing.assert_close((change - near).norm(), values[2:].norm())
        assert error == pytest.approx(float(values[2:].norm() / values.norm()), abs=1e-4)


def test_a_share_of_the_energy_gives_each_layer_its_rank():
    model = noisy(Net(), METHODS["loha"]())
    config, _ = converted = convert_to_lora(model, 0.9)
    for name, error in converted.errors.items():
        layer = model.base_model.layers[name]
        change = layer.adapters["default"].adapt_weight(layer.view.weight).detach() - layer.view.weight
        energy = torch.linalg.svdvals(change.double()).square()
        expected = int((energy.cumsum(0) / energy.sum() < 0.9).sum()) + 1
        assert config.at(name).r == expected
        assert error**2 <= 0.1 + 1e-6
    assert len(set(converted.errors)) == 4


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Embedding(10, 6), torch.arange(10)),
        (lambda: nn.Conv1d(4, 6, 3, padding=1), torch.randn(2, 4, 7)),
        (lambda: nn.Conv2d(4, 6, (1, 3), bias=False), torch.randn(2, 4, 5, 5)),
    ],
)
def test_other_layers(make, x):
    model = noisy(Single(make), LoraConfig(r=3, lora_alpha=5, target_modules=["target"]))
    config, state = converted = convert_to_lora(model, 3)
    assert max(converted.errors.values()) < 1e-4
    again = get_peft_model(Single(make), config)
    set_peft_model_state_dict(again, state)
    torch.testing.assert_close(again.eval()(x), model(x), atol=1e-4, rtol=1e-4)


def mixtral():
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, num_local_experts=3, num_experts_per_tok=2)).eval()


def test_experts(tmp_path):
    fields = {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"], "target_modules": ["q_proj"]}
    model, ids = noisy(mixtral(), LoraConfig(r=2, **fields)), torch.arange(8).reshape(2, 4)
    errors = save_as_lora(tmp_path, model, 2)
    assert max(errors.values()) < 1e-4
    again = PeftModel.from_pretrained(mixtral(), tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_plain_model_with_injected_adapters():
    model = inject_adapter_in_model(METHODS["loha"](), Net())
    config, state = convert_to_lora(model, 4)
    assert sorted(config.target_modules) == TARGETS
    assert "layers.0.query.lora_A.weight" in state


@pytest.mark.parametrize(
    ("rank", "error", "match"),
    [(0, ConfigError, "rank=0"), (1.5, ConfigError, "rank=1.5"), (9, ConfigError, "no more than 8 directions")],
)
def test_ranks_that_are_none(rank, error, match):
    with pytest.raises(error, match=match):
        convert_to_lora(noisy(Net(), METHODS["loha"]()), rank)


def test_what_cannot_be_converted():
    model = noisy(Net(), METHODS["loha"]())
    model.merge_adapter()
    with pytest.raises(StateError, match="merged"):
        convert_to_lora(model, 2)
    config = IA3Config(target_modules=["target"], feedforward_modules=[])
    grouped = noisy(Single(lambda: nn.Conv2d(4, 6, 3, groups=2)), config)
    with pytest.raises(CapabilityError, match="Conv2d"):
        convert_to_lora(grouped, 2)
