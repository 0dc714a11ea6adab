"""Settings of the task ``causal_lm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from adapterkit.config.task import TaskConfig


class CausalLmConfig(TaskConfig):
    """Going on with a text from left to right: plain text, or a prompt and its completion."""

    task_type: ClassVar[str] = "CAUSAL_LM"
    wrapper: ClassVar[str] = "adapterkit.tasks.causal_lm.model:PeftModelForCausalLM"
    auto_model: ClassVar[str] = "AutoModelForCausalLM"
    pipeline: ClassVar[str] = "adapterkit.tasks.causal_lm.pipeline:CausalLmPipeline"
    default_model: ClassVar[str] = "builtin:llama"
    default_metric: ClassVar[str] = "perplexity"
    greater_is_better: ClassVar[bool] = False
    measures: ClassVar[tuple[str, ...]] = ("perplexity", "accuracy")
    default_columns: ClassVar[Mapping[str, str]] = {"text": "text", "prompt": "prompt", "completion": "completion"}

    name: Literal["causal_lm"] = Field("causal_lm", description="Name of the task.")
