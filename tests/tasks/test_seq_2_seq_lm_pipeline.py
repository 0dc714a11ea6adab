"""Texts to texts."""

from __future__ import annotations

import numpy as np

from tests.pipelines import data_of, pipeline_of

ROWS = [{"source": "the plot was good", "target": "good plot"}, {"source": "bad", "target": "a bad plot was the"}]


def test_batches() -> None:
    data = data_of(ROWS)
    pipeline = pipeline_of("seq_2_seq_lm", data, max_target_length=4)
    encoded = pipeline.features(data.train)
    batch = pipeline.collate([encoded[0], encoded[1]])
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].shape == (2, 4)
    assert batch["labels"][0, -1] == -100
    assert pipeline.tokenizer.decode(batch["labels"][0, :-1]) == "good plot</s>"


def test_scores_texts() -> None:
    data = data_of(ROWS)
    pipeline = pipeline_of("seq_2_seq_lm", data)
    encoded = pipeline.features(data.train)
    labels = pipeline.collate([encoded[0], encoded[1]])["labels"].numpy()
    written = np.where(labels == -100, pipeline.tokenizer.pad_token_id, labels)
    start = np.full((2, 1), pipeline.tokenizer.pad_token_id)
    assert pipeline.score(np.concatenate([start, written], axis=1), labels, encoded) == {
        "rougeL": 1.0, "exact_match": 1.0,
    }  # fmt: skip
    assert pipeline.score(np.concatenate([start, written[::-1]], axis=1), labels, encoded)["exact_match"] == 0
