"""Settings of the task ``feature_extraction``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from adapterkit.config.task import TaskConfig


class FeatureExtractionConfig(TaskConfig):
    """A vector for a text, learnt from pairs of texts and how similar they are."""

    task_type: ClassVar[str] = "FEATURE_EXTRACTION"
    wrapper: ClassVar[str] = "adapterkit.tasks.feature_extraction.model:PeftModelForFeatureExtraction"
    auto_model: ClassVar[str] = "AutoModel"
    pipeline: ClassVar[str] = "adapterkit.tasks.feature_extraction.pipeline:FeatureExtractionPipeline"
    default_model: ClassVar[str] = "builtin:bert"
    default_metric: ClassVar[str] = "spearman"
    measures: ClassVar[tuple[str, ...]] = ("spearman", "pearson")
    smooths_labels: ClassVar[bool] = False
    default_columns: ClassVar[Mapping[str, str]] = {
        "sentence1": "sentence1",
        "sentence2": "sentence2",
        "score": "score",
    }

    name: Literal["feature_extraction"] = Field("feature_extraction", description="Name of the task.")
