"""Settings of Poly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from adapterkit.config.layer import LayerConfig
from adapterkit.config.strict import Choice


class PolyConfig(LayerConfig):
    """Polytropon (Ponti et al., 2022), https://arxiv.org/abs/2202.13914: every task mixes its own LoRA from skills.

    With ``n_splits`` over 1 each part of the features is mixed by itself: multi-head routing (Caccia et al., 2022,
    https://arxiv.org/abs/2211.03831). Forward takes ``task_ids``, one integer for every row of the batch.
    """

    adapter: ClassVar[str] = "adapterkit.methods.poly.adapter:PolyAdapter"
    start_fields: ClassVar[dict[str, Any]] = {"init_weights": None}
    learning_rate: ClassVar[float] = 1e-2
    forward_inputs: ClassVar[frozenset[str]] = frozenset({"task_ids"})

    peft_type: Annotated[Literal["POLY"], Choice] = Field("POLY", description="Name of the method.")
    r: PositiveInt = Field(8, description="Rank of every skill.")
    n_tasks: PositiveInt = Field(1, description="Number of tasks.")
    n_skills: PositiveInt = Field(4, description="Number of skills in every layer.")
    n_splits: PositiveInt = Field(1, description="Parts of the features that are mixed by themselves.")
    poly_type: Literal["poly"] = Field("poly", description="Kind of router.")
    init_weights: bool = Field(True, description="Start as the base model; false draws both factors, for tests.")

    @property
    @override
    def row_inputs(self) -> Mapping[str, int]:
        return {"task_ids": self.n_tasks} if self.n_tasks > 1 else {}
