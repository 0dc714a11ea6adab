"""The wrapper of models that give embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForFeatureExtraction(PeftModel):
    """A model without a head, with adapters.

    ``last_hidden_state`` has one column for each column of the input, virtual tokens or not, so that it can be pooled
    under the input's mask.
    """

    task_type: ClassVar[str | None] = "FEATURE_EXTRACTION"
    trimmed: ClassVar[tuple[str, ...]] = ("last_hidden_state",)
    pooled_by: ClassVar[Mapping[str, str]] = {"pooler": "first"}
