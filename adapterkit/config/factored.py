"""Fields of the methods that factor a layer's change into small matrices, and can drop parts of it in training."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt

from adapterkit.config.layer import IndexedLayerConfig
from adapterkit.config.strict import PositiveNumber


class FactoredLayerConfig(IndexedLayerConfig):
    """A method whose change is ``alpha / r`` times a product of factors of rank ``r``."""

    pattern_fields: ClassVar[dict[str, str]] = {"rank_pattern": "r", "alpha_pattern": "alpha"}

    r: PositiveInt = Field(8, description="Rank of the factors.")
    alpha: PositiveNumber = Field(8, description="The change is scaled by alpha / r.")
    rank_dropout: float = Field(0.0, ge=0, lt=1, description="In training, how often an output loses its change.")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="In training, how often a layer loses its whole change.")
    use_effective_conv2d: bool = Field(
        False, description="Factor a convolution's kernel, too, where it is larger than 1 (FedPara, proposition 3)."
    )
    rank_pattern: dict[str, PositiveInt] = Field(
        default_factory=dict, description="Other ranks for some modules: {name suffix or regex: r}."
    )
    alpha_pattern: dict[str, PositiveNumber] = Field(
        default_factory=dict, description="Other alphas for some modules: {name suffix or regex: alpha}."
    )
