"""The wrapper for SEQ_2_SEQ_LM."""

from __future__ import annotations

from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForSeq2SeqLM(PeftModel):
    """A model with adapters for SEQ_2_SEQ_LM."""

    task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    heads: ClassVar[tuple[str, ...]] = ()
