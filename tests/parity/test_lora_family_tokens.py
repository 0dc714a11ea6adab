"""`trainable_token_indices` against PEFT's: tied and untied heads, several families, files both ways."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adapterkit import LoraConfig
from tests.parity.helpers import assert_parity, peft
from tests.parity.layers import seeded

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.tensor([[1, 3, 5, 7], [3, 3, 0, 19]])


def llama(*, tied: bool):
    return seeded(lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)))


@pytest.mark.parametrize(
    ("tied", "indices"),
    [
        (True, [3, 1, 19]),
        (False, [3, 1, 19]),
        (False, {"embed_tokens": [1, 3], "lm_head": [5]}),
        (True, {"embed_tokens": [1, 3], "lm_head": [1, 3]}),
        (True, {"embed_tokens": [1, 3], "lm_head": [2]}),
        (True, {"lm_head": [2, 0]}),
    ],
)
def test_llama(tied, indices):
    kwargs = {"target_modules": ["q_proj", "v_proj"], "trainable_token_indices": indices}
    # Where the head has rows of its own, PEFT merges both into the one weight they share; ours unties them.
    merge = not tied or isinstance(indices, list) or indices.get("lm_head") == indices.get("embed_tokens")
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, llama(tied=tied), IDS, merge=merge)


def test_embeddings_that_scale_what_they_look_up():
    sizes = {**SIZES, "num_key_value_heads": 1, "head_dim": 4}
    factory = seeded(lambda: Gemma3ForCausalLM(Gemma3TextConfig(**sizes)))
    kwargs = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, factory, IDS)
    # PEFT merges into the weight that the head shares, which then changes, too: the merge is not its forward.
    kwargs = {"target_modules": ["embed_tokens"]}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, factory, IDS, peft_reads=False, merge=False)


def test_an_embedding_of_another_name():
    factory = seeded(lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16)))
    kwargs = {"target_modules": ["c_attn"], "trainable_token_indices": [3, 5]}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, factory, IDS)


def test_four_tied_layers():
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    factory = seeded(lambda: T5ForConditionalGeneration(T5Config(**sizes)))
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS.flip(1)}
    kwargs = {"target_modules": ["q"], "trainable_token_indices": [3, 5]}
    assert_parity(kwargs, LoraConfig, peft.LoraConfig, factory, inputs)
