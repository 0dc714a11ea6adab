"""Settings of LoHa."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from adapterkit.config.base import Form
from adapterkit.config.factored import FactoredLayerConfig
from adapterkit.config.strict import Choice


class LoHaConfig(FactoredLayerConfig):
    """LoHa, or FedPara (Hyeon-Woo et al., 2021), https://arxiv.org/abs/2108.06098: a product of low-rank matrices."""

    adapter: ClassVar[str] = "adapterkit.methods.loha.adapter:LoHaAdapter"
    start_fields: ClassVar[dict[str, Any]] = {"init_weights": None}
    learning_rate: ClassVar[float] = 1e-2

    peft_type: Annotated[Literal["LOHA"], Choice] = Field("LOHA", description="Name of the method.")
    init_weights: bool = Field(True, description="Start as the base model; false draws every factor, for tests.")

    @override
    def saved_forms(self) -> Sequence[Form]:
        r = self.r
        plain = {f"hada_w{n}_a": ("out", r) for n in (1, 2)} | {f"hada_w{n}_b": (r, "in", "...") for n in (1, 2)}
        core = {f"hada_w{n}_a": (r, "out") for n in (1, 2)} | {f"hada_w{n}_b": (r, "in") for n in (1, 2)}
        return (plain, {**core, "hada_t1": (r, r, "..."), "hada_t2": (r, r, "...")})
