"""Fields of the methods that adapt a whole model's inputs: virtual tokens and the sizes they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import override

from adapterkit.config.base import Form, PeftConfig
from adapterkit.config.strict import Text


class PromptConfig(PeftConfig):
    """A method that puts one adapter around the whole model. Sizes left null are read off the base model."""

    example: ClassVar[Mapping[str, Any]] = {"num_virtual_tokens": 3}

    num_virtual_tokens: PositiveInt = Field(description="Number of virtual tokens put before the input.")
    token_dim: PositiveInt | None = Field(None, description="Size of a token's embedding; null reads it off the model.")
    num_transformer_submodules: PositiveInt | None = Field(
        None,
        description="1, or 2 for an encoder-decoder, each half of which may have a prompt; null goes by the task.",
    )
    num_attention_heads: PositiveInt | None = Field(
        None, description="Number of (key/value) attention heads; null reads it off the model."
    )
    num_layers: PositiveInt | None = Field(None, description="Number of layers; null reads it off the model.")

    @property
    def is_prompt_learning(self) -> bool:
        return True

    @override
    def saved_forms(self) -> Sequence[Form]:
        tokens = self.num_virtual_tokens * (self.num_transformer_submodules or 1)
        return ({"prompt_embeddings": (tokens, self.token_dim or "width")},)


class WordPromptConfig(PromptConfig):
    """A prompt of embeddings that may start from those of a text's words."""

    start_fields: ClassVar[Mapping[str, Any]] = dict.fromkeys(
        ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
    )

    only_with: ClassVar[Mapping[str, tuple[str, Any]]] = dict.fromkeys(
        ("prompt_tuning_init_text", "tokenizer_name_or_path"), ("prompt_tuning_init", "TEXT")
    )

    prompt_tuning_init: str = Field("RANDOM", description="How the virtual tokens start.")
    prompt_tuning_init_text: Text | None = Field(
        None, description="With TEXT: the text whose tokens they start from, repeated or cut to their number."
    )
    tokenizer_name_or_path: Text | None = Field(None, description="With TEXT: the tokenizer, on the Hub or on disk.")
    tokenizer_kwargs: dict[str, Any] | None = Field(
        None, description="With TEXT: further arguments of AutoTokenizer.from_pretrained."
    )

    @model_validator(mode="after")
    def _text_is_complete(self) -> Self:
        if self.prompt_tuning_init == "TEXT":
            for field in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
                if not getattr(self, field):
                    raise ValueError(f"prompt_tuning_init is TEXT, which needs {field}")
        elif self.tokenizer_kwargs:
            raise ValueError("tokenizer_kwargs is set, but prompt_tuning_init is not TEXT")
        if "trust_remote_code" in (self.tokenizer_kwargs or ()):
            raise ValueError("tokenizer_kwargs: trust_remote_code is refused: an adapter's file must not run code")
        return self
