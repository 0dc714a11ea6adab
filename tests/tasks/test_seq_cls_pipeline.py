"""Texts to labels or numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from adapterkit.errors import DataError
from adapterkit.tasks.seq_cls.pipeline import SeqClsPipeline, label_names
from adapterkit.train.data import Data
from tests.pipelines import data_of, pipeline_of

ROWS = [{"text": "the plot was good", "label": "yes"}, {"text": "bad", "label": "no"}, {"text": "a", "label": "no"}]


def test_classes_are_named_in_order() -> None:
    options = pipeline_of("seq_cls").learn(data_of([{"text": "a", "label": str(n)} for n in (10, 9, 2)]))
    assert options == {"num_labels": 3, "id2label": {0: "2", 1: "9", 2: "10"}, "label2id": {"2": 0, "9": 1, "10": 2}}


@pytest.mark.parametrize(("labels", "count"), [([0.5, 1.0], 1), (["3.0", "2"], 1), (["1", "2"], 2), ([0, 1], 2)])
def test_numbers_with_a_point_are_regression(labels: list[object], count: int) -> None:
    options = pipeline_of("seq_cls").learn(data_of([{"text": "a", "label": label} for label in labels]))
    assert options["num_labels"] == count
    assert (options.get("problem_type") == "regression") == (count == 1)


def test_label_that_training_has_not() -> None:
    split = Dataset.from_list(ROWS)
    other = Dataset.from_list([{"text": "a", "label": "maybe"}])
    with pytest.raises(DataError, match="labels of validation that training has not: maybe"):
        pipeline_of("seq_cls").learn(Data(split, other, None, "here", ""))


def test_one_class_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="here: every label of training is 'no', and a class needs another"):
        pipeline_of("seq_cls").learn(data_of(ROWS[1:]))


def test_labels_that_differ_by_blanks() -> None:
    with pytest.raises(DataError, match=r"here: labels that differ only by blanks around them: 'no', 'no '$"):
        pipeline_of("seq_cls").learn(data_of([*ROWS, {"text": "b", "label": "no "}]))


def test_class_numbers_get_their_names() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    assert label_names(Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)) == ["yes", "no"]


def test_missing_label_is_named() -> None:
    with pytest.raises(DataError, match="example 1 has no label"):
        label_names(Dataset.from_dict({"text": ["a", "b"], "label": ["x", None]}))


def test_batches() -> None:
    data = data_of(ROWS)
    pipeline = pipeline_of("seq_cls", data)
    encoded = pipeline.features(data.train)
    batch = pipeline.collate(encoded.__getitems__([0, 1]))
    assert batch["labels"].tolist() == [1, 0]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 6)
    assert batch["attention_mask"].sum(1).tolist() == [6, 3]


def test_pairs_are_one_input() -> None:
    pair, other = {"text": "the plot", "text_pair": "was good"}, {"text": "a", "text_pair": ""}
    data = data_of([{**pair, "label": "0"}, {**other, "label": "1"}])
    pipeline = pipeline_of("seq_cls", data)
    ids = pipeline.features(data.train)[0]["input_ids"]
    assert pipeline.tokenizer.decode(ids) == "<s> the plot</s> was good</s>"


def test_long_texts_are_cut() -> None:
    data = data_of([{"text": "the " * 50, "label": "0"}, {"text": "a", "label": "1"}])
    pipeline = pipeline_of("seq_cls", data, max_length=10)
    assert len(pipeline.features(data.train)[0]["input_ids"]) == 10


def test_scores() -> None:
    data = data_of(ROWS)
    pipeline = pipeline_of("seq_cls", data)
    encoded = pipeline.features(data.train)
    predicted = pipeline.reduce(torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), {})
    assert pipeline.score(np.asarray(predicted), np.asarray([1, 0, 0]), encoded)["accuracy"] == pytest.approx(2 / 3)
    assert pipeline.baseline(encoded, encoded)["accuracy"] == pytest.approx(2 / 3)


def test_regression_baseline_is_the_mean() -> None:
    data = data_of([{"text": "a", "label": 1.0}, {"text": "b", "label": 2.5}, {"text": "b", "label": 2.5}])
    pipeline = pipeline_of("seq_cls", data)
    assert isinstance(pipeline, SeqClsPipeline)
    encoded = pipeline.features(data.train)
    assert encoded[0]["labels"] == 1.0
    assert pipeline.baseline(encoded, encoded) == pytest.approx({"pearson": 0.0, "spearman": 0.0, "mse": 0.5})
    assert pipeline.reduce(torch.tensor([[0.5], [1.5]]), {}).tolist() == [0.5, 1.5]
