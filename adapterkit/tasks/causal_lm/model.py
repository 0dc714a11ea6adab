"""The wrapper for CAUSAL_LM."""

from __future__ import annotations

from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForCausalLM(PeftModel):
    """A model with adapters for CAUSAL_LM."""

    task_type: ClassVar[str | None] = "CAUSAL_LM"
    heads: ClassVar[tuple[str, ...]] = ()
