"""Experts of transformers 5, which configs and files name as the layers they were, against what PEFT makes of those."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft.utils import transformers_weight_conversion as conversion
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from adapterkit import LoHaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from adapterkit.architectures import FUSED
from adapterkit.errors import CheckpointError, TargetError
from tests.parity.helpers import add_noise, assert_parity, assert_same_tensors, peft, quiet, run, state_of
from tests.parity.layers import seeded

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "num_experts_per_tok": 2}
IDS = torch.tensor([[1, 3, 5, 7], [3, 3, 0, 19]])


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3))


def olmoe():
    return OlmoeForCausalLM(OlmoeConfig(**SIZES, num_experts=3, pad_token_id=0))


def qwen3():
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=8, head_dim=4))


def qwen2():
    sizes = {"num_experts": 3, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **sizes))


def deepseek():
    sizes = {"n_routed_experts": 4, "moe_intermediate_size": 8, "n_group": 2, "topk_group": 1, "q_lora_rank": 4}
    sizes |= {"kv_lora_rank": 4, "qk_rope_head_dim": 2, "v_head_dim": 4, "qk_nope_head_dim": 4}
    config = DeepseekV3Config(**{**SIZES, "num_key_value_heads": 2}, **sizes, first_k_dense_replace=1)
    return DeepseekV3ForCausalLM(config)


CASES = [
    (mixtral, "all-linear"),
    (mixtral, ["q_proj", "w1", "w2", "w3"]),
    (mixtral, ["w1", "w3"]),
    (mixtral, ["experts.w2", "gate"]),
    (mixtral, ".*(q_proj|w1|w2|w3)"),
    (olmoe, "all-linear"),
    (qwen3, "all-linear"),
    (qwen3, ["q_proj", "gate_proj", "up_proj", "down_proj"]),
    (qwen3, r".*\.(gate|up|down)_proj"),
    (qwen3, ".*_proj"),
]


def test_the_families_are_pefts():
    known = {kind: name for kind, name in conversion._MODEL_TO_CONVERSION_PATTERN.items() if kind == kind.lower()}
    theirs = {kind: name for kind, name in known.items() if name in conversion._MOE_TARGET_MODULE_MAPPING}
    assert FUSED.keys() == theirs.keys()
    for kind, name in theirs.items():
        layers = {layer: now for now, held in FUSED[kind].parameters.items() for layer in held}
        assert layers == conversion._MOE_TARGET_MODULE_MAPPING[name]
        assert list(FUSED[kind].parameters["gate_up_proj"]) == conversion._MOE_FUSED_TARGETS[name]["gate_up_proj"]


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_layers_that_are_parameters_now(make, targets):
    kwargs = {"r": 2, "lora_alpha": 3, "target_modules": targets, "task_type": "CAUSAL_LM"}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, seeded(make), IDS)


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_the_config_is_pefts(make, targets, tmp_path):
    kwargs = {"r": 2, "lora_alpha": 3, "target_modules": targets, "task_type": "CAUSAL_LM"}
    get_peft_model(seeded(make)(), LoraConfig(**kwargs)).save_pretrained(tmp_path / "ours")
    with quiet():
        peft.get_peft_model(seeded(make)(), peft.LoraConfig(**kwargs)).save_pretrained(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / d / "adapter_config.json").read_text()) for d in ("ours", "theirs"))
    for field in ("target_modules", "target_parameters", "rank_pattern", "alpha_pattern"):
        found, expected = ours[field], theirs[field]
        if isinstance(expected, list):  # PEFT leaves the names in that match nothing
            found, expected = set(found), {name for name in expected if "modules" not in field or "gate_up" not in name}
        assert found == expected, field


def test_layers_beside_the_experts_are_named(tmp_path):
    kwargs = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with pytest.warns(UserWarning, match=r"mean the experts in this family.* model\.layers\.0\.mlp\.gate_proj, "):
        mine = get_peft_model(seeded(deepseek)(), LoraConfig(**kwargs))
    add_noise(mine)
    mine.eval().save_pretrained(tmp_path)
    with quiet():
        theirs = peft.get_peft_model(seeded(deepseek)(), peft.LoraConfig(**kwargs))
        assert get_peft_model_state_dict(mine).keys() == state_of(theirs).keys()
        back = peft.PeftModel.from_pretrained(seeded(deepseek)(), tmp_path).eval()
    torch.testing.assert_close(run(back, IDS), run(mine, IDS), atol=1e-5, rtol=1e-4)


def old_layout(path, layers, block, experts, router=None):
    """A file as it was written with transformers 4: an adapter for each layer of each expert."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for i in range(2):
        sizes = {f"experts.{e}.{name}": shape for e in range(experts) for name, shape in layers.items()}
        for name, (outs, ins) in (sizes | ({"gate": router} if router else {})).items():
            stem = f"base_model.model.model.layers.{i}.{block}.{name}"
            state[f"{stem}.lora_A.weight"] = torch.randn(2, ins, generator=generator)
            state[f"{stem}.lora_B.weight"] = torch.randn(outs, 2, generator=generator)
    save_file(state, path / "adapter_model.safetensors")
    names = [*layers, *(["gate"] if router else [])]
    text = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 3, "target_modules": names}
    (path / "adapter_config.json").write_text(json.dumps(text))
    return state


