"""Settings of AdaLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator
from typing_extensions import override

from adapterkit.architectures import ADAPTED_WHOLE, ARCHITECTURES, ROLES
from adapterkit.config.base import Form
from adapterkit.config.layer import IndexedLayerConfig
from adapterkit.config.strict import Choice, PositiveNumber


def _by_layer(value: Any) -> Any:
    """Keys without PEFT's prefix and without the adapter's name: ``<layer>.lora_E``."""
    if not isinstance(value, dict):
        return value
    return {f"{str(k).removeprefix('base_model.model.').partition('.lora_E')[0]}.lora_E": v for k, v in value.items()}


class AdaLoraConfig(IndexedLayerConfig):
    """AdaLoRA (Zhang et al., 2023), https://arxiv.org/abs/2303.10512: LoRA whose rank goes where it matters."""

    adapter: ClassVar[str] = "adapterkit.methods.adalora.adapter:AdaLoraAdapter"
    start_fields: ClassVar[dict[str, Any]] = {"init_lora_weights": None}
    learning_rate: ClassVar[float] = 3e-2
    schedule: ClassVar[str | None] = "adapterkit.methods.adalora.schedule:RankAllocator"
    inert: ClassVar[dict[str, Any]] = {"r": 8, "megatron_core": "megatron.core", "qalora_group_size": 16}
    example: ClassVar[dict[str, Any]] = {"init_r": 4, "target_r": 2}

    peft_type: Annotated[Literal["ADALORA"], Choice] = Field("ADALORA", description="Name of the method.")
    init_r: PositiveInt = Field(12, description="Rank that every layer starts with.")
    target_r: PositiveInt = Field(8, description="Rank that is left at the end, on average over the layers.")
    lora_alpha: PositiveNumber = Field(8, description="The update is scaled by lora_alpha / init_r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    fan_in_fan_out: bool = Field(
        False, description="Whether layers store (in, out). Recognised by itself; kept for PEFT's files."
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases are trained, too.")
    init_lora_weights: bool = Field(True, description="Start as the base model; false draws every factor, for tests.")
    tinit: NonNegativeInt = Field(0, description="Steps before the rank begins to fall.")
    tfinal: NonNegativeInt = Field(0, description="Steps at the end with the final ranks.")
    deltaT: PositiveInt = Field(1, description="Steps from one allocation of rank to the next.")
    beta1: float = Field(0.85, gt=0, lt=1, description="Smoothing of the sensitivity of the loss.")
    beta2: float = Field(0.85, gt=0, lt=1, description="Smoothing of the sensitivity's uncertainty.")
    orth_reg_weight: float = Field(0.5, ge=0, description="Weight of the loss that keeps the factors orthogonal.")
    total_step: PositiveInt | None = Field(None, description="Steps of the training; null takes the trainer's.")
    rank_pattern: Annotated[dict[str, list[bool]] | None, BeforeValidator(_by_layer)] = Field(
        None, description="Which of a layer's ranks are in use, as training left them: {'<layer>.lora_E': [true, ...]}."
    )

    @model_validator(mode="after")
    def _there_is_time_to_allocate(self) -> Self:
        if self.target_r > self.init_r:
            raise ValueError(f"target_r={self.target_r} is more than init_r={self.init_r}")
        if self.total_step is not None and self.tinit >= self.total_step - self.tfinal:
            raise ValueError(
                f"no step of total_step={self.total_step} is left between tinit={self.tinit} and tfinal={self.tfinal}"
            )
        return self

    @override
    def roles_in(self, model_type: str | None) -> tuple[str, ...]:
        """In some families all linear layers of a block, as in PEFT: there is rank to take from one for another."""
        if model_type not in ADAPTED_WHOLE:
            return self.default_roles
        return tuple(role for role in ROLES if role in ARCHITECTURES[model_type] and role != "attention")

    def at(self, module_name: str) -> Self:
        key = f"{module_name}.lora_E"
        flags = (self.rank_pattern or {}).get(key)
        return self.model_copy(update={"rank_pattern": None if flags is None else {key: flags}})

    @override
    def saved_forms(self) -> Sequence[Form]:
        return ({"lora_A": ("rank", "in"), "lora_B": ("out", "rank"), "lora_E": ("rank", 1)},)
