"""Settings of HRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from adapterkit.config.base import Choice, Form
from adapterkit.config.layer import IndexedLayerConfig


class HraConfig(IndexedLayerConfig):
    """HRA (Yuan, Liu and Xu, 2024), https://arxiv.org/abs/2405.17484: ``y = W H_1 ... H_r x``, ``H = I - 2 u u^T``."""

    adapter: ClassVar[str] = "adapterkit_hra.adapter:HraAdapter"
    start_fields: ClassVar[Mapping[str, Any]] = {"init_weights": None}
    learning_rate: ClassVar[float] = 1e-2
    example: ClassVar[Mapping[str, Any]] = {"r": 4}

    peft_type: Annotated[Literal["HRA"], Choice] = Field("HRA", description="Name of the method.")
    r: PositiveInt = Field(8, description="Number of reflections; even, to start as the base model.")
    apply_GS: bool = Field(
        False,
        description="Orthogonalise the reflections (QR, the same map as Gram-Schmidt). Needs independent columns, so "
        "they are not paired at the start, and the adapter does not start as the base model.",
    )
    init_weights: bool = Field(
        True, description="Start as pairs of equal reflections, which cancel; false draws every one at random."
    )
    bias: Literal["none", "all", "hra_only"] = Field("none", description="Which biases are trained, too.")

    @override
    def saved_forms(self) -> Sequence[Form]:
        return ({"hra_u": ("in", self.r)},)
