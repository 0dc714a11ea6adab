"""Activated LoRA: PEFT's numbers in forward, gradient and generation, files both ways, and what it cannot do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from adapterkit import (
    LoraConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from adapterkit.errors import CapabilityError, ConfigError, StateError
from adapterkit.methods.lora.activated import INPUT, mask
from tests.parity.bases import llama
from tests.parity.helpers import add_noise, assert_parity, gradients, peft, peft_model, quiet, run, state_of

TOKENS = [5, 6]
IDS = torch.tensor([[3, 5, 6, 9, 4, 8], [5, 6, 7, 5, 6, 3], [9, 8, 5, 7, 6, 4], [4, 4, 3, 7, 5, 6]])
"""The sequence in the middle, twice, in pieces, and at the end."""

STARTS = [1, 3, None, 4]
FIELDS = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "down_proj"]}
GENERATION = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}


def config(**fields):
    return LoraConfig(**{**FIELDS, "alora_invocation_tokens": TOKENS, **fields})


def moved(**fields) -> PeftModel:
    model = get_peft_model(llama(), config(**fields))
    add_noise(model)
    return model.eval()


def both(tmp_path):
    theirs = peft_model(peft.LoraConfig(**FIELDS, alora_invocation_tokens=TOKENS), llama())
    with quiet():
        theirs.save_pretrained(tmp_path)
    return PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True).eval(), theirs


@pytest.mark.parametrize("fields", [{}, {"lora_bias": True}, {"use_rslora": True, "lora_alpha": 3}])
def test_parity(fields):
    def make():
        model = llama()
        for module in list(model.modules()):
            if fields.get("lora_bias") and isinstance(module, nn.Linear):
                module.bias = nn.Parameter(torch.zeros(module.out_features))
        return model

    kwargs = {**FIELDS, "alora_invocation_tokens": TOKENS, **fields}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, make, {"input_ids": IDS}, merge=False)


def test_training_has_peft_s_gradients(tmp_path):
    ours, theirs = both(tmp_path)
    state, their_state = get_peft_model_state_dict(ours), state_of(theirs)
    inputs = {"input_ids": IDS, "labels": IDS}
    torch.testing.assert_close(run(ours.train(), inputs), run(theirs.train(), inputs))
    torch.testing.assert_close(gradients(ours, state, inputs), gradients(theirs, their_state, inputs))


def test_generation_with_a_cache_is_peft_s(tmp_path):
    ours, theirs = both(tmp_path)
    more = {"output_logits": True, "return_dict_in_generate": True, **GENERATION}
    mine = ours.generate(input_ids=IDS, **more)
    with quiet():
        wanted = theirs.generate(input_ids=IDS, **more)
    assert torch.equal(mine.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(mine.logits), torch.stack(wanted.logits))


def test_generation_without_a_cache_and_by_beams_is_generation_with_one():
    """Rows that grow keep their start; PEFT counts it from an end that moves."""
    model = moved()
    for search in ({}, {"num_beams": 3}):
        cached = model.generate(IDS, **GENERATION, **search)
        assert torch.equal(model.generate(IDS, **GENERATION, **search, use_cache=False), cached)
        alone = [model.generate(IDS[i : i + 1], **GENERATION, **search) for i in range(4)]
        assert torch.equal(torch.cat(alone), cached)


def test_the_adapter_acts_from_the_start_on():
    model, base = moved(), llama()
    logits, plain = model(IDS).logits, base(IDS).logits
    for row, start in enumerate(STARTS):
        before = slice(None, start)
        torch.testing.assert_close(logits[row, before], plain[row, before])
        assert start is None or not torch.allclose(logits[row, start:], plain[row, start:], atol=1e-3)


def test_a_cache_of_the_base_serves_the_adapter():
    model = moved()
    row, start = IDS[:1], STARTS[0]
    with torch.no_grad(), model.disable_adapter():
        cache = model(row[:, :start], use_cache=True).past_key_values
    rest = model(row[:, start:], past_key_values=copy.deepcopy(cache)).logits
    torch.testing.assert_close(rest, model(row).logits[:, start:])
    last = model(row[:, :-1], use_cache=True).past_key_values
    told = model(row[:, -1:], past_key_values=last, alora_offsets=[5]).logits
    torch.testing.assert_close(told, model(row).logits[:, -1:])


def test_rows_of_several_adapters():
    model = moved()
    model.add_adapter("other", config(alora_invocation_tokens=[7]))
    model.add_adapter("plain", LoraConfig(**FIELDS))
    model.set_requires_grad(["other", "plain"])
    add_noise(model)
    names = ["other", "default", "plain", "__base__"]
    with torch.no_grad():
        routed = model(IDS, adapter_names=names).logits
        for row, name in enumerate(names[:3]):
            model.set_adapter(name)
            torch.testing.assert_close(model(IDS[row : row + 1]).logits[0], routed[row])
        torch.testing.assert_close(llama()(IDS[3:]).logits[0], routed[3])


def test_gradient_checkpointing():
    grads = []
    for checkpointing in (False, True):
        model = moved().train()
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(grads[0], grads[1])


class TestRefusals:
    def test_merging(self):
        model = moved()
        for act in (model.merge_adapter, model.merge_and_unload, lambda: convert_to_lora(model, 2)):
            with pytest.raises(CapabilityError, match="alora_invocation_tokens: no weight acts on some tokens only"):
                act()
        model(IDS)

    def test_a_combination_of_other_tokens(self):
        model = moved()
        model.add_adapter("other", config(alora_invocation_tokens=[7]))
        with pytest.raises(CapabilityError, match="different alora_invocation_tokens"):
            model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum", "linear")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"use_dora": True}, "exclude each other"),
            ({"task_type": "SEQ_2_SEQ_LM"}, "is for CAUSAL_LM"),
            ({"alora_invocation_tokens": []}, "alora_invocation_tokens"),
        ],
    )
    def test_settings(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            LoraConfig.from_dict(config().to_dict() | fields)

    def test_layers_that_are_not_called_with_tokens(self):
        with pytest.raises(CapabilityError, match="alora_invocation_tokens is not possible on an embedding"):
            get_peft_model(llama(), config(target_modules=["embed_tokens"]))

    def test_inputs_without_ids(self):
        model = moved()
        embedded = model.get_base_model().model.embed_tokens(IDS)
        with pytest.raises(CapabilityError, match="looked for in input_ids; give them, or alora_offsets"):
            model(inputs_embeds=embedded)
        offsets = [None if start is None else 6 - start for start in STARTS]
        told = model(inputs_embeds=embedded, alora_offsets=offsets).logits
        torch.testing.assert_close(told, model(IDS).logits)

    def test_generation_in_pieces(self):
        with pytest.raises(CapabilityError, match="prompt_lookup_num_tokens is not possible"):
            moved().generate(IDS[:1], prompt_lookup_num_tokens=2, **GENERATION)

    def test_a_model_without_a_wrapper(self):
        with pytest.raises(StateError, match="found by PeftModel's forward and generate"):
            inject_adapter_in_model(config(), llama())(IDS)

    @pytest.mark.parametrize("shape", [(3, 4, 8), (2, 3, 4, 8)], ids=str)
    def test_inputs_that_are_not_the_rows_tokens(self, shape):
        with pytest.raises(StateError, match=r"a layer's input \(.*, 4, 8\) is not 2 rows of tokens"):
            mask(torch.zeros(shape), {INPUT: torch.zeros(2, 2)})
