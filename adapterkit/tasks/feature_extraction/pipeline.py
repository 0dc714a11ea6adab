"""Sentence pairs to the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from adapterkit.errors import AdapterkitError, ConfigError
from adapterkit.nn.storage import device_of
from adapterkit.train import metrics
from adapterkit.train.builtin import similarity
from adapterkit.train.pipeline import Batch, Encoded, Pipeline, first, own_positions

SHARPNESS = 20.0
"""Factor on cosines inside the loss."""


@final
class FeatureExtractionPipeline(Pipeline):
    """Correlation of the cosine of two sentences' mean vectors with their score; the untrained model is the baseline.

    The loss is CoSENT (Su, 2022, https://kexue.fm/archives/8847): wherever one pair of a batch has a higher score than
    another, its cosine should be higher, too. It does not depend on the scale of the scores.
    """

    required: ClassVar[tuple[str, ...]] = ("sentence1", "sentence2", "score")
    texts: ClassVar[tuple[str, ...]] = ("sentence1", "sentence2")
    numbers: ClassVar[tuple[str, ...]] = ("score",)
    also: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sentence1": ("text", "anchor", "premise"),
        "sentence2": ("text_pair", "positive", "hypothesis"),
        "score": ("label", "similarity", "similarity_score"),
    }
    copies: ClassVar[int] = 2
    given: ClassVar[tuple[str, ...]] = ("sentence1",)
    may_be_given: ClassVar[tuple[str, ...]] = ("sentence2",)
    predicts: ClassVar[tuple[str, ...]] = ("embedding", "embedding_2", "similarity")

    @override
    @classmethod
    def builtin(cls) -> Mapping[str, list[dict[str, Any]]]:
        return similarity.make()

    @override
    def fit_into(self, base: Any, virtual_tokens: int) -> None:
        super().fit_into(base, virtual_tokens)
        if getattr(base.config, "is_encoder_decoder", False) and not _shifts_by_itself(base):
            raise ConfigError(
                f"model.name_or_path={base.name_or_path}: an encoder-decoder whose decoder needs a text of its own; "
                "feature_extraction needs an encoder or a decoder, or a model that gives both the same, as BART"
            )

    @override
    def cut(self, examples: Dataset) -> Mapping[str, str]:
        return dict.fromkeys(self.texts, "max_length")

    @override
    def encode(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        sides = {
            name: self.tokenizer(batch[name], truncation=True, max_length=self.max_length)["input_ids"]
            for name in ("sentence1", "sentence2")
        }
        return {**sides, "labels": [float(score) for score in batch["score"]]}

    @override
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """All first sentences, then all second ones: inputs have twice as many rows as ``labels``."""
        texts = [row[name] for name in ("sentence1", "sentence2") for row in rows]
        inputs = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts]
        labels = torch.tensor([row["labels"] for row in rows])
        return {**self.padded(inputs, ("input_ids", "attention_mask")), "labels": labels}

    @override
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **self.added(batch))
        hidden = outputs[0]
        return cosent(cosines(hidden, batch["attention_mask"]), batch["labels"]), {"hidden": hidden}

    @override
    def unanswered(self, examples: Dataset) -> Encoded:
        filled = examples.add_column("score", [0.0] * len(examples))
        if "sentence2" not in examples.column_names:
            filled = filled.add_column("sentence2", examples["sentence1"][:])
        return Encoded(self.features(filled).rows, examples)

    @override
    def predict(self, model: Any, batch: Batch) -> list[Any]:
        mask = batch["attention_mask"]
        hidden = model(**self.inputs(batch))[0]
        left, right = mean_vectors(hidden.float(), mask).chunk(2)
        similar = functional.cosine_similarity(left, right)
        return list(zip(left.tolist(), right.tolist(), similar.tolist(), strict=True))

    @override
    def predictions(self, found: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """The vector of a sentence; of two, both and their cosine."""
        names = self.predicts if "sentence2" in encoded.examples.column_names else self.predicts[:1]
        return [dict(zip(names, row, strict=False)) for row in found]

    @override
    def reduce(self, outputs: Any, batch: Batch) -> Tensor:
        return cosines(first(outputs), batch["attention_mask"])

    @override
    def score(self, predictions: Any, labels: Any, encoded: Encoded) -> dict[str, float]:
        scores = metrics.regression(predictions, labels)
        return {name: scores[name] for name in ("spearman", "pearson")}


def mean_vectors(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row's own positions.

    Args:
        hidden: of shape (rows, at least length, width).
        mask: of shape (rows, length), 1 at tokens and 0 at padding.
    """
    weights = mask[..., None].to(hidden.dtype)
    return (own_positions(hidden, mask.shape[1]) * weights).sum(1) / weights.sum(1).clamp(min=1)


@torch.no_grad()
def _shifts_by_itself(base: nn.Module) -> bool:
    """Whether an encoder-decoder makes its decoder's input of the encoder's: only a call tells."""
    try:
        base(input_ids=torch.ones(1, 1, dtype=torch.long, device=device_of(base)))
    except AdapterkitError:
        return True  # an adapter lacks an input of its own, and the base is not to blame
    except ValueError:
        return False
    return True


def cosines(hidden: Tensor, mask: Tensor) -> Tensor:
    """Of shape (rows / 2,): the cosine of each row of the first half with its row of the second."""
    left, right = mean_vectors(hidden.float(), mask).chunk(2)
    return functional.cosine_similarity(left, right)


def cosent(similar: Tensor, scores: Tensor) -> Tensor:
    """``log(1 + sum exp(20 (cos_i - cos_j)))`` over all pairs with ``score_i < score_j``.

    Args:
        similar: cosines, of shape (batch,).
        scores: of shape (batch,).
    """
    differences = SHARPNESS * (similar[:, None] - similar[None, :])
    wrong_way = differences[scores[:, None] < scores[None, :]]
    return torch.logsumexp(torch.cat([wrong_way.new_zeros(1), wrong_way]), dim=0)
