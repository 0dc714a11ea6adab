"""`target_parameters` against PEFT's: mixtures of experts stored either way, single matrices, two on one module."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from adapterkit import LoraConfig
from tests.parity.helpers import assert_parity, peft
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
