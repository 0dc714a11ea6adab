"""Text in blocks, prompts with completions, and perplexity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional

from adapterkit.errors import DataError
from tests.pipelines import data_of, pipeline_of


def test_blocks_hold_every_token_once() -> None:
    data = data_of([{"text": "the plot was good ."}, {"text": "bad"}])
    pipeline = pipeline_of("causal_lm", data, max_length=4)
    rows = [row["input_ids"] for row in pipeline.features(data.train)]
    assert [len(row) for row in rows] == [4, 4]
    text = pipeline.tokenizer.decode([token for row in rows for token in row])
    assert text == "the plot was good .</s> bad</s>"
    assert [row["labels"] for row in pipeline.features(data.train)] == rows


def test_lines_of_a_file_are_one_document() -> None:
    data = data_of([{"text": "the plot\n"}, {"text": "was good\n"}])
    pipeline = pipeline_of("causal_lm", data)
    ids = pipeline.features(data.train)[0]["input_ids"]
    assert pipeline.tokenizer.decode(ids) == "the plot\nwas good\n</s>"


def test_only_completions_are_learnt() -> None:
    data = data_of([{"prompt": "the plot was", "completion": "good"}])
    pipeline = pipeline_of("causal_lm", data)
    row = pipeline.features(data.train)[0]
    learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert pipeline.tokenizer.decode(row["input_ids"]) == "<s> the plot was good</s>"
    assert pipeline.tokenizer.decode(learnt) == "good</s>"


def test_long_prompts_lose_their_beginning() -> None:
    data = data_of([{"prompt": "the the the plot was", "completion": "good"}])
    pipeline = pipeline_of("causal_lm", data, max_length=4)
    assert pipeline.tokenizer.decode(pipeline.features(data.train)[0]["input_ids"]) == "plot was good</s>"


def test_rows_are_padded_on_the_right_and_prompts_to_go_on_from_on_the_left() -> None:
    data = data_of([{"prompt": "the", "completion": "plot was good"}, {"prompt": "a", "completion": "plot"}])
    pipeline = pipeline_of("causal_lm", data)
    encoded = pipeline.features(data.train)
    batch = pipeline.collate([encoded[0], encoded[1]])
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 1, 0, 0]
    learnt = [-100, -100, *batch["input_ids"][1, 2:4].tolist(), -100, -100]
    assert batch["labels"][1].tolist() == learnt
    encoded = pipeline.unanswered(Dataset.from_dict({"prompt": ["the plot was", "a"]}))
    batch = pipeline.batch([encoded[0], encoded[1]])
    assert batch["attention_mask"][1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("virtual", [0, 3])
def test_perplexity_is_over_all_tokens(virtual: int) -> None:
    pipeline = pipeline_of("causal_lm")
    logits = torch.randn(2, virtual + 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3, 4, 5], [-100, -100, -100, 6, 0]])
    reduced = pipeline.reduce(logits, {"labels": labels})
    own = logits[:, virtual : virtual + 4]
    expected = functional.cross_entropy(own.reshape(-1, 7), labels[:, 1:].reshape(-1), ignore_index=-100)
    found = pipeline.score(np.asarray(reduced), None, None)  # type: ignore[arg-type]
    assert found["perplexity"] == pytest.approx(expected.exp().item(), rel=1e-5)
    assert found["accuracy"] in {count / 6 for count in range(7)}


def test_neither_text_nor_prompt() -> None:
    with pytest.raises(DataError, match="a column for 'text', or two for 'prompt' and 'completion'"):
        pipeline_of("causal_lm", data_of([{"prompt": "a"}]))
