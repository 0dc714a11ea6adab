"""Trained token rows: beside other adapters, tied, merged, routed, saved, and wrongly stated."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from adapterkit import LoraConfig, PeftModel, get_peft_model
from adapterkit.checkpoint.state import get_peft_model_state_dict
from adapterkit.errors import CapabilityError, ConfigError, TargetError

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.tensor([[1, 3, 5, 7], [3, 3, 0, 19], [4, 5, 6, 8]])


def base(*, tied=True):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()


def adapted(model=None, **fields):
    fields = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5], **fields}
    model = get_peft_model(model or base(), LoraConfig(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def logits(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def test_starts_as_the_base_and_counts_each_row_once():
    model = get_peft_model(base(), LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 5]))
    torch.testing.assert_close(logits(model.eval()), logits(base()))
    assert model.get_nb_trainable_parameters() == (2 * 8 * 8 + 2 * 8, sum(p.numel() for p in base().parameters()) + 144)


@pytest.mark.parametrize("tied", [True, False])
def test_equals_a_model_whose_rows_were_overwritten(tied):
    model = adapted(base(tied=tied))
    rows = model.base_model.layers["model.embed_tokens"].tokens["default"].trainable_tokens_delta
    plain = base(tied=tied)
    with torch.no_grad():
        plain.model.embed_tokens.weight[[3, 5]] = rows
    lora = get_peft_model(plain, LoraConfig(target_modules=["q_proj"])).eval()
    state = get_peft_model_state_dict(model)
    for key, tensor in get_peft_model_state_dict(lora).items():
        tensor.copy_(state[key])
    torch.testing.assert_close(logits(model), logits(lora))


def test_a_tied_head_keeps_its_bias():
    torch.manual_seed(0)
    plain = BertForMaskedLM(BertConfig(**SIZES)).eval()
    with torch.no_grad():
        plain.cls.predictions.bias.normal_()
    expected = logits(plain)
    model = get_peft_model(plain, LoraConfig(target_modules=["query"], trainable_token_indices=[3, 5])).eval()
    torch.testing.assert_close(logits(model), expected)


def test_gradients_reach_the_rows_from_both_ends():
    model = adapted()
    rows = model.base_model.layers["model.embed_tokens"].tokens["default"].trainable_tokens_delta
    model(torch.tensor([[1, 2]])).logits[..., 3].sum().backward()
    assert rows.grad[0].any()
    assert not rows.grad[1].any()
    model(torch.tensor([[5, 2]])).logits[..., 2].sum().backward()
    assert rows.grad[1].any()


def test_merge_equals_forward_keeps_the_tie_and_is_undone_exactly():
    model, weight = adapted(), None
    expected, off = logits(model), logits(base())
    weight = model.base_model.model.lm_head.base_layer.weight
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), off)
    model.unmerge_adapter()
    assert model.base_model.model.lm_head.base_layer.weight is weight
    assert torch.equal(logits(model), expected)
    plain = model.merge_and_unload()
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    torch.testing.assert_close(logits(plain), expected)


def test_save_and_load(tmp_path):
    model = adapted(target_modules=["q_proj", "embed_tokens"])
    model.save_pretrained(tmp_path)
    keys = get_peft_model_state_dict(model).keys()
    assert "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta" in keys
    assert not any("lm_head" in key for key in keys)
    for low_cpu_mem_usage in (True, False):
        loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(logits(loaded), logits(model))


def test_rows_of_the_batch_route():
    model = adapted()
    model.add_adapter("other", LoraConfig(target_modules=["v_proj"], trainable_token_indices=[4]))
    with torch.no_grad():
        model.base_model.layers["model.embed_tokens"].tokens["other"].trainable_tokens_delta.normal_()
    routed = logits(model, adapter_names=["default", "__base__", "other"])
    torch.testing.assert_close(routed[:1], logits(model, IDS[:1]))
    torch.testing.assert_close(routed[1:2], logits(base(), IDS[1:2]))
    model.set_adapter("other")
    torch.testing.assert_close(routed[2:], logits(model, IDS[2:]))


def test_delete_puts_the_layers_back():
    model = adapted()
    model.delete_adapter("default")
    assert not model.base_model.layers
    assert torch.equal(logits(model), logits(base()))


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"trainable_token_indices": [3, 20]}, TargetError, r"0 to 19, not \[20\]"),
        ({"trainable_token_indices": [3, 3]}, ConfigError, "stands twice"),
        ({"trainable_token_indices": {"embed_token": [1]}}, TargetError, "embed_tokens"),
        ({"trainable_token_indices": {"norm": [1]}}, CapabilityError, "'model.norm'"),
        ({"modules_to_save": ["embed_tokens"]}, CapabilityError, "trained whole"),
    ],
)
def test_what_cannot_be_honoured_is_said_and_changes_nothing(fields, error, match):
    model = base()
    with pytest.raises(error, match=match):
        adapted(model, **fields)
    assert [type(m) for m in model.modules()] == [type(m) for m in base().modules()]
