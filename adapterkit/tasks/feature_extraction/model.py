"""The wrapper for FEATURE_EXTRACTION."""

from __future__ import annotations

from typing import ClassVar, final

from adapterkit.model import PeftModel


@final
class PeftModelForFeatureExtraction(PeftModel):
    """A model with adapters for FEATURE_EXTRACTION."""

    task_type: ClassVar[str | None] = "FEATURE_EXTRACTION"
    heads: ClassVar[tuple[str, ...]] = ()
