"""Source texts to target texts, scored on what the model writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from typing_extensions import override

from adapterkit.train import metrics
from adapterkit.train.builtin import rewrites
from adapterkit.train.pipeline import IGNORED, Batch, Encoded, Pipeline


@final
class Seq2SeqLmPipeline(Pipeline):
    """ROUGE-L and exact match of greedily generated texts. The baseline is the untrained model."""

    required: ClassVar[tuple[str, ...]] = ("source", "target")
    texts: ClassVar[tuple[str, ...]] = ("source", "target")
    also: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "source": ("input", "document", "article", "text", "dialogue"),
        "target": ("output", "summary", "highlights", "label", "labels"),
    }
    given: ClassVar[tuple[str, ...]] = ("source",)
    smoothing_shift: bool | None = False
    generates: ClassVar[bool] = True

    @override
    @classmethod
    def builtin(cls) -> Mapping[str, list[dict[str, Any]]]:
        return rewrites.make()

    @override
    def cut(self, examples: Dataset) -> Mapping[str, str]:
        return {"input_ids": "max_length", "labels": "max_target_length"}

    @override
    def encode(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = dict(self.tokenizer(batch["source"], truncation=True, max_length=self.max_length))
        targets = self.tokenizer(text_target=batch["target"], truncation=True, max_length=self.config.max_target_length)
        return {**encoded, "labels": targets["input_ids"]}

    @override
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        longest = max(len(row["labels"]) for row in rows)
        labels = torch.tensor([row["labels"] + [IGNORED] * (longest - len(row["labels"])) for row in rows])
        return {**self.padded(rows, ("input_ids", "attention_mask")), "labels": labels}

    @override
    def generate(self, model: Any, batch: Batch) -> Tensor:
        written: Tensor = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.config.max_target_length,
            num_beams=1,
            do_sample=False,
            **self.added(batch),
        )
        return written

    @override
    def score(self, predictions: Any, labels: Any, encoded: Encoded) -> dict[str, float]:
        return metrics.written(self._texts(predictions), self._texts(labels))

    @override
    def unanswered(self, examples: Dataset) -> Encoded:
        return self.features(examples.add_column("target", [""] * len(examples)))

    @override
    def predict(self, model: Any, batch: Batch) -> list[str]:
        return self._texts(self.generate(model, batch).cpu())

    def _texts(self, ids: Any) -> list[str]:
        padded = np.where(np.asarray(ids) == IGNORED, self.tokenizer.pad_token_id, ids)
        texts: list[str] = self.tokenizer.batch_decode(padded, skip_special_tokens=True)
        return texts
