"""Settings of (IA)³."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from adapterkit.config.base import Form
from adapterkit.config.layer import LayerConfig
from adapterkit.config.strict import Choice, Pattern


class IA3Config(LayerConfig):
    """(IA)³ (Liu et al., 2022), https://arxiv.org/abs/2205.05638: scales keys, values and feed-forward activations."""

    adapter: ClassVar[str] = "adapterkit.methods.ia3.adapter:IA3Adapter"
    start_fields: ClassVar[dict[str, Any]] = {"init_ia3_weights": None}
    learning_rate: ClassVar[float] = 3e-2
    default_roles: ClassVar[tuple[str, ...]] = ("key", "value", "ffn_out")
    subset_fields: ClassVar[dict[str, tuple[str, ...]]] = {"feedforward_modules": ("ffn_out",)}

    peft_type: Annotated[Literal["IA3"], Choice] = Field("IA3", description="Name of the method.")
    feedforward_modules: Pattern | None = Field(
        None,
        description="Those of target_modules whose input is scaled instead of their output; null means the layers "
        "that end a feed-forward block, [] none.",
    )
    fan_in_fan_out: bool = Field(
        False, description="Whether layers store (in, out). Recognised by itself; kept for PEFT's files."
    )
    init_ia3_weights: bool = Field(
        True, description="Start at one, as the base model; false draws the vectors, for tests."
    )

    @model_validator(mode="after")
    def _feedforward_modules_are_targets(self) -> Self:
        if isinstance(self.feedforward_modules, list) and isinstance(self.target_modules, list):
            others = sorted(set(self.feedforward_modules) - set(self.target_modules))
            if others:
                raise ValueError(f"feedforward_modules must be among target_modules, and {others} are not")
        return self

    @override
    def saved_forms(self) -> Sequence[Form]:
        return ({"ia3_l": ("a", "b", "...")},)
