"""Words to tags: the first piece of a word carries its tag."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, final

import numpy as np
from datasets import ClassLabel, Dataset
from torch import Tensor
from typing_extensions import override

from adapterkit.errors import DataError, of_choices
from adapterkit.train import metrics
from adapterkit.train.builtin import entities
from adapterkit.train.data import Data
from adapterkit.train.pipeline import IGNORED, Batch, Encoded, Pipeline, first, label_options, own_positions
from adapterkit.train.values import check_names, listed

logger = logging.getLogger("adapterkit")


@final
class TokenClsPipeline(Pipeline):
    """F1 over whole entities where tags mark them (BIO, IOBES, BILOU, BMES); elsewhere, as for parts of speech,
    accuracy and macro F1 of single tags. The baseline gives every word the commonest tag."""

    required: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    texts: ClassVar[tuple[str, ...]] = ("tokens",)
    also: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "tokens": ("words",),
        "tags": ("ner_tags", "labels", "pos_tags", "chunk_tags"),
    }
    given: ClassVar[tuple[str, ...]] = ("tokens",)
    smoothing_shift: bool | None = False
    learnt: ClassVar[tuple[str, ...] | None] = ("tags", "are_entities", "default_metric")
    baseline_name: str = "commonest tag"
    tokenizer_options: ClassVar[Mapping[str, Any]] = {"add_prefix_space": True}

    tags: list[str]
    are_entities: bool = True
    """Whether tags mark the first and the further words of entities."""

    @override
    @classmethod
    def builtin(cls) -> Mapping[str, list[dict[str, Any]]]:
        return entities.make()

    @override
    def learn(self, data: Data) -> dict[str, Any]:
        for name, split in data.splits().items():
            _check_form(split, f"{data.source} ({name})")
        found = {name: {tag for row in tag_names(split) for tag in row} for name, split in data.splits().items()}
        check_names(set().union(*found.values()), "tags", data.source)
        _check_training(found, data.source)
        self.tags = sorted(set().union(*found.values()), key=lambda tag: (tag != "O", tag.partition("-")[::-1]))
        marked = [tag for tag in self.tags if metrics.is_entity(tag)]
        others = [tag for tag in self.tags if tag not in ("O", *marked)]
        self.are_entities = any(tag.startswith(("B-", "I-")) for tag in marked) or bool(marked and not others)
        if not self.are_entities:
            self.default_metric = "accuracy"
            logger.info(
                "no tag begins with B- or I-: single tags are scored, judged by accuracy unless "
                "trainer.metric_for_best_model is set"
            )
        elif others:
            logger.warning("tags that mark no part of an entity, and count as O in f1: %s", ", ".join(others))
        return label_options(self.tags)

    @override
    def check(self, examples: Dataset, source: str) -> None:
        _check_form(examples, source)
        unknown = sorted({tag for row in tag_names(examples) for tag in row} - {*self.tags})
        if unknown:
            raise DataError(
                f"{source}: tags that training has not: {', '.join(unknown)}"
                f"{of_choices(unknown[0], self.tags, 'Tags:')}"
            )

    @override
    def features(self, examples: Dataset) -> Encoded:
        named = examples.remove_columns("tags").add_column("tags", tag_names(examples))
        return super().features(named)

    @override
    def encode(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = self.tokenizer(batch["tokens"], is_split_into_words=True, truncation=True, max_length=self.max_length)
        labels = [self._aligned(encoded.word_ids(index), tags) for index, tags in enumerate(batch["tags"])]
        return {**encoded, "labels": labels}

    def _aligned(self, words: Sequence[int | None], tags: Sequence[str]) -> list[int]:
        previous: list[int | None] = [None, *words[:-1]]
        return [
            IGNORED if word is None or word == before else self.tags.index(tags[word])
            for before, word in zip(previous, words, strict=True)
        ]

    @override
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        return {**self.padded(rows), "labels": self.padded_labels([row["labels"] for row in rows])}

    @override
    def reduce(self, outputs: Any, batch: Batch) -> Tensor:
        return own_positions(first(outputs), batch["labels"].shape[1]).argmax(-1)

    @override
    def score(self, predictions: Any, labels: Any, encoded: Encoded) -> dict[str, float]:
        guessed, wanted = self._tags(predictions, labels), self._tags(labels, labels)
        if self.are_entities:
            return metrics.entities(guessed, wanted)
        return metrics.classification(list(chain.from_iterable(guessed)), list(chain.from_iterable(wanted)))

    def _tags(self, indices: Any, labels: Any) -> list[list[str]]:
        return [
            [self.tags[index] for index, label in zip(row, wanted, strict=True) if label != IGNORED]
            for row, wanted in zip(indices, labels, strict=True)
        ]

    @override
    def unanswered(self, examples: Dataset) -> Encoded:
        """A text that is no list is split at blanks."""
        words = [row.split() if isinstance(row, str) else row for row in examples["tokens"]]
        tagged = examples.add_column("tags", [[self.tags[0]] * len(row) for row in words])
        return self.features(tagged.remove_columns("tokens").add_column("tokens", words))

    @override
    def predict(self, model: Any, batch: Batch) -> list[list[str]]:
        logits = model(**self.inputs(batch))["logits"]
        labels = batch["labels"]
        return self._tags(own_positions(logits, labels.shape[1]).argmax(-1).tolist(), labels.tolist())

    @override
    def predictions(self, found: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """One tag a word; None for words that are cut off, or have no token."""
        words = encoded.examples["tokens"][:]
        tokens = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.max_length)
        said = []
        for index, (row, tags) in enumerate(zip(words, found, strict=True)):
            seen = dict.fromkeys(word for word in tokens.word_ids(index) if word is not None)
            tag_of = dict(zip(seen, tags, strict=True))
            said.append({"prediction": [tag_of.get(word) for word in range(len(row))]})
        return said

    @override
    def baseline(self, train: Encoded, held_out: Encoded) -> dict[str, float]:
        seen = Counter(label for row in train.rows["labels"] for label in row if label != IGNORED)
        answer = seen.most_common(1)[0][0]
        wanted = held_out.rows["labels"]
        return self.score([np.full(len(row), answer) for row in wanted], wanted, held_out)


def _check_lists(values: Sequence[Any], what: str) -> None:
    wrong = [(row, v) for row, v in enumerate(values, start=1) if not isinstance(v, list) or None in v]
    if wrong:
        raise DataError(f"{what} must hold lists, one entry a word, but {listed(wrong)}")


def _check_form(split: Dataset, what: str) -> None:
    """
    Raises:
        DataError: words and tags are no lists, or not equally many.
    """
    for role in ("tokens", "tags"):
        _check_lists(split[role], f"{what}: {role!r}")
    _check_lengths(split, what)


def _check_lengths(split: Dataset, what: str) -> None:
    for tokens, tags in zip(split["tokens"], split["tags"], strict=True):
        if len(tags) != len(tokens):
            raise DataError(f"{what}: {len(tokens)} tokens have {len(tags)} tags: {' '.join(tokens)}")


def _check_training(found: Mapping[str, set[str]], source: str) -> None:
    """
    Raises:
        DataError: training has one tag only.
    """
    if len(found["train"]) == 1:
        raise DataError(f"{source}: every tag of training is {next(iter(found['train']))!r}, and a tag needs another")
    for name, tags in found.items():
        if unknown := sorted(tags - found["train"]):
            logger.warning("tags of %s that training has not, and that cannot be learnt: %s", name, ", ".join(unknown))


def tag_names(split: Dataset) -> list[list[str]]:
    """The tags of a split as text; tag numbers that have names are named."""
    feature = getattr(split.features["tags"], "feature", None)
    if isinstance(feature, ClassLabel):
        return [feature.int2str(row) for row in split["tags"]]
    return [[str(tag) for tag in row] for row in split["tags"]]
