"""`target_parameters` against PEFT's: mixtures of experts stored either way, single matrices, two on one module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from adapterkit import (
    LoraConfig,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from tests.parity.helpers import add_noise, assert_parity, peft
from tests.parity.layers import seeded

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "num_experts_per_tok": 2}
IDS = torch.tensor([[1, 3, 5, 7], [3, 3, 0, 19]])


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3))


def qwen():
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=8, head_dim=4))


def gpt_oss():
    return GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=3, head_dim=4, layer_types=["full_attention"] * 2))


FAMILIES = {"mixtral": mixtral, "qwen": qwen, "gpt_oss": gpt_oss}


@pytest.mark.parametrize(
    "fields",
    [
        {"target_parameters": ["experts.down_proj"]},
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "lora_alpha": 3, "use_rslora": True},
        {"target_parameters": ["down_proj"], "rank_pattern": {"1.mlp.experts.down_proj": 3}},
    ],
    ids=["one", "two", "pattern"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_experts(family, fields):
    kwargs = {"r": 2, "target_modules": [], **fields}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(FAMILIES[family]), IDS)


def test_beside_modules():
    kwargs = {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(mixtral), IDS)


@pytest.mark.parametrize("scheme", ["gaussian", True, False])
def test_a_single_matrix(scheme):
    kwargs = {"r": 2, "target_modules": [], "target_parameters": ["q_proj.weight"], "init_lora_weights": scheme}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(mixtral), IDS)


class Holder(nn.Module):
    """A module with parameters of its own, and a layer that is adapted, too."""

    def __init__(self):
        super().__init__()
        self.first, self.experts = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(3, 8, 8))
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        return self.last(torch.einsum("bi,eio->bo", x @ self.first, self.experts))


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = Holder()

    def forward(self, x):
        return self.inside(x)


HELD = {
    "parameters": {"target_parameters": ["first", "experts"], "bias": "all"},
    "a layer": {"target_parameters": ["first"], "target_modules": ["last"]},
    "both": {"target_parameters": ["first", "experts"], "target_modules": ["last"], "bias": "lora_only"},
}


@pytest.mark.parametrize("case", HELD)
def test_layers_inside_of_what_has_the_parameters(case):
    kwargs = {"r": 2, **HELD[case]}  # PEFT leaves wrappers in what it merges
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(Held), torch.randn(4, 6), merge=False)


@pytest.mark.parametrize(
    "fields", [*HELD.values(), {"target_parameters": ["first"], "modules_to_save": ["last"]}], ids=str
)
def test_layers_inside_merge_and_come_out(fields):
    x, config = torch.randn(4, 6), LoraConfig(r=2, **fields)
    model = get_peft_model(seeded(Held)(), config)
    add_noise(model)
    before = model.eval()(x)
    assert get_base_model_state_dict(model).keys() == seeded(Held)().state_dict().keys()
    model.merge_adapter()
    torch.testing.assert_close(model(x), before)
    model.unmerge_adapter()
    again = get_peft_model(copy.deepcopy(model).unload(), config)
    set_peft_model_state_dict(again, get_peft_model_state_dict(model))
    torch.testing.assert_close(again.eval()(x), before)
    torch.testing.assert_close(copy.deepcopy(model).merge_and_unload()(x), before)
    torch.testing.assert_close(model.unload()(x), seeded(Held)()(x))
