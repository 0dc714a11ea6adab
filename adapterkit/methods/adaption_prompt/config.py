"""Settings of adaption prompts (LLaMA-Adapter)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt

from adapterkit.config.layer import LayerConfig
from adapterkit.config.strict import Choice, Names
from adapterkit.errors import TargetError


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class AdaptionPromptConfig(LayerConfig):
    """LLaMA-Adapter (Zhang et al., 2023), https://arxiv.org/abs/2303.16199: the upper layers attend to learnt tokens,
    too, through a gate that starts closed."""

    adapter: ClassVar[str] = "adapterkit.methods.adaption_prompt.adapter:AdaptionPromptAdapter"
    learning_rate: ClassVar[float] = 3e-2
    default_roles: ClassVar[tuple[str, ...]] = ("attention",)
    example: ClassVar[Mapping[str, Any]] = {"adapter_len": 4}

    peft_type: Annotated[Literal["ADAPTION_PROMPT"], Choice] = Field(
        "ADAPTION_PROMPT", description="Name of the method."
    )
    target_modules: Annotated[Names | None, BeforeValidator(_as_list)] = Field(
        None, description="Name of the attention blocks; null takes that of the architecture."
    )
    adapter_len: PositiveInt = Field(description="Number of learnt tokens in each layer.")
    adapter_layers: PositiveInt | None = Field(
        None, description="Number of layers that have some, counted from the top; null means all."
    )

    @property
    def is_adaption_prompt(self) -> bool:
        return True

    def narrowed(self, targets: list[str]) -> list[str]:
        wanted = len(targets) if self.adapter_layers is None else self.adapter_layers
        if len(targets) < wanted:
            raise TargetError(f"adapter_layers={wanted}, and the model has {len(targets)}: {targets}")
        return targets[len(targets) - wanted :]

    def settled(self, targets: Sequence[str]) -> Self:
        return self.model_copy(update={"adapter_layers": len(targets)})

    def to_dict(self) -> dict[str, Any]:
        """As PEFT has it: one name of all attention blocks, of which `adapter_layers` says how many are meant."""
        content = super().to_dict()
        for unknown in ("exclude_modules", "modules_to_save"):
            if content[unknown] is None:
                del content[unknown]
        names = {name.rpartition(".")[2] for name in self.target_modules or ()}
        return {**content, "target_modules": names.pop()} if len(names) == 1 else content
