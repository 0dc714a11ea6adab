"""Settings of the initialisations that look at data, or at what quantisation loses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from adapterkit.config.base import StrictModel, Text


class EvaConfig(StrictModel):
    """EVA (Paischer et al., 2024), https://arxiv.org/abs/2410.07170."""

    rho: float = Field(2.0, ge=1, description="A layer's rank may grow to rho * r, at others' cost; 1 keeps all.")
    tau: float = Field(0.99, ge=0, le=1, description="A direction is settled when a batch turns it by less: cosine.")
    use_label_mask: bool = Field(True, description="Look only at tokens that have a label.")
    label_mask_value: int = Field(-100, description="The label of tokens without one.")
    whiten: bool = Field(False, description="Divide directions by the root of their singular value.")
    adjust_scaling_factors: bool = Field(True, description="Let alpha follow the rank, so that the scale stays.")


class CordaConfig(StrictModel):
    """CorDA (Yang et al., 2024), https://arxiv.org/abs/2406.05223."""

    cache_file: Text | None = Field(None, description="File of the decompositions: read if it is there, else written.")
    covariance_file: Text | None = Field(None, description="File of the covariances: read if there, else written.")
    corda_method: Literal["ipm", "kpm"] = Field(
        "ipm", description="Train the directions that the data use most (ipm) or least (kpm, keeps knowledge)."
    )
    verbose: bool = Field(False, description="Show progress.")
    use_float16_for_covariance: bool = Field(False, description="Take covariances in half precision.")
    prune_temporary_fields: bool = Field(True, description="Kept for PEFT's files; nothing temporary is left here.")


class LoraGAConfig(StrictModel):
    """LoRA-GA (Wang et al., 2024), https://arxiv.org/abs/2407.05000."""

    direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = Field(
        "ArB2r", description="Which of the gradient's 2r leading directions A and B start with."
    )
    scale: Literal["stable", "weight_svd", "gd_scale", "unit"] = Field("stable", description="How the start is scaled.")
    stable_gamma: PositiveInt | PositiveFloat = Field(16, description="Divisor of scale='stable'.")


class LoftQConfig(StrictModel):
    """LoftQ (Li et al., 2023), https://arxiv.org/abs/2310.08659."""

    loftq_bits: Annotated[Literal[4, 8], Field(description="Bits of the quantised weight.")] = 4
    loftq_iter: PositiveInt = Field(1, description="Rounds of quantising and decomposing what is lost.")
