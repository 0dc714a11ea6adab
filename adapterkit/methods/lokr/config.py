"""Settings of LoKr."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from adapterkit.config.factored import FactoredLayerConfig
from adapterkit.config.strict import Choice


def _positive_or_automatic(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError("must be positive, or -1")
    return value


class LoKrConfig(FactoredLayerConfig):
    """LoKr of LyCORIS (Yeh et al., 2023), https://arxiv.org/abs/2309.14859: a Kronecker product of two matrices."""

    adapter: ClassVar[str] = "adapterkit.methods.lokr.adapter:LoKrAdapter"
    start_fields: ClassVar[dict[str, Any]] = {"init_weights": None}
    only_with: ClassVar[dict[str, tuple[str, Any]]] = {"rank_dropout_scale": ("rank_dropout", True)}
    learning_rate: ClassVar[float] = 1e-2

    peft_type: Annotated[Literal["LOKR"], Choice] = Field("LOKR", description="Name of the method.")
    decompose_both: bool = Field(False, description="Factor the first, smaller matrix by rank, too.")
    decompose_factor: Annotated[int, AfterValidator(_positive_or_automatic)] = Field(
        -1, description="Size of the first matrix, as near as divisors allow; -1 makes both about as large."
    )
    rank_dropout_scale: bool = Field(False, description="With rank_dropout: scale up the outputs that are left.")
    init_weights: bool | Annotated[Literal["lycoris"], Choice] = Field(
        True,
        description="true starts the first matrix at zero, lycoris the second; false draws both, for tests.",
    )
