"""Settings of LoHa."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from adapterkit.config.base import Choice
from adapterkit.config.factored import FactoredLayerConfig


class LoHaConfig(FactoredLayerConfig):
    """LoHa, or FedPara (Hyeon-Woo et al., 2021), https://arxiv.org/abs/2108.06098: a product of low-rank matrices."""

    adapter: ClassVar[str] = "adapterkit.methods.loha.adapter:LoHaAdapter"
    start_fields: ClassVar[dict[str, Any]] = {"init_weights": None}
    learning_rate: ClassVar[float] = 1e-2

    peft_type: Annotated[Literal["LOHA"], Choice] = Field("LOHA", description="Name of the method.")
    init_weights: bool = Field(True, description="Start as the base model; false draws every factor, for tests.")
