"""Questions and contexts to answer spans, over windows of long contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from adapterkit.errors import DataError
from adapterkit.train import metrics
from adapterkit.train.builtin import facts
from adapterkit.train.data import Data
from adapterkit.train.pipeline import Batch, Encoded, Pipeline, own_positions

LONGEST_ANSWER = 30
"""Tokens; longer spans are not considered."""


class _Span(NamedTuple):
    score: float
    text: str
    start: int = 0
    """Of its first letter in the context."""


@final
class QuestionAnsPipeline(Pipeline):
    """SQuAD's exact match and F1. The baseline answers nothing where some questions have no answer (SQuAD 2.0), and is
    the untrained model elsewhere.

    A window that does not hold the answer points to its first token; so does every window of a question that has none.
    """

    required: ClassVar[tuple[str, ...]] = ("context", "question", "answers")
    texts: ClassVar[tuple[str, ...]] = ("context", "question")
    given: ClassVar[tuple[str, ...]] = ("context", "question")
    predicts: ClassVar[tuple[str, ...]] = ("prediction", "span")
    group_by: ClassVar[str | None] = "context"
    label_names: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")

    learnt: ClassVar[tuple[str, ...] | None] = ("some_have_none", "baseline_name")

    some_have_none: bool = False
    """Whether some questions of the training data have no answer."""

    @override
    @classmethod
    def builtin(cls) -> Mapping[str, list[dict[str, Any]]]:
        return facts.make()

    @override
    def learn(self, data: Data) -> dict[str, Any]:
        self.some_have_none = any(not answers["text"] for answers in data.train["answers"])
        self.baseline_name = "no answer" if self.some_have_none else Pipeline.baseline_name
        return {}

    @override
    def features(self, examples: Dataset) -> Encoded:
        encoded = super().features(examples.add_column("example", list(range(len(examples)))))
        return Encoded(encoded.rows, examples)

    @override
    def cut(self, examples: Dataset) -> Mapping[str, str]:
        return {}  # windows lose nothing

    @override
    def encode(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        questions = [self._short(question.strip()) for question in batch["question"]]
        encoded = self.tokenizer(
            questions,
            batch["context"],
            truncation="only_second",
            max_length=self.max_length,
            stride=self._stride(questions, batch["context"]),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources = encoded.pop("overflow_to_sample_mapping")
        offsets = [
            _of_context(pairs, encoded.sequence_ids(index)) for index, pairs in enumerate(encoded.pop("offset_mapping"))
        ]
        positions = [_answer(pairs, batch["answers"][source]) for pairs, source in zip(offsets, sources, strict=True)]
        return {
            **encoded,
            "start_positions": [start for start, _ in positions],
            "end_positions": [end for _, end in positions],
            "offsets": offsets,
            "example": [batch["example"][source] for source in sources],
        }

    def _short(self, question: str) -> str:
        """A question that leaves half of the window to the context."""
        offsets = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        room = self.max_length // 2
        return question if len(offsets) <= room else question[: offsets[room - 1][1]]

    def _stride(self, questions: Sequence[str], contexts: Sequence[str]) -> int:
        """The overlap of windows, which leaves room for new tokens beside every question whose context is cut."""
        wanted = self.config.doc_stride or self.max_length // 4
        added: int = self.tokenizer.num_special_tokens_to_add(pair=True)
        for question, context, asked in zip(questions, contexts, self._lengths(questions), strict=True):
            room = self.max_length - added - asked
            if room <= wanted and self._lengths([context])[0] > room:
                raise DataError(
                    f"data.doc_stride={wanted}: windows of {self.max_length} tokens (data.max_length, or what the "
                    f"model has positions for) leave {room} to the context beside the question {question!r}; set "
                    f"data.doc_stride below {room}, or a larger data.max_length"
                )
        return int(min(wanted, self.max_length - added - 1))  # less only where no context is cut

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    @override
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        labels = {name: torch.tensor([row[name] for row in rows]) for name in self.label_names}
        return {**self.padded(rows), **labels}

    @override
    def reduce(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        length = batch["input_ids"].shape[1]
        start, end = outputs[:2]
        return own_positions(start, length).float(), own_positions(end, length).float()

    @override
    def score(self, predictions: Any, labels: Any, encoded: Encoded) -> dict[str, float]:
        texts = self._answers(predictions, encoded)
        return metrics.answers(texts, [answers["text"] for answers in encoded.examples["answers"]])

    @override
    def unanswered(self, examples: Dataset) -> Encoded:
        none: list[Any] = [{"text": [], "answer_start": []}] * len(examples)
        return self.features(examples.add_column("answers", none))

    @override
    def predict(self, model: Any, batch: Batch) -> list[Any]:
        outputs = model(**self.inputs(batch))
        start, end = self.reduce((outputs["start_logits"], outputs["end_logits"]), batch)
        return list(zip(start.cpu().numpy(), end.cpu().numpy(), strict=True))

    @override
    def predictions(self, found: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """The answer, and where it begins and ends in the context; no text and None where there is none."""
        starts, ends = zip(*found, strict=True)
        return [
            {"prediction": span.text, "span": [span.start, span.start + len(span.text)] if span.text else None}
            for span in self._spans((starts, ends), encoded)
        ]

    def _answers(self, predictions: Any, encoded: Encoded) -> list[str]:
        return [span.text for span in self._spans(predictions, encoded)]

    def _spans(self, predictions: Any, encoded: Encoded) -> list[_Span]:
        """The best span over all windows of each question; no text where pointing nowhere scores higher."""
        contexts = list(encoded.examples["context"])
        best = [_Span(-np.inf, "")] * len(contexts)
        nowhere = np.full(len(contexts), np.inf)
        windows = zip(*predictions, encoded.rows["offsets"], encoded.rows["example"], strict=True)
        for start, end, offsets, source in windows:
            nowhere[source] = min(nowhere[source], start[0] + end[0])
            best[source] = max(best[source], _best_span(start, end, np.asarray(offsets), contexts[source]))
        return [
            _Span(null, "") if self.some_have_none and null > span.score else span
            for span, null in zip(best, nowhere, strict=True)
        ]

    @override
    def baseline(self, train: Encoded, held_out: Encoded) -> dict[str, float] | None:
        if not self.some_have_none:
            return None
        wanted = [answers["text"] for answers in held_out.examples["answers"]]
        return metrics.answers([""] * len(wanted), wanted)


def _of_context(pairs: Sequence[tuple[int, int]], sequences: Sequence[int | None]) -> list[tuple[int, int]]:
    """Offsets of the context's tokens, and (-1, -1) for all others."""
    return [pair if sequence == 1 else (-1, -1) for pair, sequence in zip(pairs, sequences, strict=True)]


