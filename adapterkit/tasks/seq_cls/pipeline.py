"""Texts, or pairs of texts, to one label or one number each."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from typing_extensions import override

from adapterkit.errors import DataError, of_choices
from adapterkit.train import metrics
from adapterkit.train.builtin import sentiment
from adapterkit.train.data import Data
from adapterkit.train.pipeline import Batch, Encoded, Pipeline, first, label_options
from adapterkit.train.values import check_names

logger = logging.getLogger("adapterkit")


@final
class SeqClsPipeline(Pipeline):
    """Classification by accuracy, macro F1 and Matthews correlation; regression, where labels are decimal numbers, by
    Pearson's and Spearman's correlation. The baseline answers with the commonest class, or the mean."""

    required: ClassVar[tuple[str, ...]] = ("text", "label")
    texts: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    also: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("sentence", "sentence1", "premise", "question1", "review", "content"),
        "text_pair": ("sentence2", "hypothesis", "question2"),
        "label": ("labels", "score", "target", "class"),
    }
    smoothing_shift: bool | None = False
    given: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    predicts: ClassVar[tuple[str, ...]] = ("prediction", "probabilities")
    stratify_by: ClassVar[str | None] = "label"
    learnt: ClassVar[tuple[str, ...] | None] = ("labels", "default_metric", "baseline_name", "smoothing_shift")
    baseline_name: str = "majority class"

    labels: list[str] | None = None
    """Names of the classes; None for regression."""

    @override
    @classmethod
    def builtin(cls) -> Mapping[str, list[dict[str, Any]]]:
        return sentiment.make()

    @override
    def learn(self, data: Data) -> dict[str, Any]:
        found = {name: label_names(split) for name, split in data.splits().items()}
        if is_regression(found["train"]):
            self.labels, self.default_metric, self.baseline_name = None, "pearson", "mean"
            self.smoothing_shift = None
            logger.info("labels are numbers: regression, judged by pearson unless trainer.metric_for_best_model is set")
            return {"num_labels": 1, "problem_type": "regression"}
        check_names({label for values in found.values() for label in values}, "labels", data.source)
        self.labels = ordered(set(found["train"]))
        if len(self.labels) == 1:
            raise DataError(f"{data.source}: every label of training is {self.labels[0]!r}, and a class needs another")
        for name, values in found.items():
            unknown = set(values) - set(self.labels)
            if unknown:
                raise DataError(f"{data.source}: labels of {name} that training has not: {', '.join(sorted(unknown))}")
        return label_options(self.labels)

    @override
    def check(self, examples: Dataset, source: str) -> None:
        found = dict.fromkeys(label_names(examples))
        if self.labels is None:
            if (wrong := no_number(found)) is not None:
                raise DataError(f"{source}: labels must be numbers, as in training, and one is {wrong!r}")
            return
        unknown = [label for label in found if label not in self.labels]
        if unknown:
            raise DataError(
                f"{source}: labels that training has not: {', '.join(map(repr, unknown))}"
                f"{of_choices(unknown[0], self.labels, 'Labels:')}"
            )

    @override
    def features(self, examples: Dataset) -> Encoded:
        named = examples.remove_columns("label").add_column("label", label_names(examples))
        return super().features(named)

    @override
    def encode(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [batch[name] for name in ("text", "text_pair") if name in batch]
        encoded = dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))
        encoded["labels"] = [self._label(name) for name in batch["label"]]
        return encoded

    def _label(self, name: str) -> float | int:
        return float(name) if self.labels is None else self.labels.index(name)

    @override
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        return {**self.padded(rows), "labels": torch.tensor([row["labels"] for row in rows])}

    @override
    def reduce(self, outputs: Any, batch: Batch) -> Tensor:
        logits = first(outputs)
        return logits.squeeze(-1).float() if self.labels is None else logits.argmax(-1)

    @override
    def score(self, predictions: Any, labels: Any, encoded: Encoded) -> dict[str, float]:
        if self.labels is None:
            return metrics.regression(predictions, labels)
        return metrics.classification(predictions, labels)

    @override
    def unanswered(self, examples: Dataset) -> Encoded:
        return self.features(
            examples.add_column("label", ["0" if self.labels is None else self.labels[0]] * len(examples))
        )

    @override
    def predict(self, model: Any, batch: Batch) -> list[Any]:
        logits = model(**self.inputs(batch))["logits"].float()
        found: list[Any] = (logits.squeeze(-1) if self.labels is None else logits.softmax(-1)).tolist()
        return found

    @override
    def predictions(self, found: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        if self.labels is None:
            return super().predictions(found, encoded)
        named = [dict(zip(self.labels, row, strict=True)) for row in found]
        return [{"prediction": max(row, key=row.__getitem__), "probabilities": row} for row in named]

    @override
    def baseline(self, train: Encoded, held_out: Encoded) -> dict[str, float]:
        seen, wanted = train.rows["labels"][:], np.asarray(held_out.rows["labels"][:])
        answer = np.mean(seen) if self.labels is None else Counter(seen).most_common(1)[0][0]
        return self.score(np.full_like(wanted, answer), wanted, held_out)


def label_names(split: Dataset) -> list[str]:
    """The labels of a split as text; class numbers that have names are named.

    Raises:
        DataError: an example has no label.
    """
    feature, values = split.features["label"], split["label"][:]
    missing = [index for index, value in enumerate(values) if value is None or value == ""]
    if missing:
        raise DataError(f"example {missing[0]} has no label, and {len(missing) - 1} more")
    if isinstance(feature, ClassLabel):
        return [feature.int2str(value) for value in values]
    return [repr(value) if isinstance(value, float) else str(value) for value in values]


def is_regression(labels: Sequence[str]) -> bool:
    """Whether all labels are numbers and some have a decimal point."""
    return any("." in label for label in labels) and no_number(labels) is None


def no_number(labels: Iterable[str]) -> str | None:
    """The first label that is no number."""
    number = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
    return next((label for label in labels if not number.fullmatch(label)), None)


def ordered(labels: set[str]) -> list[str]:
    """Labels in the order of their numbers, if they are numbers; else of their spelling."""
    numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
    return sorted(labels, key=int) if numbers else sorted(labels)
