"""The wrapper of token classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForTokenClassification(PeftModel):
    """A token classifier with adapters; its head is trained and saved beside them.

    ``logits`` have one column for each column of the input, virtual tokens or not.
    """

    task_type: ClassVar[str | None] = "TOKEN_CLS"
    heads: ClassVar[tuple[str, ...]] = ("classifier", "score")
    fill: ClassVar[Mapping[str, int]] = {"attention_mask": 1, "token_type_ids": 0, "labels": -100}
    trimmed: ClassVar[tuple[str, ...]] = ("logits",)
