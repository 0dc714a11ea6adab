"""Virtual tokens that start from a model's own word embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn


def text_tokens(text: str, count: int, *, tokenizer: str, options: Mapping[str, Any] | None = None) -> Tensor:
    """The ids of a text's tokens ``(count,)``, special ones included; repeated or cut to ``count``.

    Args:
        text: the text.
        count: how many ids.
        tokenizer: name or path of a tokenizer that transformers reads.
        options: further arguments of ``AutoTokenizer.from_pretrained``.
    """
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tokenizer, **(options or {}))(text)["input_ids"]
    return torch.tensor(list(islice(cycle(ids), count)))


def sampled_tokens(model: Any, count: int) -> Tensor:
    """Random ids from the vocabulary ``(count,)``."""
    return torch.randint(0, model.get_input_embeddings().num_embeddings, (count,))


@torch.no_grad()
def start_from_words(table: nn.Embedding, model: Any, ids: Tensor) -> None:
    """Set a table's rows to the model's embeddings of ``ids``."""
    words = model.get_input_embeddings()
    table.weight.copy_(words(ids.to(words.weight.device)))
