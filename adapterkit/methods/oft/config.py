"""Settings of OFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator
from typing_extensions import override

from adapterkit.config.base import Form
from adapterkit.config.layer import IndexedLayerConfig
from adapterkit.config.strict import Choice


class OFTConfig(IndexedLayerConfig):
    """Orthogonal finetuning (Qiu et al., 2023), https://arxiv.org/abs/2306.07280, of the input, block by block."""

    adapter: ClassVar[str] = "adapterkit.methods.oft.adapter:OFTAdapter"
    start_fields: ClassVar[dict[str, Any]] = {"init_weights": None}
    only_with: ClassVar[dict[str, tuple[str, Any]]] = {
        "eps": ("coft", True),
        "num_cayley_neumann_terms": ("use_cayley_neumann", True),
    }
    example: ClassVar[dict[str, Any]] = {"oft_block_size": 2}

    peft_type: Annotated[Literal["OFT"], Choice] = Field("OFT", description="Name of the method.")
    r: NonNegativeInt = Field(0, description="Number of blocks a layer; 0 leaves it to oft_block_size.")
    oft_block_size: NonNegativeInt = Field(
        32, description="Size of a block, moved to the nearest divisor of a layer's inputs; 0 leaves it to r."
    )
    module_dropout: float = Field(0.0, ge=0, lt=1, description="In training, the share of blocks that do not rotate.")
    fan_in_fan_out: bool = Field(
        False, description="Whether layers store (in, out). Recognised by itself; kept for PEFT's files."
    )
    bias: Literal["none", "all", "oft_only"] = Field("none", description="Which biases are trained, too.")
    init_weights: bool = Field(True, description="Start without a rotation; false draws small ones, for tests.")
    coft: bool = Field(False, description="Keep the rotation near none: constrained OFT.")
    eps: float = Field(6e-5, gt=0, description="With coft: how far the rotation may go.")
    block_share: bool = Field(False, description="One rotation for all blocks of a layer.")
    use_cayley_neumann: bool = Field(
        True, description="Cayley's transform by a series, cheap and nearly orthogonal; false solves for it exactly."
    )
    num_cayley_neumann_terms: int = Field(
        5, ge=2, description="Terms of the series; the first one alone is no rotation."
    )

    @model_validator(mode="after")
    def _one_of_two_sizes(self) -> Self:
        if bool(self.r) == bool(self.oft_block_size):
            raise ValueError(
                "r * oft_block_size is a layer's number of inputs: set one of them, and the other to 0 "
                f"(r={self.r}, oft_block_size={self.oft_block_size})"
            )
        return self

    @override
    def saved_forms(self) -> Sequence[Form]:
        sizes = ("blocks", "numbers of a block")
        return {"oft_R.weight": sizes}, {"oft_embedding_R.weight": sizes}
