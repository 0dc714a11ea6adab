"""The wrapper of sequence classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForSequenceClassification(PeftModel):
    """A sequence classifier with adapters; its head is trained and saved beside them.

    A model that classifies by its first column classifies by the first virtual token, where there is one among the
    embeddings, as in PEFT.
    """

    task_type: ClassVar[str | None] = "SEQ_CLS"
    heads: ClassVar[tuple[str, ...]] = ("classifier", "score", "pre_classifier")  # a model may have the first and last
    unadapted_heads: ClassVar[tuple[str, ...]] = ("classifier", "score")
    pooled_by: ClassVar[Mapping[str, str]] = {"classifier": "first", "score": "last"}
