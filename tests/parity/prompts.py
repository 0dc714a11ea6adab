"""Tiny models of every kind, and one way to compare a prompt method with PEFT's on them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import adapterkit
from adapterkit.checkpoint.state import get_peft_model_state_dict
from tests.parity.helpers import add_noise, assert_same_tensors, peft, quiet, state_of

ROWS, COLUMNS, VOCABULARY = 3, 7, 50
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_LLAMA = {**_BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
_COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}


needs_past_key_values = pytest.mark.skipif(
    "past_key_values" not in inspect.signature(hf.GPT2LMHeadModel.forward).parameters,
    reason="PEFT 0.21.2 knows the key-value cache by the name that it had before transformers 5.24",
)
"""For what PEFT cannot do with a later transformers."""


def lively(cls: Any, config: Any) -> nn.Module:
    """A model with weights large enough for its outputs to differ from input to input."""
    torch.manual_seed(0)
    model = (cls.from_config if hasattr(cls, "from_config") else cls)(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return model


def bert(auto: str) -> nn.Module:
    return lively(getattr(hf, auto), hf.BertConfig(**_COMMON, **_BERT))


def gpt2(auto: str = "AutoModelForCausalLM") -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return lively(getattr(hf, auto), config)


def llama(auto: str = "AutoModelForCausalLM") -> nn.Module:
    """Grouped-query attention: four heads share the keys and values of two."""
    return lively(getattr(hf, auto), hf.LlamaConfig(**_COMMON, **_LLAMA))


def mistral() -> nn.Module:
    """Every layer sees eight columns back."""
    return lively(hf.MistralForCausalLM, hf.MistralConfig(**_COMMON, **_LLAMA, sliding_window=8))


def gemma2() -> nn.Module:
    """Every other layer sees eight columns back, and heads are wider than their share of the hidden size."""
    config = hf.Gemma2Config(**_COMMON, **_LLAMA, head_dim=8, sliding_window=8, attn_implementation="eager")
    return lively(hf.Gemma2ForCausalLM, config)


def gemma4() -> nn.Module:
    """Heads of two widths, and upper layers that read the keys and values of lower ones."""
    kinds = ["sliding_attention", "full_attention"]
    sizes = {**_LLAMA, "num_hidden_layers": 6, "layer_types": kinds * 3, "num_kv_shared_layers": 2, "sliding_window": 8}
    inputs = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
    return lively(
        hf.Gemma4ForCausalLM, hf.Gemma4TextConfig(**_COMMON, **sizes, **inputs, head_dim=4, global_head_dim=8)
    )


def t5() -> nn.Module:
    config = hf.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=3,
        num_heads=2,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return lively(hf.T5ForConditionalGeneration, config)


def bart() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
    config = hf.BartConfig(**_COMMON, **sizes, **heads, scale_embedding=True, forced_eos_token_id=None)
    return lively(hf.BartForConditionalGeneration, config)


def batch(*, left: bool = False) -> dict[str, Tensor]:
    """Three rows of token ids, the second one padded."""
    ids = torch.randint(3, VOCABULARY, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, slice(None, 2) if left else slice(-2, None)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


CASES: dict[str, tuple[str, Callable[[], nn.Module], dict[str, Any]]] = {
    "SEQ_CLS": ("SEQ_CLS", lambda: bert("AutoModelForSequenceClassification"), {"labels": torch.tensor([0, 1, 1])}),
    "TOKEN_CLS": (
        "TOKEN_CLS",
        lambda: bert("AutoModelForTokenClassification"),
        {"labels": batch()["input_ids"] % 2, "token_type_ids": batch()["attention_mask"]},
    ),
    "QUESTION_ANS": (
        "QUESTION_ANS",
        lambda: bert("AutoModelForQuestionAnswering"),
        {"start_positions": torch.tensor([1, 2, 0]), "end_positions": torch.tensor([3, 3, 9])},
    ),
    "FEATURE_EXTRACTION": ("FEATURE_EXTRACTION", lambda: bert("AutoModel"), {}),
    "CAUSAL_LM-gpt2": ("CAUSAL_LM", gpt2, {"labels": batch()["input_ids"]}),
    "CAUSAL_LM-llama": ("CAUSAL_LM", llama, {"labels": batch()["input_ids"]}),
    "CAUSAL_LM-mistral": ("CAUSAL_LM", mistral, {"labels": batch()["input_ids"]}),
    "CAUSAL_LM-gemma2": ("CAUSAL_LM", gemma2, {"labels": batch()["input_ids"]}),
    "SEQ_CLS-llama": (
        "SEQ_CLS",
        lambda: llama("AutoModelForSequenceClassification"),
        {"labels": torch.tensor([0, 1, 1])},
    ),
    "SEQ_2_SEQ_LM-t5": ("SEQ_2_SEQ_LM", t5, {"labels": batch()["input_ids"]}),
    "SEQ_2_SEQ_LM-bart": ("SEQ_2_SEQ_LM", bart, {"labels": batch()["input_ids"]}),
}
"""Name -> task type, base model, and what the forward takes beside ids and mask."""


def results(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The loss and the logits, or hidden states, of a forward."""
    output = model(**inputs)
    names = ("loss", "logits", "start_logits", "end_logits", "last_hidden_state")
    return {name: output[name] for name in names if output.get(name) is not None}


def assert_same_results(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """The same numbers, but for the columns of virtual tokens that PEFT leaves in outputs by column."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        whole = theirs[name]
        torch.testing.assert_close(tensor, whole[:, whole.shape[1] - tensor.shape[1] :] if tensor.ndim > 1 else whole)


def pair(
    config: Mapping[str, Any], ours: Any, theirs: Any, make: Callable[[], nn.Module], directory: Path
) -> tuple[Any, Any]:
    """Our model and PEFT's with the same tensors, which went through PEFT's files."""
    with quiet():
        them = peft.get_peft_model(make(), theirs(**config))
        add_noise(them, 0.5)
        them.eval().save_pretrained(directory / "theirs")
    us = adapterkit.PeftModel.from_pretrained(make(), directory / "theirs", is_trainable=True).eval()
    assert isinstance(us.peft_config["default"], ours)
    assert_same_tensors(get_peft_model_state_dict(us), state_of(them))
    return us, them


def assert_files_go_back(us: Any, make: Callable[[], nn.Module], inputs: Mapping[str, Any], directory: Path) -> None:
    """PEFT reads what we write, to the same numbers; and the settings are those PEFT wrote."""
    us.save_pretrained(directory / "ours")
    with quiet():
        back = peft.PeftModel.from_pretrained(make(), directory / "ours").eval()
        expected = results(back, inputs)
    assert_same_results(results(us, inputs), expected)
    mine, theirs = (json.loads((directory / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    assert not mine.keys() - theirs.keys()
    for key in theirs.keys() - {"modules_to_save", "peft_version", "base_model_name_or_path"}:
        assert mine.get(key) == theirs[key] or (not mine.get(key) and not theirs[key]), key
