"""Settings of the task ``seq_cls``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from adapterkit.config.task import TaskConfig


class SeqClsConfig(TaskConfig):
    """One label for a text or a pair of texts: sentiment, entailment, acceptability; or a number."""

    task_type: ClassVar[str] = "SEQ_CLS"
    wrapper: ClassVar[str] = "adapterkit.tasks.seq_cls.model:PeftModelForSequenceClassification"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"
    pipeline: ClassVar[str] = "adapterkit.tasks.seq_cls.pipeline:SeqClsPipeline"
    default_model: ClassVar[str] = "builtin:bert"
    default_metric: ClassVar[str] = "accuracy"
    measures: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "mcc", "pearson", "spearman", "mse")
    default_columns: ClassVar[Mapping[str, str]] = {"text": "text", "text_pair": "text_pair", "label": "label"}

    name: Literal["seq_cls"] = Field("seq_cls", description="Name of the task.")
