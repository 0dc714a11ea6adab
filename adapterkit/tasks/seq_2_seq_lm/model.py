"""The wrapper of encoder-decoder language models."""

from __future__ import annotations

from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForSeq2SeqLM(PeftModel):
    """An encoder-decoder language model with adapters.

    Virtual tokens stand before the encoder's embeddings, or in the decoder's key-value cache; a method may put tokens
    of their own before the decoder's embeddings, too, and then ``labels`` grow by -100 and ``logits`` with them.
    """

    task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    halves: ClassVar[int] = 2
