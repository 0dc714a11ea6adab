"""Prompt tuning: PEFT's numbers, files and starts on every task, and where PEFT's are wrong, what is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import adapterkit
from adapterkit import PromptTuningConfig, get_peft_model
from adapterkit.errors import ConfigError
from tests.parity.helpers import peft, quiet
from tests.parity.prompts import (
    CASES,
    assert_files_go_back,
    assert_same_results,
    bart,
    batch,
    gpt2,
    llama,
    needs_past_key_values,
    pair,
    results,
    t5,
)

WRONG_IN_PEFT = ("TOKEN_CLS", "QUESTION_ANS")
"""There PEFT fails on labels, or leaves positions where the virtual tokens have moved them from."""


@pytest.mark.parametrize("case", CASES)
def test_forward_and_files_are_those_of_peft(case: str, tmp_path: Path) -> None:
    task_type, make, extra = CASES[case]
    config = {"task_type": task_type, "num_virtual_tokens": 3}
    ours, theirs = pair(config, PromptTuningConfig, peft.PromptTuningConfig, make, tmp_path)
    inputs = batch() if task_type in WRONG_IN_PEFT else {**batch(left=case == "SEQ_CLS-llama"), **extra}
    with quiet():
        expected = results(theirs, inputs)
    assert_same_results(results(ours, inputs), expected)
    assert_files_go_back(ours, make, inputs, tmp_path)


@pytest.mark.parametrize("task_type", WRONG_IN_PEFT)
def test_outputs_and_labels_count_real_columns(task_type: str) -> None:
    _, make, extra = CASES[task_type]
    model = get_peft_model(make(), PromptTuningConfig(task_type=task_type, num_virtual_tokens=3)).eval()
    output = model(**batch(), **extra)
    if task_type == "TOKEN_CLS":
        expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), extra["labels"].flatten())
        as_tuple = model(**batch(), **extra, return_dict=False)
        assert torch.equal(as_tuple[1], output.logits)
    else:
        starts, ends = output.start_logits, output.end_logits
        assert starts.shape == batch()["input_ids"].shape
        whole = model.get_base_model()(inputs_embeds=_embedded(model), attention_mask=_grown(batch()["attention_mask"]))
        assert torch.equal(whole.start_logits[:, 3:], starts)
        wanted = [extra["start_positions"] + 3, extra["end_positions"] + 3]
        losses = zip((whole.start_logits, whole.end_logits), wanted, strict=True)
        expected = sum(torch.nn.functional.cross_entropy(x, y.clamp(max=10), ignore_index=10) for x, y in losses) / 2
        assert ends.shape == starts.shape
    torch.testing.assert_close(output.loss, expected)


def _embedded(model: object) -> torch.Tensor:
    words = model.word_embeddings(batch()["input_ids"])
    return torch.cat([model.get_prompt(3), words], dim=1)


def _grown(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([mask.new_ones(3, 3), mask], dim=1)


@needs_past_key_values
@pytest.mark.parametrize("make", [gpt2, llama, t5, bart])
def test_generation_is_that_of_peft(make: object, tmp_path: Path) -> None:
    task_type = "SEQ_2_SEQ_LM" if make in (t5, bart) else "CAUSAL_LM"
    config = {"task_type": task_type, "num_virtual_tokens": 3}
    ours, theirs = pair(config, PromptTuningConfig, peft.PromptTuningConfig, make, tmp_path)
    inputs = {name: tensor[:1] for name, tensor in batch().items()}
    for search in ({}, {"num_beams": 3}, {"repetition_penalty": 1.5}):
        with quiet():
            expected = theirs.generate(**inputs, **search, max_new_tokens=5, do_sample=False)
        assert torch.equal(ours.generate(**inputs, **search, max_new_tokens=5, do_sample=False), expected)
        without_cache = ours.generate(**inputs, **search, max_new_tokens=5, do_sample=False, use_cache=False)
        assert torch.equal(without_cache, expected)
    if task_type == "CAUSAL_LM":
        static = ours.generate(**inputs, **search, max_new_tokens=5, do_sample=False, cache_implementation="static")
        assert torch.equal(static, expected)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_padded_row_generates_what_it_does_alone(make: object) -> None:
    model = get_peft_model(make(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inputs = batch(left=True)
    together = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    alone = model.generate(inputs["input_ids"][1:2, 2:], max_new_tokens=5, do_sample=False)
    assert torch.equal(together[1, 2:], alone[0])


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    words = {word: index for index, word in enumerate(["[UNK]", "is", "this", "good", "or", "bad"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]").save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "MultitaskPromptTuningConfig"])
@pytest.mark.parametrize("count", [3, 8])
def test_a_text_start_is_that_of_peft(count: int, kind: str, tokenizer: str) -> None:
    config = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": count,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "is this good or bad",
        "tokenizer_name_or_path": tokenizer,
        "tokenizer_kwargs": {"padding_side": "left"},
    }
    with quiet():
        theirs = peft.get_peft_model(gpt2(), getattr(peft, kind)(**config))
    ours = get_peft_model(gpt2(), getattr(adapterkit, kind)(**config))
    expected = theirs.prompt_encoder["default"].embedding.weight
    assert torch.equal(ours.prompt_encoder["default"].embedding.weight, expected)
    words = ours.word_embeddings.weight
    assert torch.equal(expected, words[torch.tensor([1, 2, 3, 4, 5, 1, 2, 3])[:count]])


def test_a_vocabulary_start_takes_words() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, prompt_tuning_init="SAMPLE_VOCAB")
    model = get_peft_model(gpt2(), config)
    table, words = model.get_prompt_embedding_to_save("default"), model.word_embeddings.weight
    assert (table[:, None] == words).all(-1).any(1).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt_tuning_init": "TEXT"}, "needs prompt_tuning_init_text"),
        ({"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x"}, "needs tokenizer_name_or_path"),
        ({"tokenizer_kwargs": {"a": 1}}, "prompt_tuning_init is not TEXT"),
        (
            {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x", "tokenizer_name_or_path": "y"}
            | {"tokenizer_kwargs": {"trust_remote_code": True}},
            "trust_remote_code is refused",
        ),
    ],
)
def test_what_a_text_start_needs(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PromptTuningConfig.from_dict({"num_virtual_tokens": 3, **fields})
