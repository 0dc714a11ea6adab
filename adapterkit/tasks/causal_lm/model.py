"""The wrapper of causal language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForCausalLM(PeftModel):
    """A causal language model with adapters.

    With virtual tokens among the embeddings, ``labels`` grow by -100 and ``logits`` by the virtual tokens' columns, as
    in PEFT. ``generate`` returns real tokens only.
    """

    task_type: ClassVar[str | None] = "CAUSAL_LM"
    fill: ClassVar[Mapping[str, int]] = {"attention_mask": 1, "token_type_ids": 0, "labels": -100}
