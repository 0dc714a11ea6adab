"""Fields of the methods that adapt a whole model's inputs: virtual tokens and the sizes they need."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from adapterkit.config.base import PeftConfig


class PromptConfig(PeftConfig):
    """A method that puts one adapter around the whole model. Sizes left null are read off the base model."""

    num_virtual_tokens: PositiveInt = Field(description="Number of virtual tokens put before the input.")
    token_dim: PositiveInt | None = Field(None, description="Size of a token's embedding.")
    num_transformer_submodules: PositiveInt | None = Field(
        None, description="1, or 2 for an encoder-decoder whose two halves have a prompt of their own."
    )
    num_attention_heads: PositiveInt | None = Field(None, description="Number of (key/value) attention heads.")
    num_layers: PositiveInt | None = Field(None, description="Number of layers.")

    @property
    def is_prompt_learning(self) -> bool:
        return True
