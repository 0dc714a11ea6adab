"""Words to tags."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Sequence as ListOf

from adapterkit.errors import DataError
from adapterkit.tasks.token_cls.pipeline import tag_names
from adapterkit.train.data import Data
from tests.pipelines import data_of, pipeline_of

ROWS = [
    {"tokens": ["Jordan", "Zyx", "met", "Ann"], "tags": ["B-PER", "I-PER", "O", "B-PER"]},
    {"tokens": ["in", "Paris"], "tags": ["O", "B-LOC"]},
]


def test_tags_outside_first_then_by_kind() -> None:
    assert list(pipeline_of("token_cls").learn(data_of(ROWS))["label2id"]) == ["O", "B-LOC", "B-PER", "I-PER"]


def test_tags_that_differ_by_blanks() -> None:
    with pytest.raises(DataError, match=r"tags that differ only by blanks around them: 'O', 'O '$"):
        pipeline_of("token_cls").learn(data_of([*ROWS, {"tokens": ["a"], "tags": ["O "]}]))


def test_first_piece_of_a_word_carries_its_tag() -> None:
    data = data_of(ROWS)
    pipeline = pipeline_of("token_cls", data)
    row = pipeline.features(data.train)[0]
    pieces = pipeline.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert [piece for piece, label in zip(pieces, row["labels"], strict=True) if label != -100] == [
        "▁Jordan", "▁Z", "▁met", "▁A",
    ]  # fmt: skip
    assert [label for label in row["labels"] if label != -100] == [2, 3, 0, 2]


def test_batches_are_padded_with_ignored_labels() -> None:
    data = data_of(ROWS)
    pipeline = pipeline_of("token_cls", data)
    encoded = pipeline.features(data.train)
    batch = pipeline.collate([encoded[0], encoded[1]])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"][1].tolist()[:4] == [-100, 0, 1, -100]
    assert set(batch["labels"][1].tolist()[4:]) == {-100}


def test_virtual_tokens_are_left_out_of_predictions() -> None:
    pipeline = pipeline_of("token_cls", data_of(ROWS))
    logits = torch.zeros(1, 5, 4)
    logits[0, :2, 3] = 1  # two virtual tokens
    logits[0, 2:, 1] = 1
    assert pipeline.reduce(logits, {"labels": torch.zeros(1, 3)}).tolist() == [[1, 1, 1]]


def test_scores_whole_entities() -> None:
    data = data_of(ROWS)
    pipeline = pipeline_of("token_cls", data)
    encoded = pipeline.features(data.train)
    labels = np.asarray([[-100, 2, 3, 0, 2], [-100, 0, 1, -100, -100]])
    predicted = np.asarray([[0, 2, 0, 0, 2], [0, 0, 1, 3, 3]])
    assert pipeline.score(labels, labels, encoded)["f1"] == 1
    assert pipeline.score(predicted, labels, encoded) == pytest.approx(
        {"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "accuracy": 5 / 6}
    )


@pytest.mark.parametrize(
    ("tags", "metric", "told"),
    [
        (["O", "S-PER"], None, ""),
        (["B-PER", "E-PER", "X"], None, "count as O in f1: X"),
        (["S-BAR", "NN"], "accuracy", ""),
    ],
)
def test_entities_are_known_by_their_tags(tags, metric, told, caplog) -> None:
    pipeline = pipeline_of("token_cls", data_of([{"tokens": tags, "tags": tags}]))
    assert pipeline.default_metric == metric
    assert told in caplog.text
    assert bool(told) == bool(caplog.messages)


def test_baseline_is_the_commonest_tag() -> None:
    data = data_of([*ROWS, {"tokens": ["a", "b"], "tags": ["O", "O"]}])
    pipeline = pipeline_of("token_cls", data)
    encoded = pipeline.features(data.train)
    assert pipeline.baseline(encoded, encoded) == pytest.approx({"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.5})


def test_tag_numbers_get_their_names() -> None:
    features = Features({"tokens": ListOf(Value("string")), "tags": ListOf(ClassLabel(names=["O", "B-X"]))})
    assert tag_names(Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[1, 0]]}, features)) == [["B-X", "O"]]


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": "a b", "tags": ["O", "O"]},
        {"tokens": ["a", "b"], "tags": "O O"},
        {"tokens": ["a", "b"], "tags": ["O", None]},
    ],
)
def test_words_in_one_text_are_refused(row) -> None:
    with pytest.raises(DataError, match=r"here \(train\): '\w+' must hold lists, one entry a word, but row 1 has "):
        pipeline_of("token_cls", data_of([row]))


def test_tags_that_training_has_not_are_told(caplog) -> None:
    train, held_out = Dataset.from_list(ROWS[1:]), Dataset.from_list(ROWS)
    pipeline_of("token_cls", Data(train, held_out, None, "here", ""))
    assert "tags of validation that training has not, and that cannot be learnt: B-PER, I-PER" in caplog.text


def test_one_tag_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="here: every tag of training is 'O', and a tag needs another"):
        pipeline_of("token_cls", data_of([{"tokens": ["a", "b"], "tags": ["O", "O"]}]))


def test_more_tags_than_words() -> None:
    data = data_of([{"tokens": ["a"], "tags": ["O", "B-X"]}])
    with pytest.raises(DataError, match=r"here \(train\): 1 tokens have 2 tags: a"):
        pipeline_of("token_cls", data)
