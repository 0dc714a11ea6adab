"""The wrapper for TOKEN_CLS."""

from __future__ import annotations

from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForTokenClassification(PeftModel):
    """A model with adapters for TOKEN_CLS."""

    task_type: ClassVar[str | None] = "TOKEN_CLS"
    heads: ClassVar[tuple[str, ...]] = ("classifier","score")
