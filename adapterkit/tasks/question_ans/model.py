"""The wrapper for QUESTION_ANS."""

from __future__ import annotations

from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForQuestionAnswering(PeftModel):
    """A model with adapters for QUESTION_ANS."""

    task_type: ClassVar[str | None] = "QUESTION_ANS"
    heads: ClassVar[tuple[str, ...]] = ("qa_outputs",)
