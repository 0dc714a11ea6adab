"""Text to be continued: packed into blocks, or prompts with completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, final

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import MODEL_FOR_MASKED_LM_MAPPING
from typing_extensions import override

from adapterkit.errors import ConfigError, DataError
from adapterkit.train.builtin import stories
from adapterkit.train.data import Data
from adapterkit.train.pipeline import IGNORED, Batch, Encoded, Pipeline, first, own_positions


@final
class CausalLmPipeline(Pipeline):
    """Perplexity per token, and how often the likeliest token is right. The baseline is the untrained model.

    Texts are joined, the end-of-text token between them, and cut into blocks of ``data.max_length`` tokens; lines of
    one file are joined as they are. Where the data has ``prompt`` and ``completion``, each example stands alone and
    only the completion is learnt and scored.
    """

    required: ClassVar[tuple[str, ...]] = ()
    texts: ClassVar[tuple[str, ...]] = ("text", "prompt", "completion")
    also: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("content", "document"),
        "prompt": ("instruction", "question", "input"),
        "completion": ("response", "output", "answer"),
    }
    smoothing_shift: bool | None = True
    given: ClassVar[tuple[str, ...]] = ("text", "prompt")
    learnt: ClassVar[tuple[str, ...] | None] = ()

    positions: int | None = None
    """How many tokens the model has places for."""

    @override
    @classmethod
    def builtin(cls) -> Mapping[str, list[dict[str, Any]]]:
        return stories.make()

    @override
    def learn(self, data: Data) -> dict[str, Any]:
        self.check(data.train, data.source)
        return {}

    @override
    def check(self, examples: Dataset, source: str) -> None:
        there = examples.column_names
        if "text" not in there and not {"prompt", "completion"} <= set(there):
            raise DataError(
                f"{source}: a column for 'text', or two for 'prompt' and 'completion', are needed. "
                f"Set data.columns.text=<column>. Found: {', '.join(there) or 'none of them'}"
            )

    @override
    def fit_into(self, base: Any, virtual_tokens: int) -> None:
        if type(base.config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(base.config, "is_decoder", False):
            raise ConfigError(
                f"model.name_or_path={base.name_or_path}: an encoder, each of whose tokens sees those after it, so "
                "that there is nothing to predict; causal_lm needs a decoder"
            )
        super().fit_into(base, virtual_tokens)
        positions = getattr(base.config, "max_position_embeddings", None)
        self.positions = positions - virtual_tokens if isinstance(positions, int) else None

    @override
    def cut(self, examples: Dataset) -> Mapping[str, str]:
        return super().cut(examples) if "prompt" in examples.column_names else {}  # blocks lose nothing

    @override
    def encode(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "prompt" in batch and "completion" in batch:
            return self._pairs(batch["prompt"], batch["completion"])
        return self._blocks(batch["text"])

    def _blocks(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        lines = all(text.endswith("\n") for text in texts[:-1]) and len(texts) > 1
        documents = ["".join(texts)] if lines else texts
        end = self.tokenizer.eos_token_id
        tokens = list(chain.from_iterable([*self._plain(document), end] for document in documents))
        blocks = [tokens[start : start + self.max_length] for start in range(0, len(tokens), self.max_length)]
        blocks = [block for block in blocks if len(block) > 1]
        return {"input_ids": blocks, "attention_mask": [[1] * len(block) for block in blocks], "labels": blocks}

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _pairs(self, prompts: Sequence[str], completions: Sequence[str]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for prompt, completion in zip(prompts, completions, strict=True):
            target = [*self._plain(completion), self.tokenizer.eos_token_id][: self.max_length - 1]
            given = self.tokenizer(prompt)["input_ids"][target_room(self.max_length, target) :]
            rows["input_ids"].append(given + target)
            rows["attention_mask"].append([1] * (len(given) + len(target)))
            rows["labels"].append([IGNORED] * len(given) + target)
        return rows

    @override
    def unanswered(self, examples: Dataset) -> Encoded:
        """The ends of prompts, or of texts that begin a document, as many tokens as leave room for what is written."""
        room, new = self.max_length, self.config.max_target_length
        if self.positions is not None:
            room = min(room, self.positions - new)
        if room < 1:
            raise ConfigError(f"{new} new tokens leave no room for a prompt: the model has {self.positions} positions")
        if "prompt" in examples.column_names:
            ids = [self.tokenizer(prompt)["input_ids"] for prompt in examples["prompt"]]
        else:
            ids = [self._plain(text) for text in examples["text"]]
        ids = [row[-room:] or [self.tokenizer.eos_token_id] for row in ids]
        columns = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": ids}
        added = {name: examples[name][:] for name in self.row_inputs}
        self.padding_side = "left"  # what is written follows on a row's last column
        return Encoded(Dataset.from_dict({**columns, **added}), examples)

    @override
    def generate(self, model: Any, batch: Batch) -> Tensor:
        """What is written after the prompts of a batch, of shape (batch, new tokens)."""
        written: Tensor = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.config.max_target_length,
            num_beams=1,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            **self.added(batch),
        )
        return written[:, batch["input_ids"].shape[1] :]

    @override
    def predict(self, model: Any, batch: Batch) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(self.generate(model, batch), skip_special_tokens=True)
        return texts

    @override
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        inputs = self.padded(rows, ("input_ids", "attention_mask"))
        return {**inputs, "labels": self.padded_labels([row["labels"] for row in rows])}

    @override
    def reduce(self, outputs: Any, batch: Batch) -> Tensor:
        """Of shape (batch, 3): the summed loss of a row, how many tokens it has, how many were guessed."""
        labels = batch["labels"]
        logits = own_positions(first(outputs), labels.shape[1])[:, :-1].float()
        wanted = labels[:, 1:].to(logits.device)
        losses = functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
        counted = wanted != IGNORED
        hits = (logits.argmax(-1) == wanted) & counted
        return torch.stack([losses.sum(1), counted.sum(1).float(), hits.sum(1).float()], dim=1)

    @override
    def score(self, predictions: Any, labels: Any, encoded: Encoded) -> dict[str, float]:
        loss, count, hits = np.asarray(predictions, dtype=float).sum(axis=0)
        return {"perplexity": math.exp(min(loss / count, 700.0)), "accuracy": float(hits / count)}


def target_room(max_length: int, target: Sequence[int]) -> int:
    """Where a prompt's tokens begin when only the last ones fit before its completion, as a negative index."""
    return min(-1, len(target) - max_length)
