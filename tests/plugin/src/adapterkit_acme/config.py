"""Settings of scale and shift."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from adapterkit.config.base import Choice
from adapterkit.config.layer import LayerConfig


class ScaleShiftConfig(LayerConfig):
    """Scale and shift of features (SSF: Lian et al., 2022), https://arxiv.org/abs/2210.08823: ``y = g(Wx+b) + h``."""

    adapter: ClassVar[str] = "adapterkit_acme.adapter:ScaleShiftAdapter"

    peft_type: Annotated[Literal["SCALE_SHIFT"], Choice] = Field("SCALE_SHIFT", description="Name of the method.")
    train_shift: bool = Field(True, description="Learn the shift, too; a layer without a bias then cannot be merged.")
    init_scale: float = Field(1.0, gt=0, description="Every scale at the start; 1 leaves the layer as it is.")
