"""Settings of prefix tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from adapterkit.config.base import Form
from adapterkit.config.prompt import PromptConfig
from adapterkit.config.strict import Choice


class PrefixTuningConfig(PromptConfig):
    """Prefix tuning (Li and Liang, 2021), https://arxiv.org/abs/2101.00190: learnt keys and values in every layer."""

    adapter: ClassVar[str] = "adapterkit.methods.prefix_tuning.adapter:PrefixTuningAdapter"
    start_fields: ClassVar[dict[str, Any]] = {"init_weights": None}
    learning_rate: ClassVar[float] = 3e-2

    peft_type: Annotated[Literal["PREFIX_TUNING"], Choice] = Field("PREFIX_TUNING", description="Name of the method.")
    prefix_projection: bool = Field(
        False, description="Train the prefix through a two-layer network, which is dropped when saving."
    )
    encoder_hidden_size: PositiveInt | None = Field(
        None, description="With prefix_projection: width of the network; null takes token_dim."
    )
    init_weights: Annotated[Literal["zero"] | None, Choice] = Field(
        None, description="'zero' starts with keys and values of zero; null draws normal values."
    )

    @override
    def saved_forms(self) -> Sequence[Form]:
        return ({"prompt_embeddings": (self.num_virtual_tokens, "keys and values of all layers")},)