def _answer(offsets: Sequence[tuple[int, int]], answers: Mapping[str, Any]) -> tuple[int, int]:
    """First and last token of the first answer in this window; (0, 0) where it is not in it."""
    if not answers["text"]:
        return 0, 0
    begin = answers["answer_start"][0]
    finish = begin + len(answers["text"][0])
    inside = [index for index, (start, end) in enumerate(offsets) if start >= 0 and start < finish and end > begin]
    whole = inside and offsets[inside[0]][0] <= begin and offsets[inside[-1]][1] >= finish
    return (inside[0], inside[-1]) if whole else (0, 0)


def _best_span(start: NDArray[Any], end: NDArray[Any], offsets: NDArray[Any], context: str) -> _Span:
    """The likeliest span of context tokens of at most `LONGEST_ANSWER`."""
    inside = np.flatnonzero(offsets[:, 0] >= 0)
    if not len(inside):
        return _Span(-np.inf, "")
    scores = start[inside][:, None] + end[inside][None, :]
    allowed = np.triu(np.ones_like(scores, dtype=bool)) & np.tril(np.ones_like(scores, dtype=bool), LONGEST_ANSWER - 1)
    first, last = np.unravel_index(np.argmax(np.where(allowed, scores, -np.inf)), scores.shape)
    begin = int(offsets[inside[first]][0])
    text = context[begin : offsets[inside[last]][1]]
    return _Span(float(scores[first, last]), text.strip(), begin + len(text) - len(text.lstrip()))
