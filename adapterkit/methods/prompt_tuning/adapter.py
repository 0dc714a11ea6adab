"""Prompt tuning: Lester, Al-Rfou and Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021.

https://arxiv.org/abs/2104.08691. The model is given ``[P; embed(x)]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import nn

from adapterkit.nn.adapter import PromptAdapter
from adapterkit.prompts.words import sampled_tokens, start_from_words, text_tokens

if TYPE_CHECKING:
    from adapterkit.methods.prompt_tuning.config import PromptTuningConfig


@final
class PromptTuningAdapter(PromptAdapter):
    """``[P; embed(x)]`` with ``P`` the table."""

    def __init__(self, config: PromptTuningConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        count = config.num_virtual_tokens * (config.num_transformer_submodules or 1)
        self.embedding = nn.Embedding(count, config.token_dim or 0)  # (tokens, token_dim)
        if self.embedding.weight.is_meta or config.inference_mode:
            return
        if config.prompt_tuning_init == "TEXT":
            text, tokenizer = config.prompt_tuning_init_text or "", config.tokenizer_name_or_path or ""
            ids = text_tokens(text, count, tokenizer=tokenizer, options=config.tokenizer_kwargs)
            start_from_words(self.embedding, model, ids)
        elif config.prompt_tuning_init == "SAMPLE_VOCAB":
            start_from_words(self.embedding, model, sampled_tokens(model, count))
