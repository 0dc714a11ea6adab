"""The wrapper of models that find an answer's span in a text."""

from __future__ import annotations

from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForQuestionAnswering(PeftModel):
    """A span finder with adapters; its head is trained and saved beside them.

    Positions and logits count the columns of the input, virtual tokens or not.
    """

    task_type: ClassVar[str | None] = "QUESTION_ANS"
    heads: ClassVar[tuple[str, ...]] = ("qa_outputs",)
    shifted: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    trimmed: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
