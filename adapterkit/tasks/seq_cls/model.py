"""The wrapper for SEQ_CLS."""

from __future__ import annotations

from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForSequenceClassification(PeftModel):
    """A model with adapters for SEQ_CLS."""

    task_type: ClassVar[str | None] = "SEQ_CLS"
    heads: ClassVar[tuple[str, ...]] = ("classifier","score")
