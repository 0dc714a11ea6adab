"""Settings of the variants that have several: starts that look at data or at quantisation, and factors in blocks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from adapterkit.config.strict import Names, StrictModel, Text
from adapterkit.errors import TargetError


class EvaConfig(StrictModel):
    """EVA (Paischer et al., 2024), https://arxiv.org/abs/2410.07170."""

    only_with: ClassVar[dict[str, tuple[str, Any]]] = {"label_mask_value": ("use_label_mask", True)}

    rho: float = Field(2.0, ge=1, description="A layer's rank may grow to rho * r, at others' cost; 1 keeps all.")
    tau: float = Field(
        0.99, ge=0, le=1, description="Cosine to what it was before a batch, from which on a direction is settled."
    )
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
    verbose: bool = Field(False, description="Kept for PEFT's files; nothing is shown.")
    use_float16_for_covariance: bool = Field(False, description="Take covariances in half precision.")
    prune_temporary_fields: bool = Field(True, description="Kept for PEFT's files; only what is started from is left.")


class LoraGAConfig(StrictModel):
    """LoRA-GA (Wang et al., 2024), https://arxiv.org/abs/2407.05000."""

    only_with: ClassVar[dict[str, tuple[str, Any]]] = {"stable_gamma": ("scale", "stable")}

    direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = Field(
        "ArB2r", description="Which of the gradient's 2r leading directions A and B start with."
    )
    scale: Literal["stable", "weight_svd", "gd_scale", "unit"] = Field("stable", description="How the start is scaled.")
    stable_gamma: PositiveInt | PositiveFloat = Field(16, description="Divisor of scale='stable'.")


class LoftQConfig(StrictModel):
    """LoftQ (Li et al., 2023), https://arxiv.org/abs/2310.08659."""

    loftq_bits: Annotated[Literal[4, 8], Field(description="Bits of the quantised weight.")] = 4
    loftq_iter: PositiveInt = Field(1, description="Rounds of quantising and decomposing what is lost.")


class BdLoraConfig(StrictModel):
    """BD-LoRA (Wang et al., 2025), https://arxiv.org/abs/2510.23346."""

    target_modules_bd_a: Names | None = Field(
        None,
        description="Parts of the names of layers whose inputs devices share out, and whose first factor is therefore "
        "block-diagonal: [o_proj, down_proj].",
    )
    target_modules_bd_b: Names | None = Field(
        None,
        description="The same of layers whose outputs they share out, and whose second factor it is: [q_proj, k_proj, "
        "v_proj, up_proj, gate_proj].",
    )
    nblocks: PositiveInt = Field(1, description="Number of blocks: the devices that are going to serve it.")
    match_strict: bool = Field(True, description="Whether every adapted layer has to be named in one of the two lists.")

    @model_validator(mode="after")
    def _lists_are_apart(self) -> Self:
        both = set(self.target_modules_bd_a or ()) & set(self.target_modules_bd_b or ())
        if both:
            raise ValueError(f"target_modules_bd_a and target_modules_bd_b both name {sorted(both)}")
        return self

    def at(self, module_name: str) -> Self | None:
        """What it says of one layer, which is then named in full; None if nothing.

        Raises:
            TargetError: both lists mean the layer, or neither does and ``match_strict`` is set.
        """
        fields = ("target_modules_bd_a", "target_modules_bd_b")
        meant = {f: [module_name] if any(n in module_name for n in getattr(self, f) or ()) else None for f in fields}
        if all(meant.values()):
            raise TargetError(f"use_bdlora: {' and '.join(fields)} both mean {module_name}")
        if any(meant.values()):
            return self.model_copy(update=meant)
        if self.match_strict:
            raise TargetError(
                f"use_bdlora: neither {' nor '.join(fields)} means {module_name}; set match_strict=false to give it "
                "factors without blocks"
            )
        return None
