"""Adapted parameters: merged, disabled, saved, several at once, compiled, and wrongly stated."""

from __future__ import annotations

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.errors import CapabilityError, TargetError

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.tensor([[1, 3, 5, 7], [3, 3, 0, 19]])
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def base(dtype=torch.float32):
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2)
    return MixtralForCausalLM(config).to(dtype).eval()


def noisy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def adapted(dtype=torch.float32, **fields):
    config = LoraConfig(**{"r": 2, "target_parameters": EXPERTS, **fields})
    return noisy(get_peft_model(base(dtype), config))


def logits(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def test_starts_as_the_base():
    model = get_peft_model(base(), LoraConfig(target_parameters=EXPERTS)).eval()
    torch.testing.assert_close(logits(model), logits(base()))


def test_equals_experts_with_the_products_added():
    model, plain = adapted(), base()
    stored, state = plain.model.layers[0].mlp.experts, get_peft_model_state_dict(model)
    with torch.no_grad():
        for name, prefix in (("gate_up_proj", "base_layer."), ("down_proj", "")):
            stem = f"base_model.model.model.layers.0.mlp.experts.{prefix}"
            a, b = state[f"{stem}lora_A.weight"], state[f"{stem}lora_B.weight"]
            for expert in range(3):
                update = 8 / 2 * b[:, expert::3] @ a[2 * expert : 2 * expert + 2]
                getattr(stored, name)[expert] += update
    torch.testing.assert_close(logits(model), logits(plain))


def test_merge_equals_forward_and_is_undone_exactly():
    model = adapted()
    expected, experts = logits(model), model.base_model.layers["model.layers.0.mlp.experts"].base_layer
    before = experts.gate_up_proj
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base()))
    model.unmerge_adapter()
    assert experts.gate_up_proj is before
    assert torch.equal(logits(model), expected)
    plain = model.merge_and_unload()
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in base().named_parameters()]
    torch.testing.assert_close(logits(plain), expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_save_and_load(tmp_path, low_cpu_mem_usage):
    model = adapted()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))


def test_adapters_of_different_parameters_add_up():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=3, target_parameters=["experts.down_proj"]))
    noisy(model)
    model.base_model.activate(["default", "other"])
    both = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), both)
    model.unmerge_adapter()
    model.delete_adapter("other")
    assert "other" not in model.base_model.layers["model.layers.0.mlp.experts"].names()
    model.delete_adapter("default")
    assert not model.base_model.layers


def test_half_precision_keeps_its_type():
    model = adapted(torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def test_routing_is_refused():
    with pytest.raises(CapabilityError, match="'default'"):
        logits(adapted(), adapter_names=["default", "__base__"])
    model = adapted()
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    torch.testing.assert_close(logits(model, adapter_names=["other", "__base__"]), logits(base()))


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"target_parameters": ["experts.down_projection"]}, TargetError, "did you mean 'experts.down_proj'"),
        ({"target_parameters": [*EXPERTS, "nothing"]}, TargetError, "'nothing' matches no parameter"),
        ({"target_parameters": ["norm.weight"]}, CapabilityError, r"\(8,\)"),
        (
            {"target_parameters": ["norm.table"]},
            CapabilityError,
            r"table of a MixtralRMSNorm is a torch.int64 \(2, 2\)",
        ),
        ({"target_parameters": ["q_proj.weight"], "target_modules": ["q_proj"]}, CapabilityError, "both"),
        ({"lora_dropout": 0.1}, CapabilityError, "lora_dropout"),
        ({"use_dora": True}, CapabilityError, "use_dora"),
        ({"init_lora_weights": "pissa"}, CapabilityError, "pissa"),
        ({"rank_pattern": {"experts.up": 3}}, TargetError, "rank_pattern"),
    ],
)
def test_what_cannot_be_honoured_is_said_and_changes_nothing(fields, error, match):
    model = base()
    model.model.norm.table = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(error, match=match):
        get_peft_model(model, LoraConfig(**{"r": 2, "target_parameters": EXPERTS, **fields}))
    assert [type(m) for m in model.modules()] == [type(m) for m in base().modules()]
    assert all(p.requires_grad for p in model.parameters() if p.is_floating_point())
