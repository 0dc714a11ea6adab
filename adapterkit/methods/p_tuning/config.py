"""Settings of P-tuning."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from adapterkit.config.prompt import PromptConfig
from adapterkit.config.strict import Choice


class PromptEncoderReparameterizationType(StrEnum):
    """The values of `PromptEncoderConfig.encoder_reparameterization_type`."""

    MLP = "MLP"
    LSTM = "LSTM"


class PromptEncoderConfig(PromptConfig):
    """P-tuning (Liu et al., 2021), https://arxiv.org/abs/2103.10385: embeddings made by a network while training."""

    adapter: ClassVar[str] = "adapterkit.methods.p_tuning.adapter:PTuningAdapter"

    peft_type: Annotated[Literal["P_TUNING"], Choice] = Field("P_TUNING", description="Name of the method.")
    encoder_reparameterization_type: Annotated[Literal["MLP", "LSTM"], Choice] = Field(
        "MLP", description="The network: MLP (three linear layers) or LSTM (both ways, then two linear layers)."
    )
    encoder_hidden_size: PositiveInt | None = Field(None, description="Width of the network; null takes token_dim.")
    encoder_num_layers: PositiveInt = Field(2, description="Layers of the LSTM.")
    encoder_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout between the layers of the LSTM.")

    @model_validator(mode="after")
    def _settings_of_the_lstm(self) -> Self:
        if self.encoder_reparameterization_type == "MLP" and not self.inference_mode:
            for field, default in (("encoder_num_layers", 2), ("encoder_dropout", 0.0)):
                if getattr(self, field) != default:
                    raise ValueError(f"{field} is the LSTM's, and encoder_reparameterization_type is MLP")
        elif self.encoder_num_layers == 1 and self.encoder_dropout:
            raise ValueError("encoder_dropout works between layers, and encoder_num_layers is 1")
        return self
