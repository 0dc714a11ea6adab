"""Settings of the task ``token_cls``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from adapterkit.config.task import TaskConfig


class TokenClsConfig(TaskConfig):
    """One label for every word of a sentence: named entities, parts of speech."""

    task_type: ClassVar[str] = "TOKEN_CLS"
    wrapper: ClassVar[str] = "adapterkit.tasks.token_cls.model:PeftModelForTokenClassification"
    auto_model: ClassVar[str] = "AutoModelForTokenClassification"
    pipeline: ClassVar[str] = "adapterkit.tasks.token_cls.pipeline:TokenClsPipeline"
    default_model: ClassVar[str] = "builtin:bert"
    default_metric: ClassVar[str] = "f1"
    measures: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "accuracy")
    default_columns: ClassVar[Mapping[str, str]] = {"tokens": "tokens", "tags": "tags"}

    name: Literal["token_cls"] = Field("token_cls", description="Name of the task.")
