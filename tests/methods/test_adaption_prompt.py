"""Adaption prompts: PEFT's numbers and files on the three kinds of attention it knows, and routing by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from adapterkit import AdaptionPromptConfig, get_peft_model
from adapterkit.errors import CapabilityError, TargetError
from tests.parity.helpers import peft, quiet
from tests.parity.prompts import assert_files_go_back, batch, bert, gpt2, llama, mistral, pair, results

CONFIG = {"task_type": "CAUSAL_LM", "adapter_len": 4, "adapter_layers": 1}
INPUTS = {**batch(), "labels": batch()["input_ids"]}


@pytest.mark.parametrize("make", [gpt2, llama, mistral])
@pytest.mark.parametrize("layers", [1, 2])
def test_forward_and_files_are_those_of_peft(make: object, layers: int, tmp_path: Path) -> None:
    config = {**CONFIG, "adapter_layers": layers}
    ours, theirs = pair(config, AdaptionPromptConfig, peft.AdaptionPromptConfig, make, tmp_path)
    with quiet():
        torch.testing.assert_close(results(ours, INPUTS), results(theirs, INPUTS))
    assert_files_go_back(ours, make, INPUTS, tmp_path)
    for who in ("ours", "theirs"):
        saved = json.loads((tmp_path / who / "adapter_config.json").read_text())
        assert saved["target_modules"] == ("attn" if make is gpt2 else "self_attn")
    fresh = get_peft_model(make(), AdaptionPromptConfig(**config))
    assert fresh.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("make", [gpt2, llama])
def test_starts_as_the_base_and_generates_with_and_without_a_cache(make: object, tmp_path: Path) -> None:
    model = get_peft_model(make(), AdaptionPromptConfig(**CONFIG)).eval()
    expected = make().requires_grad_(False)(**batch()).logits
    torch.testing.assert_close(model(**batch()).logits, expected)
    model, _ = pair(CONFIG, AdaptionPromptConfig, peft.AdaptionPromptConfig, make, tmp_path)
    sequences = model.generate(**batch(left=True), max_new_tokens=5, do_sample=False)
    again = model.generate(**batch(left=True), max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(sequences, again)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_every_row_has_its_own_prompt(make: object) -> None:
    model = get_peft_model(make(), AdaptionPromptConfig(**{**CONFIG, "adapter_layers": 2}), "a").eval()
    model.add_adapter("b", AdaptionPromptConfig(**{**CONFIG, "adapter_len": 2}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaption_gate" in name:
                parameter.fill_(2.0)
    positions = torch.arange(7) + torch.tensor([[0], [5], [9]])
    inputs = {**batch(), "position_ids": positions}
    mixed = model(**inputs, adapter_names=["b", "__base__", "a"]).logits
    for row, name in ((0, "b"), (2, "a")):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row], model(**inputs).logits[row])
    with model.disable_adapter():
        torch.testing.assert_close(mixed[1], model(**inputs).logits[1])
    assert not torch.allclose(mixed[0], model(**inputs).logits[0])


def test_gradients_under_checkpointing_and_half_precision() -> None:
    model = get_peft_model(llama().to(torch.bfloat16), AdaptionPromptConfig(**CONFIG)).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    loss = model(**INPUTS).loss
    loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model(**INPUTS, use_cache=False).loss.backward()
    torch.testing.assert_close({n: p.grad for n, p in model.named_parameters() if p.requires_grad}, plain)
    assert any(grad.any() for grad in plain.values())


def test_published_count() -> None:
    with torch.device("meta"):
        base = hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=3072,
                num_hidden_layers=28,
                num_attention_heads=24,
                num_key_value_heads=8,
                intermediate_size=64,
            )
        )
    config = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=100, adapter_layers=28)
    assert get_peft_model(base, config).get_nb_trainable_parameters()[0] == 8_601_628


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(TargetError, match="adapter_layers=3"):
        get_peft_model(llama(), AdaptionPromptConfig(**{**CONFIG, "adapter_layers": 3}))
    config = AdaptionPromptConfig(**{**CONFIG, "task_type": "FEATURE_EXTRACTION", "target_modules": "self"})
    with pytest.raises(CapabilityError, match="q_proj"):
        get_peft_model(bert("AutoModel"), config)
    model = get_peft_model(llama(), AdaptionPromptConfig(**CONFIG))
    with pytest.raises(CapabilityError, match="not affine"):
        model.merge_adapter()