OLD = {
    "mixtral": (mixtral, {"w1": (12, 8), "w2": (8, 12), "w3": (12, 8)}, "block_sparse_moe", 3, (3, 8)),
    "qwen3": (qwen3, {"gate_proj": (8, 8), "up_proj": (8, 8), "down_proj": (8, 8)}, "mlp", 4),
}


@pytest.mark.parametrize("name", OLD)
def test_files_of_transformers_4(tmp_path, name):
    make, *layout = OLD[name]
    state = old_layout(tmp_path, *layout)
    with quiet():
        theirs = peft.PeftModel.from_pretrained(seeded(make)(), tmp_path).eval()
    mine = PeftModel.from_pretrained(seeded(make)(), tmp_path)
    assert_same_tensors(get_peft_model_state_dict(mine), state_of(theirs))
    torch.testing.assert_close(run(mine, IDS), run(theirs, IDS), atol=1e-5, rtol=1e-4)
    last = list(state)[-1]
    save_file({key: tensor for key, tensor in state.items() if key != last}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.1\.mlp"):
        PeftModel.from_pretrained(seeded(make)(), tmp_path)


def test_a_pattern_for_one_layer_means_one_layer(tmp_path):
    config = LoraConfig(r=2, target_modules=r"model\.layers\.1\..*(q_proj|w1|w2|w3)", task_type="CAUSAL_LM")
    model = get_peft_model(seeded(mixtral)(), config)
    assert set(model.base_model.layers) == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.experts"}
    add_noise(model)
    model.eval().save_pretrained(tmp_path)
    with quiet():
        theirs = peft.PeftModel.from_pretrained(seeded(mixtral)(), tmp_path).eval()
    for read in (PeftModel.from_pretrained(seeded(mixtral)(), tmp_path), theirs):
        torch.testing.assert_close(run(read, IDS), run(model, IDS), atol=1e-5, rtol=1e-4)


def test_excluded_experts_are_left_out():
    config = LoraConfig(target_modules="all-linear", exclude_modules=["experts"], task_type="CAUSAL_LM")
    model = get_peft_model(seeded(mixtral)(), config)
    assert {name.rpartition(".")[2] for name in model.base_model.layers} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate"
    }  # fmt: skip


def test_what_is_excluded_needs_no_warning():
    config = LoHaConfig(target_modules="all-linear", exclude_modules=["experts"])
    assert get_peft_model(seeded(mixtral)(), config).base_model.layers


def test_no_pattern_is_refused_as_elsewhere():
    with pytest.raises(ValidationError, match="not a regular expression"):
        LoraConfig(target_modules="(w1")
    with pytest.raises(TargetError, match="'gate_up_proj' matches no module"):
        get_peft_model(seeded(mixtral)(), LoraConfig(target_modules=["q_proj", "gate_up_proj"]))


@pytest.mark.parametrize("targets", [["w1", "w2"], ".*w1"])
def test_a_part_of_a_parameter_is_refused(targets):
    with pytest.raises(TargetError, match=r"w1 cannot be adapted without w3: .*experts\.gate_up_proj"):
        get_peft_model(seeded(mixtral)(), LoraConfig(target_modules=targets))


@pytest.mark.parametrize(
    ("make", "config", "advice"),
    [
        (qwen2, LoraConfig, "to adapt them, too: target_parameters=['experts.down_proj', 'experts.gate_up_proj']"),
        (mixtral, LoHaConfig, "leaves out parameters that hold experts: model.layers.0.mlp.experts.gate_up_proj, "),
    ],
)
def test_all_linear_says_which_experts_it_leaves_out(make, config, advice):
    with pytest.warns(UserWarning, match=re.escape(advice)):
        get_peft_model(seeded(make)(), config(target_modules="all-linear"))
