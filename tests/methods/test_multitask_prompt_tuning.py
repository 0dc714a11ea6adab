"""Multitask prompt tuning: PEFT's numbers, files and starts; generation with a decoder's own tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from adapterkit import MultitaskPromptTuningConfig, get_peft_model
from adapterkit.errors import CapabilityError, CheckpointError, ConfigError, StateError
from tests.parity.helpers import peft, quiet
from tests.parity.prompts import (
    CASES,
    assert_files_go_back,
    bart,
    batch,
    gpt2,
    llama,
    needs_past_key_values,
    pair,
    results,
    t5,
)

TASKS = {"task_ids": torch.tensor([0, 1, 1])}
TENSORS = ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows")
CONFIG = {"num_virtual_tokens": 3, "num_tasks": 2, "num_ranks": 2}


@pytest.mark.parametrize("halves", [None, 1])
@pytest.mark.parametrize(
    "case", ["CAUSAL_LM-gpt2", "CAUSAL_LM-llama", "SEQ_2_SEQ_LM-t5", "SEQ_2_SEQ_LM-bart", "SEQ_CLS"]
)
def test_forward_and_files_are_those_of_peft(case: str, halves: int | None, tmp_path: Path) -> None:
    task_type, make, extra = CASES[case]
    config = {**CONFIG, "task_type": task_type, "num_transformer_submodules": halves}
    ours, theirs = pair(config, MultitaskPromptTuningConfig, peft.MultitaskPromptTuningConfig, make, tmp_path)
    inputs = {**batch(), **extra, **TASKS}
    with quiet():
        expected = results(theirs, inputs)
    torch.testing.assert_close(results(ours, inputs), expected)
    assert_files_go_back(ours, make, inputs, tmp_path)


@needs_past_key_values
@pytest.mark.parametrize("make", [gpt2, llama])
def test_generation_is_that_of_peft(make: object, tmp_path: Path) -> None:
    config = {**CONFIG, "task_type": "CAUSAL_LM"}
    ours, theirs = pair(config, MultitaskPromptTuningConfig, peft.MultitaskPromptTuningConfig, make, tmp_path)
    inputs = {"input_ids": batch()["input_ids"][::2], "task_ids": torch.tensor([1, 0])}
    with quiet():
        expected = theirs.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(ours.generate(**inputs, max_new_tokens=4, do_sample=False), expected)
    search = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    rows = [{name: tensor[i : i + 1] for name, tensor in inputs.items()} for i in range(2)]
    alone = [ours.generate(**row, **search) for row in rows]
    assert torch.equal(ours.generate(**inputs, **search), torch.cat(alone))


@pytest.mark.parametrize("make", [t5, bart])
@pytest.mark.parametrize("halves", [1, 2])
def test_generation_is_what_forward_says(make: object, halves: int) -> None:
    config = MultitaskPromptTuningConfig(**CONFIG, task_type="SEQ_2_SEQ_LM", num_transformer_submodules=halves)
    model = get_peft_model(make(), config).eval()
    inputs = {**batch(), **TASKS}
    expected = torch.full((3, 1), model.config.decoder_start_token_id)
    for _ in range(4):
        logits = model(**inputs, decoder_input_ids=expected).logits
        expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    for cached in (True, False):
        actual = model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=cached, eos_token_id=None)
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("start", ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"])
@pytest.mark.parametrize("safe", [True, False])
def test_starts_from_a_trained_prompt_are_those_of_peft(start: str, safe: bool, tmp_path: Path) -> None:
    source = get_peft_model(gpt2(), MultitaskPromptTuningConfig(**CONFIG, task_type="CAUSAL_LM"))
    source.save_pretrained(tmp_path, safe_serialization=safe)
    path = str(tmp_path / ("adapter_model.safetensors" if safe else "adapter_model.bin"))
    config = {
        **CONFIG,
        "num_tasks": 1,
        "task_type": "CAUSAL_LM",
        "prompt_tuning_init": start,
        "prompt_tuning_init_state_dict_path": path,
        **({"prompt_tuning_init_task": 1} if start == "EXACT_SOURCE_TASK" else {}),
    }
    with quiet():
        theirs = peft.get_peft_model(gpt2(), peft.MultitaskPromptTuningConfig(**config)).prompt_encoder["default"]
    ours = get_peft_model(gpt2(), MultitaskPromptTuningConfig(**config)).prompt_encoder["default"]
    assert torch.equal(ours.embedding.weight, theirs.embedding.weight)
    if start != "ONLY_SOURCE_SHARED":
        assert torch.equal(ours.prefix_task_cols, theirs.prefix_task_cols)
        assert torch.equal(ours.prefix_task_rows, theirs.prefix_task_rows)


def test_task_ids_are_needed_and_refused_elsewhere() -> None:
    model = get_peft_model(gpt2(), MultitaskPromptTuningConfig(**CONFIG, task_type="CAUSAL_LM"))
    with pytest.raises(CapabilityError, match="needs task_ids"):
        model(**batch())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt_tuning_init": "EXACT_SOURCE_TASK"}, "needs prompt_tuning_init_state_dict_path"),
        (
            {"prompt_tuning_init": "EXACT_SOURCE_TASK", "prompt_tuning_init_state_dict_path": "x", "num_tasks": 2},
            "num_tasks must be 1",
        ),
    ],
)
def test_what_a_trained_start_needs(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MultitaskPromptTuningConfig.from_dict({"num_virtual_tokens": 3, **fields})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no tensors", "cannot be read"),
        (save({"x": torch.zeros(1)}), "it has x, and no prompt_embeddings"),
        (save({name: torch.zeros(2, 3, 1) for name in TENSORS}), "prompt_tuning_init_task=5: .* has the tasks 0 to 1"),
    ],
)
def test_a_file_that_is_no_trained_prompt_is_told(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    path.write_bytes(content)
    start = {"prompt_tuning_init": "EXACT_SOURCE_TASK", "prompt_tuning_init_state_dict_path": str(path)}
    config = MultitaskPromptTuningConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM", prompt_tuning_init_task=5, **start
    )
    with pytest.raises((CheckpointError, ConfigError), match=words):
        get_peft_model(gpt2(), config)


def test_task_ids_are_one_for_every_row_and_none_but_tasks() -> None:
    model = get_peft_model(gpt2(), MultitaskPromptTuningConfig(**CONFIG, task_type="CAUSAL_LM")).eval()
    given, inputs = model(**{**batch(), "task_ids": [0, 1, 1]}).logits, batch()
    assert torch.equal(given, model(**inputs, **TASKS).logits)
    with pytest.raises(StateError, match="task_ids has 2 entries for a batch of 3 rows"):
        model(**inputs, task_ids=torch.tensor([0, 1]))
    with pytest.raises(StateError, match=r"task_ids must be from 0 to 1, and are \[0, 2\]"):
        model(**inputs, task_ids=torch.tensor([0, 2, 2]))
    with pytest.raises(StateError, match="task_ids is missing: one of 0 to 1"):
        model.get_prompt(2)
