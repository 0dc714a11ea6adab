"""The documented example of each of the six wrappers, with its dict unchanged, on the meta device: its counts and
those of PEFT, which refuses two of the keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import adapterkit
from tests.parity.helpers import peft, quiet

BERT = transformers.BertConfig(vocab_size=28996)
T5 = transformers.T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
GPT2 = transformers.GPT2Config(n_embd=1280, n_layer=36, n_head=20)


def prefix(task: str, width: int = 768, heads: int = 12, layers: int = 12) -> dict[str, Any]:
    return {
        "peft_type": "PREFIX_TUNING",
        "task_type": task,
        "inference_mode": False,
        "num_virtual_tokens": 20,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": layers,
        "encoder_hidden_size": width,
        "prefix_projection": False,
        "postprocess_past_key_value_function": None,
    }


def lora(task: str, **fields: Any) -> dict[str, Any]:
    common = {"peft_type": "LORA", "task_type": task, "inference_mode": False}
    return {**common, "lora_alpha": 32, "fan_in_fan_out": False, "bias": "none", **fields}


OF_BERT = {"r": 16, "target_modules": ["query", "value"], "lora_dropout": 0.05}
OF_T5 = {"r": 8, "target_modules": ["q", "v"], "lora_dropout": 0.1, "enable_lora": None}
EXAMPLES = {
    "SequenceClassification": (BERT, prefix("SEQ_CLS"), 370_178, 108_681_988, "0.3406"),
    "TokenClassification": (BERT, prefix("TOKEN_CLS"), 370_178, 108_091_396, "0.3425"),
    "CausalLM": (GPT2, prefix("CAUSAL_LM", 1280, 20, 36), 1_843_200, 775_873_280, "0.2376"),
    "Seq2SeqLM": (T5, lora("SEQ_2_SEQ_LM", **OF_T5), 884_736, 223_788_288, "0.3953"),
    "QuestionAnswering": (BERT, lora("QUESTION_ANS", **OF_BERT), 591_362, 108_312_580, "0.5460"),
    "FeatureExtraction": (BERT, lora("FEATURE_EXTRACTION", **OF_BERT), 589_824, 108_900_096, "0.5416"),
}
LEGACY = ("postprocess_past_key_value_function", "enable_lora")


def adapted(library: Any, task: str, settings: dict[str, Any]) -> Any:
    """The documented program: config from the dict, base model, wrapper of the task."""
    auto = "AutoModel" if task == "FeatureExtraction" else f"AutoModelFor{task}"
    with torch.device("meta"), quiet():
        base = getattr(transformers, auto).from_config(EXAMPLES[task][0])
        return getattr(library, f"PeftModelFor{task}")(base, library.get_peft_config(settings))


@pytest.mark.parametrize("task", EXAMPLES)
def test_what_the_documented_example_prints(capsys, task):
    _, settings, trainable, total, percent = EXAMPLES[task]
    model = adapted(adapterkit, task, settings)
    model.print_trainable_parameters()
    expected = f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {percent}\n"
    assert capsys.readouterr().out == expected
    plain = {key: value for key, value in settings.items() if key not in LEGACY}
    adapted(peft, task, plain).print_trainable_parameters()
    assert capsys.readouterr().out == expected
    assert not any(parameter.device.type != "meta" for parameter in model.parameters())


@pytest.mark.parametrize("task", [task for task, example in EXAMPLES.items() if set(LEGACY) & example[1].keys()])
def test_peft_refuses_the_keys_of_older_releases(task):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        adapted(peft, task, EXAMPLES[task][1])


def test_a_legacy_key_that_carries_a_value_is_refused():
    settings = {**EXAMPLES["Seq2SeqLM"][1], "enable_lora": [True, False, True]}
    with pytest.raises(adapterkit.errors.ConfigError, match="enable_lora"):
        adapterkit.get_peft_config(settings)
